"""Replicated changes of the provision package: one applier per command.

What a desktop's own server reports carries the generation and the server it
believes in; a report that comes too late is rejected and changes nothing.
"""

from collections.abc import Callable, Mapping

from sqlite_utils import Database

from kmgr.errors import Conflict
from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.model import ServerState
from kmgr.grid.queries import settings
from kmgr.grid.rows import Row, one, rows, scalar
from kmgr.provision.allowance import groups_of, note_groups, why_not_another
from kmgr.provision.desktop_rows import (
    add_desktop,
    best_standby,
    desktop_row,
    fenced,
    living,
    own_desktop,
    owned,
    takes_desktops,
)
from kmgr.provision.lifecycle import Event, after
from kmgr.provision.model import CopyState, Origin, Purpose
from kmgr.provision.model import DesktopState as S
from kmgr.provision.move_rows import give_up
from kmgr.templates.model import Kind, Refresh
from kmgr.templates.version_commands import count_failure, forget_template, made_now

# What a desktop can go on from, on a server of the grid: a former disk, or a safe copy of its present generation.
_KEPT_DISK = (
    "select c.state from copies c join servers s on s.id = c.server where c.desktop = ? and s.state <> ?"
    " and (c.state in (?, ?, ?) or (c.state = ? and c.generation = ?)) order by c.state = ? desc"
)


def place(db: Database, command: Command) -> Outcome:
    """Give a new desktop its server. body: desktop, template, version, server."""
    return place_below(db, command, lambda template: (living(db, template), template["maximum"]))


def place_below(db: Database, command: Command, limit: Callable[[Row], tuple[int, int]]) -> Outcome:
    """Place a desktop; `limit` returns for a template how many there are and how many may be."""
    body = command.body
    if one(db, "select id from desktops where id = ?", [body["desktop"]]):
        return Applied({"desktop": body["desktop"]})
    template = one(db, "select * from templates where id = ?", [body["template"]])
    if template is None:
        return Rejected("not_found", f"there is no template {body['template']}")
    if not template["enabled"] or not made_now(db, template):
        return Rejected("refused", f"template {template['name']} is not refilled at present")
    if body["version"] not in made_now(db, template):
        return Rejected("conflict", f"template {template['name']} has another version by now")
    server = one(db, "select * from servers where id = ?", [body["server"]])
    if server is None or not takes_desktops(server):
        return Rejected("refused", f"server {body['server']} takes no new desktops now")
    there, most = limit(template)
    if there >= most:
        return Rejected("refused", f"template {template['name']} has its maximum of {most} desktops")
    name = add_desktop(db, command, template, kind=template["kind"])
    return Applied({"desktop": body["desktop"], "name": name})


def building(db: Database, command: Command) -> Outcome:
    """Its server has begun to make it, or to boot a standby again. body: desktop, generation, server."""
    return _reported(db, command, Event.STARTED)


def ready(db: Database, command: Command) -> Outcome:
    """Its guest answered. body: desktop, generation, server, and origin if it was not booted: warm."""
    row = fenced(db, command)
    if isinstance(row, Rejected):
        return row
    # What an administrator edits or tests is theirs at once: no pool has it, nobody claims it.
    theirs = row["purpose"] != Purpose.USE and row["state"] in (S.BUILDING, S.READY, S.IN_USE)
    outcome = _reported(db, command, Event.KEPT if theirs else Event.ANSWERED)
    if isinstance(outcome, Applied):
        db.execute(
            "update desktops set ready_at = coalesce(ready_at, ?), step = '', cause = '', origin = ? where id = ?",
            [command.at, _origin(command), row["id"]],
        )
        db.execute("delete from failures where template = ? and version = ?", [row["template"], row["version"]])
    return outcome


def failed(db: Database, command: Command) -> Outcome:
    """A step failed. body: desktop, generation, server, step, cause; trouble: what that is a case of.

    The k-th one in a row that failed while it was made stops its template's
    refill. One that was ready once has shown that its version boots; where
    against is false, the server that reports takes the blame.
    """
    row = fenced(db, command)
    if isinstance(row, Rejected):
        return row
    outcome = _reported(db, command, Event.FAILED)
    if isinstance(outcome, Rejected):
        return outcome
    step, cause = str(command.body["step"]), str(command.body["cause"])
    db.execute(
        "update desktops set step = ?, cause = ?, trouble = ? where id = ?",
        [step, cause, str(command.body.get("trouble", "")), row["id"]],
    )
    against = command.body.get("against", True) is not False and row["purpose"] == Purpose.USE
    if against:
        count_failure(db, row["template"], row["version"], step, cause)
    note(db, command, "desktop", row["id"], f"desktop {row['name']} is broken: {step}: {cause}")
    if against and row["state"] in (S.PLACED, S.BUILDING) and row["ready_at"] is None:
        _count_failure(db, command, row, step, cause)
    return outcome


