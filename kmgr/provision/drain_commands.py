"""Replicated changes about the notice that people on a draining server get: one applier per command.

Rule 1: a server drains first; the notice says in how many minutes what cannot move ends. Undrained, or removed, it
is gone by itself, and nobody has to leave any more (triggers of the schema).
Rule 2: a desktop has to leave from the moment the log says so (`drain.tell`), and ends (`drain.end`) at the
moment that was told with it, never before, whoever leads by then. Nobody is told later than some minutes before.
Rule 3: whoever has logged out, moved on or come to another life of the desktop meanwhile is not concerned.
Rule 4: only pooled desktops end: they are made anew elsewhere. A personal one of which another server has a
whole safe copy is shut down and goes on there (`drain.leave`), at the moment that was told or once nobody is
logged on in it.
"""

from collections.abc import Mapping
from typing import Any

from sqlite_utils import Database

from kmgr.grid.commands import drain_server
from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.model import ServerState
from kmgr.grid.rows import Row, one, rows, scalar
from kmgr.provision.attendance_commands import in_use
from kmgr.provision.desktop_rows import owned, takes_desktops
from kmgr.provision.lifecycle import Event, after
from kmgr.provision.model import CopyState, Purpose
from kmgr.provision.model import DesktopState as S
from kmgr.provision.move_rows import announce_cold, why_not_move
from kmgr.whole import is_whole, must_be

# A week: longer notices are forgotten by all who read them.
MOST_MINUTES = 7 * 24 * 60
# Who is told late has so long all the same, or half of the notice if that is shorter.
_LEAST_MS = 5 * 60_000


def begin(db: Database, command: Command) -> Outcome:
    """Drain a server with a notice, in one. body: server, minutes, and running?, although? as for `server.drain`."""
    minutes = command.body["minutes"]
    if not is_whole(minutes, 1, MOST_MINUTES):
        return Rejected("refused", f"the minutes of a notice {must_be(minutes, 1, MOST_MINUTES)} (a week at most)")
    outcome = drain_server(db, command)
    return outcome if isinstance(outcome, Rejected) else notice(db, command)


def notice(db: Database, command: Command) -> Outcome:
    """Say in how many minutes desktops of a draining server end that cannot move. body: server, minutes."""
    minutes = command.body["minutes"]
    if not is_whole(minutes, 1, MOST_MINUTES):
        return Rejected("refused", f"the minutes of a notice {must_be(minutes, 1, MOST_MINUTES)} (a week at most)")
    server = one(db, "select * from servers where id = ?", [command.body["server"]])
    if server is None or server["state"] == ServerState.REMOVED:
        return Rejected("not_found", f"no server {command.body['server']} in this grid")
    if not server["draining"]:
        return Rejected("conflict", f"{server['name']} does not drain (any more): nobody has to leave it")
    until = command.at + minutes * 60_000
    db.execute(
        "insert into drain_notices (server, until, minutes) values (?, ?, ?)"
        " on conflict (server) do update set until = excluded.until, minutes = excluded.minutes",
        [server["id"], until, minutes],
    )
    # Who was told already is told the new time.
    db.execute("update leaving set until = ? where server = ?", [until, server["id"]])
    text = f"whoever works on {server['name']} and cannot be moved is told to leave within {minutes} min"
    note(db, command, "server", server["id"], text)
    return Applied({"until": until})


def tell(db: Database, command: Command) -> Outcome:
    """Let a desktop have to leave: it cannot be moved while it runs. body: desktop, generation, server."""
    row = _used(db, command)
    if isinstance(row, Rejected):
        return row
    if owned(row) and not _has_copy(db, row):
        return Rejected("refused", f"desktop {row['name']} has no whole safe copy elsewhere: it is moved, or stays")
    server = one(db, "select * from servers where id = ?", [row["server"]])
    told = one(db, "select * from drain_notices where server = ?", [row["server"]])
    if server is None or not server["draining"] or told is None:
        return Rejected("conflict", f"the server of desktop {row['name']} does not drain with a notice (any more)")
    if one(db, "select * from leaving where desktop = ?", [row["id"]]) is not None:
        return Applied()
    until = max(told["until"], command.at + min(_LEAST_MS, told["minutes"] * 30_000))
    db.execute(
        "insert into leaving (desktop, generation, server, until) values (?, ?, ?, ?)",
        [row["id"], row["generation"], row["server"], until],
    )
    what = "is shut down and goes on elsewhere" if owned(row) else "ends"
    text = f"{row['user']} is told that desktop {row['name']} {what}: {server['name']} drains and it cannot be moved"
    note(db, command, "desktop", row["id"], text)
    return Applied({"until": until})


