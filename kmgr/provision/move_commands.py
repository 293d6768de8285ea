"""Replicated changes about desktops that go on on another server: one applier per command.

Rule 1: a move is announced before anything is copied (`desktop.move`), and ends with
one word: `moved`, which is the hand-over, or `move_failed`. Whichever the log has
first counts; the other is rejected and changes nothing.
Rule 2: `moved` is said while the guest stands still on both servers, and raises the
generation: what the former server still has of it is a former generation's, and the
new one lets it go on only when it sees itself in the log.
Rule 3: in a cold move (`drain.leave`) the desktop is off and its domain gone when `moved` is said: it is started
there from its safe copy, which has all of it.
Rule 4: the disk that a personal desktop leaves behind is kept until the next complete
safe copy (`copy.points`).
"""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.model import RUNNING, ServerState
from kmgr.grid.rows import Row, one, scalar
from kmgr.provision.desktop_rows import fenced, owned, takes_desktops
from kmgr.provision.model import CopyState
from kmgr.provision.model import DesktopState as S
from kmgr.provision.move_rows import announce, cold_mark, give_up, why_not_move


def move(db: Database, command: Command) -> Outcome:
    """Let a desktop in use go on on another server. body: desktop, generation, server, target, why."""
    row = _believed(db, command)
    if isinstance(row, Rejected):
        return row
    target = one(db, "select * from servers where id = ?", [command.body["target"]])
    if target is None or not takes_desktops(target):
        return Rejected("refused", f"server {command.body['target']} takes no desktops now")
    if row["moving_to"] is not None:
        if row["moving_to"] == target["id"]:
            return Applied()
        return Rejected("conflict", f"desktop {row['name']} is on its way to {row['moving_to']} already")
    if _state(db, row["server"]) not in RUNNING:
        return Rejected("conflict", f"the server of desktop {row['name']} is not up: there is nothing to move from")
    if refusal := why_not_move(db, row, target):
        return Rejected("refused", refusal)
    announce(db, command, row, target, str(command.body["why"]))
    text = f"desktop {row['name']} of {row['user']} moves to {target['name']}: {command.body['why']}"
    note(db, command, "desktop", row["id"], text)
    return Applied()


def moved(db: Database, command: Command) -> Outcome:
    """Hand a desktop over: it stands still, and all of it is there. body: desktop, generation, server, target.

    Of a cold move besides: cold (its mark), as_of (how far its safe copy goes).
    """
    row = _believed(db, command)
    if isinstance(row, Rejected):
        return row
    target = command.body["target"]
    if row["moving_to"] is None or row["moving_to"] != target:
        return Rejected("conflict", f"desktop {row['name']} does not move to {target} (any more)")
    if _state(db, target) not in RUNNING:
        return Rejected("refused", f"server {target} is not up any more")
    cold = cold_mark(db, row["id"])
    if command.body.get("cold", "") != cold:
        return Rejected("conflict", f"desktop {row['name']} goes to {target} another time, or another way")
    if cold and not _start_copy(db, command, row):
        return Rejected("refused", f"server {target} has no whole safe copy of desktop {row['name']} (any more)")
    db.execute(
        "update desktops set server = ?, generation = generation + 1, moving_to = null, changed_at = ? where id = ?",
        [target, command.at, row["id"]],
    )
    if owned(row):
        _leave_disk(db, command, row)
    db.execute("delete from moves where desktop = ?", [row["id"]])
    names = {s: scalar(db, "select name from servers where id = ?", [s], default=s) for s in (row["server"], target)}
    text = f"desktop {row['name']} of {row['user']} goes on on {names[target]}; it came from {names[row['server']]}"
    note(db, command, "desktop", row["id"], text)
    return Applied({"generation": row["generation"] + 1})


def move_failed(db: Database, command: Command) -> Outcome:
    """A move ended where it began: nothing is lost, it runs on there. body: desktop, generation, server, cause."""
    row = fenced(db, command)
    if isinstance(row, Rejected):
        return row
    give_up(db, command, row, str(command.body["cause"]))
    return Applied()


def _start_copy(db: Database, command: Command, row: Row) -> bool:
    """Have a desktop start from its safe copy on the server that it goes to; False if there is none."""
    found = db.execute(
        "update copies set state = ?, as_of = ?, changed_at = ?"
        " where desktop = ? and server = ? and generation = ? and state = ?",
        [
            *(CopyState.STARTING, command.body["as_of"], command.at),
            *(row["id"], command.body["target"], row["generation"], CopyState.READY),
        ],
    ).rowcount
    if found:
        db.execute(
            "update copies set state = ?, changed_at = ? where desktop = ? and state in (?, ?)",
            [CopyState.DROPPING, command.at, row["id"], CopyState.WANTED, CopyState.READY],
        )
    return found > 0


def _leave_disk(db: Database, command: Command, row: Row) -> None:
    db.execute(
        "insert or replace into copies (desktop, server, generation, state, as_of, bytes, changed_at)"
        " values (?, ?, ?, ?, ?, 0, ?)",
        [row["id"], row["server"], row["generation"], CopyState.LEFT, command.at, command.at],
    )


def _believed(db: Database, command: Command) -> Row | Rejected:
    """Return a desktop in use, of the generation and on the server that were believed."""
    row = fenced(db, command)
    if not isinstance(row, Rejected) and row["state"] != S.IN_USE:
        told = row["state"].replace("_", " ")
        return Rejected("conflict", f"desktop {row['name']} is {told}: only what is used moves")
    return row


def _state(db: Database, server: str) -> str:
    return str(scalar(db, "select state from servers where id = ?", [server], default=ServerState.REMOVED))


APPLIERS: Mapping[str, Applier] = {
    "desktop.move": move,
    "desktop.moved": moved,
    "desktop.move_failed": move_failed,
}