def claim(db: Database, command: Command) -> Outcome:
    """Give a user a desktop of a template: theirs, else the best standby. body: user, template, groups?."""
    user, template = command.body["user"], command.body["template"]
    groups = groups_of(command.body.get("groups"))
    if one(db, "select id from templates where id = ?", [template]) is None:
        return Rejected("not_found", f"there is no template {template}")
    own = own_desktop(db, str(user), str(template))
    if own is not None:
        # Who asks for it again is coming back: from now on it is kept for them anew.
        db.execute(
            "update desktops set disconnected_at = ? where id = ? and disconnected_at is not null",
            [command.at, own["id"]],
        )
        return _why_away(db, own) or _claimed(own, new=False)
    if full := why_not_another(db, str(user), str(template), groups):
        return Rejected("quota", full)
    chosen = best_standby(db, str(template))
    if chosen is None:
        return Rejected("none_ready", "no desktop is ready at this moment")
    db.execute(
        "update desktops set state = ?, user = ?, claimed_at = ?, changed_at = ?, connected_at = null,"
        " disconnected_at = null where id = ?",
        [after(S.READY, Event.CLAIMED), user, command.at, command.at, chosen["id"]],
    )
    note_groups(db, chosen["id"], groups)
    db.execute("delete from asks where template = ? and user = ?", [template, user])
    kept = ", which stays theirs" if chosen["kind"] == Kind.PERSONAL else ""
    note(db, command, "desktop", chosen["id"], f"{user} got desktop {chosen['name']}{kept}")
    return _claimed(chosen, new=True)


def release(db: Database, command: Command) -> Outcome:
    """A user gives a desktop back: it is retired. body: desktop, user."""
    row = desktop_row(db, command)
    if isinstance(row, Rejected):
        return row
    if row["user"] != command.body["user"]:
        return Rejected("not_allowed", f"desktop {row['name']} is not {command.body['user']}'s")
    if row["state"] == S.RETIRED:
        return Applied()
    if owned(row):
        return Rejected(
            "refused",
            f"desktop {row['name']} is {row['user']}'s personal desktop and is kept with all that they saved; an "
            "administrator can delete it",
        )
    return _retire(db, command, row, f"{row['user']} gave desktop {row['name']} back")


def retire(db: Database, command: Command) -> Outcome:
    """Have a desktop removed.

    body: desktop, why; a plan adds what it believed: generation, state, server_state. A personal desktop that is
    somebody's goes only with lose, the name of the user whose work is deleted
    """
    row = desktop_row(db, command)
    if isinstance(row, Rejected):
        return row
    if row["state"] == S.RETIRED:
        return Applied()
    now = {**row, "server_state": scalar(db, "select state from servers where id = ?", [row["server"]])}
    for believed in ("generation", "state", "server_state"):
        if command.body.get(believed, now[believed]) != now[believed]:
            word = believed.replace("_", " ")
            return Rejected(
                "conflict", f"desktop {row['name']} has {word} {now[believed]}, not {command.body[believed]} any more"
            )
    if owned(row) and command.body.get("lose") != row["user"]:
        return Rejected(
            "personal",
            f"desktop {row['name']} is {row['user']}'s personal desktop: all that they saved on it would be deleted, "
            f"the safe copy too. To do it all the same, confirm it with the user's name",
        )
    return _retire(db, command, row, f"desktop {row['name']} is removed: {command.body['why']}")


def removed(db: Database, command: Command) -> Outcome:
    """Its server has removed domain and clone. body: desktop, generation, server."""
    row = fenced(db, command)
    if isinstance(row, Rejected):
        return row
    if row["state"] != S.RETIRED:
        return Rejected("conflict", f"desktop {row['name']} is {row['state']}, not retired")
    _delete(db, command, row)
    return Applied()


