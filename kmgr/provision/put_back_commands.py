"""Replicated changes by which a superseded disk becomes its desktop's disk again: one applier per command.

Rule 1: an administrator orders it, and the present disk is kept as superseded in its place.
Rule 2: between the two, the desktop runs nowhere. The order raises the generation and stops it; only when its
server has said that it is gone there (or that server's loss was waited out, as with a safe copy), the other disk's
server may start it, under another generation again.
Rule 3: the disk that a live move left behind can be put back while the server that it moved to is away: until then it
goes when there is a safe copy.
Rule 4: a desktop whose safe copy has gone bad is not being started from it any more: either disk may be put back,
and the bad copy goes.
Rule 5: that server says when the disk is in place; until then it is no safe copy and nothing is copied from it.
"""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.model import RUNNING, ServerRole, ServerState
from kmgr.grid.rows import Row, one, scalar
from kmgr.ids import ServerId
from kmgr.provision.causes import Trouble
from kmgr.provision.desktop_rows import owned_row
from kmgr.provision.lifecycle import Event, after
from kmgr.provision.model import CopyState as C
from kmgr.provision.model import DesktopState as S
from kmgr.provision.move_rows import give_up
from kmgr.provision.queries import tenure_of

_AWAY = (ServerState.LOST, ServerState.REMOVED)


def put_back(db: Database, command: Command) -> Outcome:
    """Stop a desktop and have a superseded disk put back. body: desktop, generation, server and disk (generation)."""
    body = command.body
    row = owned_row(db, command)
    if isinstance(row, Rejected):
        return row
    disk = one(
        db,
        "select * from copies where desktop = ? and server = ? and generation = ? and state in (?, ?)",
        [row["id"], body["server"], body["disk"], C.SUPERSEDED, C.LEFT],
    )
    home = scalar(db, "select state from servers where id = ?", [row["server"]], default=ServerState.REMOVED)
    useless = row["state"] == S.BROKEN and bool(row["cause"]) and row["trouble"] == Trouble.BAD_COPY
    if disk is None or (disk["state"] == C.LEFT and home not in _AWAY and not useless):
        return Rejected("not_found", "there is no such former disk (any more)")
    there = one(db, "select * from servers where id = ?", [body["server"]])
    if there is None or there["role"] != ServerRole.SERVER or ServerState(there["state"]) not in RUNNING:
        return Rejected(
            "refused", f"the server of that disk is {there['state'] if there else 'unknown'}: start it first"
        )
    starting = one(db, "select desktop from copies where desktop = ? and state = ?", [row["id"], C.STARTING])
    if starting and not useless:
        return Rejected("conflict", f"desktop {row['name']} is being started from another disk now: wait for that")
    if one(db, "select desktop from put_backs where desktop = ?", [row["id"]]):
        return Rejected("conflict", f"a former disk of desktop {row['name']} is being put back already")
    give_up(db, command, row, "its former disk is being put back")
    _stop(db, command, row, f"its former disk on {there['name']} is being put back", has_disk=starting is None)
    db.execute(
        "insert into put_backs (desktop, server, disk, at) values (?, ?, ?, ?)",
        [row["id"], there["id"], disk["generation"], command.at],
    )
    text = f"{command.by} has the former disk of desktop {row['name']} on {there['name']} put back; its present disk"
    rest = (
        "is kept as its former one" if starting is None else "was to be its safe copy, which has gone bad, and goes"
    )
    note(db, command, "copy", row["id"], f"{text} {rest}")
    return Applied({"generation": row["generation"] + 1})


def _stop(db: Database, command: Command, row: Row, why: str, *, has_disk: bool) -> None:
    state = S(row["state"]) if row["state"] == S.BROKEN else after(S(row["state"]), Event.FAILED)
    db.execute(
        "update desktops set generation = generation + 1, state = ?, step = 'put back', cause = ?, changed_at = ?"
        " where id = ?",
        [state, why, command.at, row["id"]],
    )
    db.execute(
        "update copies set state = ?, changed_at = ? where desktop = ? and state in (?, ?, ?)",
        [C.DROPPING, command.at, row["id"], C.WANTED, C.READY, C.STARTING],
    )
    if has_disk and scalar(db, "select state from servers where id = ?", [row["server"]]) != ServerState.REMOVED:
        db.execute(
            "insert or replace into copies (desktop, server, generation, state, as_of, bytes, changed_at)"
            " values (?, ?, ?, ?, null, 0, ?)",
            [row["id"], row["server"], row["generation"], C.SUPERSEDED, command.at],
        )


def put_aside(db: Database, command: Command) -> Outcome:
    """The desktop runs nowhere: let the other disk's server start it. body: desktop, generation, server, ?lost_at.

    Its server says so itself, or the leader after having waited its loss out (`lost_at`).
    """
    body = command.body
    row = owned_row(db, command)
    if isinstance(row, Rejected):
        return row
    due = one(db, "select * from put_backs where desktop = ?", [row["id"]])
    if due is None or row["server"] != body["server"]:
        return Rejected("conflict", f"no former disk of desktop {row['name']} is being put back (any more)")
    if scalar(db, "select state from servers where id = ?", [due["server"]]) == ServerState.REMOVED:
        # Nothing can be put back any more; what was set aside can.
        db.execute("delete from put_backs where desktop = ?", [row["id"]])
        return Applied({"generation": row["generation"]})
    if "lost_at" in body:
        home = one(db, "select * from servers where id = ?", [row["server"]])
        if home is None or home["state"] not in _AWAY or home["changed_at"] != body["lost_at"]:
            return Rejected("conflict", f"the server of desktop {row['name']} may be running it")
        if tenure_of(db, ServerId(row["server"])):
            return Rejected("tenure", f"{home['name']} may be running {row['name']} without a majority: is it off?")
    db.execute(
        "update desktops set server = ?, generation = generation + 1, state = ?, step = '', cause = '',"
        " changed_at = ? where id = ?",
        [due["server"], after(S(row["state"]), Event.KEPT), command.at, row["id"]],
    )
    db.execute(
        "update copies set state = ?, changed_at = ? where desktop = ? and server = ? and generation = ?",
        [C.STARTING, command.at, row["id"], due["server"], due["disk"]],
    )
    db.execute("delete from put_backs where desktop = ?", [row["id"]])
    return Applied({"generation": row["generation"] + 1})


def put_in_place(db: Database, command: Command) -> Outcome:
    """The superseded disk is the desktop's disk now. body: desktop, generation, server."""
    row = owned_row(db, command)
    if isinstance(row, Rejected):
        return row
    if row["server"] != command.body["server"]:
        return Rejected("conflict", f"desktop {row['name']} is on {row['server']} by now")
    starting = one(
        db,
        "select * from copies where desktop = ? and server = ? and state = ?",
        [row["id"], row["server"], C.STARTING],
    )
    if starting is None or starting["generation"] == row["generation"] - 1:
        return Applied()
    db.execute(
        "delete from copies where desktop = ? and server = ? and state = ?", [row["id"], row["server"], C.STARTING]
    )
    name = scalar(db, "select name from servers where id = ?", [row["server"]], default=row["server"])
    note(db, command, "copy", row["id"], f"desktop {row['name']} goes on on {name}, with the disk that it had there")
    return Applied()


APPLIERS: Mapping[str, Applier] = {
    "desktop.put_back": put_back,
    "desktop.put_aside": put_aside,
    "desktop.put_in_place": put_in_place,
}