def end(db: Database, command: Command) -> Outcome:
    """End a desktop whose time is over. body: desktop, generation, server, until (what was believed)."""
    row = _used(db, command)
    if isinstance(row, Rejected):
        return row
    if owned(row):
        return Rejected("refused", f"desktop {row['name']} is not ended by a notice: it goes on elsewhere, or stays")
    told = one(db, "select * from leaving where desktop = ?", [row["id"]])
    if told is None or told["until"] != command.body["until"]:
        return Rejected("conflict", f"desktop {row['name']} does not have to leave (then) any more")
    if command.at < told["until"]:
        return Rejected("conflict", f"the time that {row['user']} was given for desktop {row['name']} is not over")
    db.execute(
        "update desktops set state = ?, changed_at = ? where id = ?",
        [after(S.IN_USE, Event.RETIRED), command.at, row["id"]],
    )
    name = scalar(db, "select name from servers where id = ?", [row["server"]], default=row["server"])
    text = f"desktop {row['name']} of {row['user']} is ended: {name} drains and the time of its notice is over"
    note(db, command, "desktop", row["id"], text)
    return Applied()


def leave(db: Database, command: Command) -> Outcome:
    """Have a personal desktop shut down and go on from its safe copy. body: desktop, generation, server, target.

    Before the moment that its user was told also: left, connected_at, disconnected_at (nobody is logged on in it, and
    what was believed of its screen).
    """
    body = command.body
    row = _used(db, command)
    if isinstance(row, Rejected):
        return row
    if not owned(row):
        return Rejected("refused", f"desktop {row['name']} is kept for nobody: it ends")
    server = one(db, "select * from servers where id = ?", [row["server"]])
    if server is None or not server["draining"]:
        return Rejected("conflict", f"the server of desktop {row['name']} does not drain (any more)")
    told = one(db, "select * from leaving where desktop = ?", [row["id"]])
    if (told is None or command.at < told["until"]) and not _is_left(row, body):
        return Rejected("conflict", f"{row['user']} may work on desktop {row['name']} (for some time yet)")
    target = one(db, "select * from servers where id = ?", [body["target"]])
    if target is None or not takes_desktops(target):
        return Rejected("refused", f"server {body['target']} takes no desktops now")
    if refusal := why_not_move(db, row, target):
        return Rejected("refused", refusal)
    if not _has_copy(db, row, on=target["id"]):
        return Rejected("refused", f"{target['name']} has no whole safe copy of desktop {row['name']}")
    announce_cold(db, command, row, target, f"{server['name']} drains")
    what = f"is shut down and goes on on {target['name']}: {server['name']} drains"
    note(db, command, "desktop", row["id"], f"desktop {row['name']} of {row['user']} {what}")
    return Applied()


def _is_left(row: Row, body: Mapping[str, Any]) -> bool:
    """Tell whether nobody is logged on, by its server's word, and no screen of it was opened since."""
    is_open = row["connected_at"] is not None and row["disconnected_at"] is None
    believed = all(row[name] == body.get(name) for name in ("connected_at", "disconnected_at"))
    return body.get("left") is True and believed and not is_open


def _has_copy(db: Database, row: Row, on: str | None = None) -> bool:
    sql = "select server from copies where desktop = ? and generation = ? and state = ? and server <> ?"
    held = rows(db, f"{sql} order by server", [row["id"], row["generation"], CopyState.READY, row["server"]])
    return any(on is None or copy["server"] == on for copy in held)


def _used(db: Database, command: Command) -> Row | Rejected:
    """Return a desktop in use, where and in the life that was believed, that is not on its way."""
    row = in_use(db, command)
    if isinstance(row, Rejected):
        return row
    if row["moving_to"] is not None:
        return Rejected("conflict", f"desktop {row['name']} moves to another server at this moment")
    if row["purpose"] != Purpose.USE:
        return Rejected("refused", f"desktop {row['name']} is there to {row['purpose']} and stays until that is done")
    return row


APPLIERS: Mapping[str, Applier] = {
    "drain.begin": begin,
    "drain.notice": notice,
    "drain.tell": tell,
    "drain.end": end,
    "drain.leave": leave,
}