def forget(db: Database, command: Command) -> Outcome:
    """Drop the record of a desktop whose server was removed from the grid. body: desktop."""
    row = one(db, "select * from desktops where id = ?", [command.body["desktop"]])
    if row is None:
        return Applied()
    state = scalar(db, "select state from servers where id = ?", [row["server"]], default=ServerState.REMOVED)
    if state != ServerState.REMOVED:
        return Rejected("conflict", f"the server of desktop {row['name']} is still a server of the grid")
    if owned(row):
        former = (CopyState.SUPERSEDED, CopyState.LEFT, CopyState.STARTING)
        safe = (CopyState.READY, row["generation"], CopyState.READY)
        if kept := one(db, _KEPT_DISK, [row["id"], ServerState.REMOVED, *former, *safe]):
            if kept["state"] == CopyState.READY:
                return Rejected("conflict", f"desktop {row['name']} has a safe copy: it goes on from that")
            return Rejected("conflict", f"a former disk of desktop {row['name']} is kept: put it back, or delete it")
        text = f"{row['user']}'s personal desktop {row['name']} is gone with its server: there was no safe copy of it"
        note(db, command, "alarm", row["id"], text)
    _delete(db, command, row)
    return Applied()


def stray(db: Database, command: Command) -> Outcome:
    """Answer whether something found on a server is a desktop of it. body: desktop, server.

    values: wanted. A server asks the log before it deletes what it finds no
    record of, because its own copy of the state may be behind. What was on its way
    there is not handed over any more: nothing would be left of it.
    """
    row = one(db, "select * from desktops where id = ?", [command.body["desktop"]])
    if row is not None and row["moving_to"] == command.body["server"]:
        give_up(db, command, row, "the other server began anew meanwhile")
    return Applied({"wanted": row is not None and row["server"] == command.body["server"]})


def retry(db: Database, command: Command) -> Outcome:
    """Make a broken desktop anew, as a new generation; a personal one is tried on its own disk. body: desktop."""
    row = desktop_row(db, command)
    if isinstance(row, Rejected):
        return row
    try:
        state = after(S(row["state"]), Event.RETRIED)
    except Conflict as error:
        return Rejected("conflict", error.message)
    if owned(row):
        if one(db, "select desktop from put_backs where desktop = ?", [row["id"]]):
            return Rejected("conflict", f"a former disk of desktop {row['name']} is being put back: wait for that")
        _set_state(db, command, row, after(S(row["state"]), Event.KEPT))
        db.execute("update desktops set step = '', cause = '' where id = ?", [row["id"]])
        note(db, command, "desktop", row["id"], f"desktop {row['name']} is tried again on its own disk")
        return Applied()
    db.execute(
        "update desktops set state = ?, generation = generation + 1, step = '', cause = '', "
        " user = case purpose when 'use' then null else user end,"
        " claimed_at = null, ready_at = null, moving_to = null, connected_at = null, disconnected_at = null,"
        " changed_at = ? where id = ?",
        [state, command.at, row["id"]],
    )
    note(db, command, "desktop", row["id"], f"desktop {row['name']} is made again")
    return Applied()


def delete_template(db: Database, command: Command) -> Outcome:
    """Delete a template and retire its desktops. body: template. Refused while one of them is in use."""
    template = one(db, "select * from templates where id = ?", [command.body["template"]])
    if template is None:
        return Rejected("not_found", f"there is no template {command.body['template']}")
    own = rows(db, "select * from desktops where template = ? order by id", [template["id"]])
    used = [row for row in own if row["state"] == S.IN_USE or owned(row)]
    if used:
        names = ", ".join(f"{row['name']} ({row['user']})" for row in used[:3])
        return Rejected(
            "conflict", f"desktops of {template['name']} are in use: {names}. Disable it and wait, or retire"
        )
    for row in own:
        if row["state"] != S.RETIRED:
            _set_state(db, command, row, after(S(row["state"]), Event.RETIRED))
    db.execute("delete from templates where id = ?", [template["id"]])
    db.execute("delete from failures where template = ?", [template["id"]])
    forget_template(db, template["id"])
    db.execute("delete from asks where template = ?", [template["id"]])
    note(db, command, "template", template["id"], f"template {template['name']} deleted")
    return Applied()


def _why_away(db: Database, row: Row) -> Rejected | None:
    """Say why its user cannot have their personal desktop at this moment; None if they can."""
    if row["state"] == S.BROKEN:
        return Rejected(
            "away", f"Your desktop {row['name']} does not run ({row['step']}): your administrator can try it again."
        )
    server = one(db, "select name, state from servers where id = ?", [row["server"]])
    if server is not None and server["state"] in (ServerState.UP, ServerState.DRAINING):
        return None
    lost = server["name"] if server else row["server"]
    copy = one(
        db,
        "select s.name from copies c join servers s on s.id = c.server where c.desktop = ? and c.generation = ?"
        " and c.state = ? order by s.name",
        [row["id"], row["generation"], CopyState.READY],
    )
    if copy is None:
        return Rejected("away", f"Server {lost} is lost: your desktop {row['name']} comes back with it.")
    if one(db, "select server from tenures where server = ?", [row["server"]]):
        told = (
            f"Server {lost} is lost, but could still be running your desktop {row['name']}: it starts from its safe"
        )
        return Rejected("away", f"{told} copy on {copy['name']} once an administrator has said that {lost} is off.")
    return Rejected(
        "away", f"Server {lost} is lost: your desktop {row['name']} starts from its safe copy on {copy['name']} soon."
    )


def _delete(db: Database, command: Command, row: Row) -> None:
    """Forget a desktop; whoever has a copy of its disk deletes it."""
    db.execute("delete from desktops where id = ?", [row["id"]])
    for table in ("take_overs", "captures", "put_backs"):
        db.execute(f"delete from {table} where desktop = ?", [row["id"]])  # noqa: S608 - own names
    db.execute(
        "update copies set state = ?, changed_at = ? where desktop = ?", [CopyState.DROPPING, command.at, row["id"]]
    )


def _origin(command: Command) -> Origin:
    return Origin.WARM if command.body.get("origin") == Origin.WARM else Origin.COLD


def _claimed(row: Row, *, new: bool) -> Applied:
    return Applied({"desktop": row["id"], "server": row["server"], "state": str(S.IN_USE), "new": new})


def _reported(db: Database, command: Command, event: Event) -> Outcome:
    row = fenced(db, command)
    if isinstance(row, Rejected):
        return row
    try:
        state = after(S(row["state"]), event)
    except Conflict as error:
        return Rejected("conflict", error.message)
    if state != row["state"]:
        _set_state(db, command, row, state)
    return Applied()


def _retire(db: Database, command: Command, row: Row, text: str) -> Outcome:
    _set_state(db, command, row, after(S(row["state"]), Event.RETIRED))
    note(db, command, "desktop", row["id"], text)
    return Applied()


def _set_state(db: Database, command: Command, row: Row, state: S) -> None:
    db.execute("update desktops set state = ?, changed_at = ? where id = ?", [state, command.at, row["id"]])


def _count_failure(db: Database, command: Command, row: Row, step: str, cause: str) -> None:
    db.execute(
        "insert into failures (template, version, n, step, cause, at) values (?, ?, 1, ?, ?, ?)"
        " on conflict (template, version) do update set n = n + 1, step = excluded.step, cause = excluded.cause,"
        " at = excluded.at",
        [row["template"], row["version"], step, cause, command.at],
    )
    n = scalar(db, "select n from failures where template = ? and version = ?", [row["template"], row["version"]])
    if n < settings(db)["build_failures"]:
        return
    told = f"{n} desktops in a row failed, the last one at {step}: {cause}"
    changed = db.execute(
        "update templates set broken_cause = ?, changed_at = ? where id = ? and version = ? and broken_cause = ''",
        [told, command.at, row["template"], row["version"]],
    ).rowcount
    if changed:
        note(db, command, "alarm", row["template"], f"a template is not refilled any more: {told}")


APPLIERS: Mapping[str, Applier] = {
    "desktop.place": place,
    "desktop.building": building,
    "desktop.ready": ready,
    "desktop.failed": failed,
    "desktop.claim": claim,
    "desktop.release": release,
    "desktop.retire": retire,
    "desktop.removed": removed,
    "desktop.forget": forget,
    "desktop.stray": stray,
    "desktop.retry": retry,
    "template.delete": delete_template,
}

# Which refresh policies end a desktop's life when its user logs out.
ENDS_AT_LOGOUT = (Refresh.ON_LOGOUT,)
