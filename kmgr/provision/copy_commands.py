"""Replicated changes about the second copies of personal desktops: one applier per command.

Rule 1: the generation fences. Whoever reports about a desktop names the
generation and the server it believes in; what comes too late changes nothing.
Rule 2: a desktop is taken over by its copy only while its server is lost or removed, for
the very loss that the leader waited out (`lost_at`), and raises the generation: the
former server's lease has ended by then, and it is never granted again (`provision.lease`). Nor
while that server may go on without a majority (`provision.tenure_rules`).
Rule 3: a desktop's last complete copy is never given up before another one is complete.
Rule 4: a superseded disk goes only by an administrator's word.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.model import PLACEABLE, ServerRole, ServerState
from kmgr.grid.queries import settings
from kmgr.grid.rows import Row, one, rows, scalar
from kmgr.ids import ServerId
from kmgr.provision.desktop_rows import owned, owned_row
from kmgr.provision.lifecycle import Event, after
from kmgr.provision.model import CopyState as C
from kmgr.provision.model import DesktopState as S
from kmgr.provision.queries import tenure_of
from kmgr.provision.stillness import CURE
from kmgr.whole import is_whole

_AWAY = (ServerState.LOST, ServerState.REMOVED)


def assign(db: Database, command: Command) -> Outcome:
    """Let a server hold a desktop's safe copy. body: desktop, generation, server."""
    row = owned_row(db, command)
    if isinstance(row, Rejected):
        return row
    target = one(db, "select * from servers where id = ?", [command.body["server"]])
    if target is None or target["role"] != ServerRole.SERVER or ServerState(target["state"]) not in PLACEABLE:
        return Rejected("refused", f"server {command.body['server']} takes no copies now")
    if target["id"] == row["server"]:
        return Rejected("refused", f"desktop {row['name']} runs on {target['name']}: its copy must be elsewhere")
    db.execute(
        "insert or ignore into copies (desktop, server, generation, state, as_of, bytes, changed_at)"
        " values (?, ?, ?, ?, null, 0, ?)",
        [row["id"], target["id"], row["generation"], C.WANTED, command.at],
    )
    return Applied()


def points(db: Database, command: Command) -> Outcome:
    """A server tells how far the copies of its own desktops are. body: server, points.

    points: desktop, generation, server (that has the copy), as_of, bytes each, set_back where as_of is newer although
    it is smaller, because that server's clock was set back. values: taken, how many counted.
    """
    taken = 0
    for told in command.body["points"]:
        taken += _point(db, command, told)
    return Applied({"taken": taken})


def _point(db: Database, command: Command, told: Any) -> int:
    if not isinstance(told, Mapping) or not _whole(told.get("as_of")) or not _whole(told.get("bytes")):
        return 0
    copy = _copy(db, told)
    home = copy and one(
        db,
        "select name, user, generation from desktops where id = ? and server = ? and generation = ?",
        [copy["desktop"], command.body["server"], copy["generation"]],
    )
    if copy is None or home is None or copy["state"] not in (C.WANTED, C.READY):
        return 0
    if copy["as_of"] is not None and told["as_of"] < copy["as_of"] and told.get("set_back") is not True:
        return 0
    db.execute(
        "update copies set state = ?, as_of = ?, bytes = ?, changed_at = ?"
        " where desktop = ? and server = ? and generation = ?",
        [C.READY, told["as_of"], told["bytes"], command.at, *_key(copy)],
    )
    if copy["state"] == C.WANTED:
        name = scalar(db, "select name from servers where id = ?", [copy["server"]], default=copy["server"])
        note(db, command, "copy", copy["desktop"], f"desktop {home['name']} has a safe copy on {name}")
        # Rule 3: only now may the former one go.
        db.execute(
            "update copies set state = ?, changed_at = ?"
            " where desktop = ? and state in (?, ?) and not (server = ? and generation = ?)",
            [C.DROPPING, command.at, copy["desktop"], C.WANTED, C.READY, copy["server"], copy["generation"]],
        )
        db.execute(
            "update copies set state = ?, changed_at = ? where desktop = ? and state = ?",
            [C.DROPPING, command.at, copy["desktop"], C.LEFT],
        )
    return 1


def take_over(db: Database, command: Command) -> Outcome:
    """Let a lost server's desktop go on from its safe copy. body: desktop, generation, server, lost_at, target.

    `server` is the one that was lost, `lost_at` its record's stamp of that when the waiting began.
    """
    body = command.body
    row = owned_row(db, command)
    if isinstance(row, Rejected):
        return row
    source = one(db, "select * from servers where id = ?", [row["server"]])
    if row["server"] != body["server"] or source is None:
        return Rejected("conflict", f"desktop {row['name']} is on {row['server']} by now")
    if source["state"] not in _AWAY or source["changed_at"] != body["lost_at"]:
        return Rejected("conflict", f"{source['name']} is {source['state']}: it may be running {row['name']}")
    if tenure_of(db, ServerId(source["id"])):
        return Rejected("tenure", f"{source['name']} may be running {row['name']} without a majority: is it off?")
    target = one(db, "select * from servers where id = ?", [body["target"]])
    if target is None or ServerState(target["state"]) not in PLACEABLE:
        return Rejected("refused", f"server {body['target']} can start nothing now")
    copy = _copy(db, {"desktop": row["id"], "server": target["id"], "generation": row["generation"]})
    if copy is None or copy["state"] != C.READY:
        return Rejected("refused", f"{target['name']} has no safe copy of desktop {row['name']}")
    _move(db, command, row, copy, source)
    text = f"{source['name']} is lost: desktop {row['name']} of {row['user']} starts from its safe copy on "
    note(db, command, "copy", row["id"], text + str(target["name"]))
    return Applied({"generation": row["generation"] + 1})


def _move(db: Database, command: Command, row: Row, copy: Row, source: Row) -> None:
    db.execute(
        "update desktops set server = ?, generation = generation + 1, state = ?, step = '', cause = '',"
        " moving_to = null, changed_at = ? where id = ?",
        [copy["server"], after(S(row["state"]), Event.KEPT), command.at, row["id"]],
    )
    db.execute(
        "update copies set state = ?, changed_at = ? where desktop = ? and server = ? and generation = ?",
        [C.STARTING, command.at, *_key(copy)],
    )
    db.execute(
        "update copies set state = ?, changed_at = ? where desktop = ? and state in (?, ?)",
        [C.DROPPING, command.at, row["id"], C.WANTED, C.READY],
    )
    if source["state"] != ServerState.REMOVED:
        db.execute(
            "insert or replace into copies (desktop, server, generation, state, as_of, bytes, changed_at)"
            " values (?, ?, ?, ?, null, 0, ?)",
            [row["id"], source["id"], row["generation"], C.SUPERSEDED, command.at],
        )
    # It may have worked on until just before the first heartbeat that did not come.
    values = settings(db)
    silence = values["lost_after_ms"] - values["heartbeat_ms"] if source["state"] == ServerState.LOST else 0
    db.execute(
        "insert or replace into take_overs (desktop, generation, source, target, heard_at, at, as_of)"
        " values (?, ?, ?, ?, ?, ?, null)",
        [row["id"], row["generation"] + 1, source["id"], copy["server"], source["changed_at"] - silence, command.at],
    )


def promoted(db: Database, command: Command) -> Outcome:
    """A safe copy has become the desktop's disk. body: desktop, generation (the new one), server, as_of; bad, unread.

    Says in the history what is not in it. bad: how many places of 64 KiB were wrong, and accepted by a person;
    unread: how many were not read before.
    """
    body = command.body
    row = owned_row(db, command)
    if isinstance(row, Rejected):
        return row
    if row["server"] != body["server"]:
        return Rejected("conflict", f"desktop {row['name']} is on {row['server']} by now")
    taken = one(db, "select * from take_overs where desktop = ?", [row["id"]])
    lost = taken is not None and taken["generation"] == row["generation"]
    copy = _copy(db, {"desktop": row["id"], "server": row["server"], "generation": row["generation"] - 1})
    moved = copy is not None and copy["state"] == C.STARTING  # shut down in order: it has all of it
    if not (lost or moved) or not _whole(body["as_of"]):
        return Rejected("conflict", f"desktop {row['name']} does not start from a copy")
    db.execute(
        "delete from copies where desktop = ? and server = ? and state = ?", [row["id"], row["server"], C.STARTING]
    )
    name = scalar(db, "select name from servers where id = ?", [row["server"]], default=row["server"])
    if copy is not None:  # told once, however often it is reported
        _doubts(db, command, row, str(name))
    if taken is None or not lost or taken["as_of"] is not None:
        return Applied()
    db.execute("update take_overs set as_of = ? where desktop = ?", [body["as_of"], row["id"]])
    text = f"desktop {row['name']} of {row['user']} goes on on {name}: {loss(int(body['as_of']), taken['heard_at'])}"
    note(db, command, "copy", row["id"], text)
    return Applied()


def _doubts(db: Database, command: Command, row: Row, server: str) -> None:
    """Put into the history what of a copy was wrong, or not looked at, when a desktop was started from it."""
    bad, unread = (command.body.get(name, 0) for name in ("bad", "unread"))
    if _whole(bad) and bad:
        text = (
            f"desktop {row['name']} was started from its safe copy on {server} although {bad} places of 64 KiB of it"
        )
        note(db, command, "alarm", row["id"], f"{text} had gone bad: files may be damaged")
    if _whole(unread) and unread:
        text = f"desktop {row['name']} was started from its safe copy on {server} before all of it was read again"
        note(db, command, "copy", row["id"], f"{text}: {-(-unread // 16)} MiB were not")


def loss(as_of: int, heard_at: int) -> str:
    """Say what a desktop that was started from its safe copy has, and what it has not. Stamps in ms."""
    lost_s = max(0, -(-(heard_at - as_of) // 1000))
    return (
        f"it has all that was saved before {_clock(as_of)}; the work of the last {lost_s} s before "
        f"{_clock(max(as_of, heard_at))} is missing"
    )


def drop(db: Database, command: Command) -> Outcome:
    """Have a disk deleted that is not needed any more; superseded: by hand. body: desktop, server, generation."""
    copy = _copy(db, command.body)
    if copy is None:
        return Applied()
    if copy["state"] in (C.WANTED, C.READY) and _is_last(db, copy):
        return Rejected("refused", "this is the desktop's only safe copy: it stays until there is another one")
    if copy["state"] == C.STARTING:
        return Rejected("conflict", "the desktop is started from this copy now")
    if one(db, "select desktop from put_backs where desktop = ? and server = ? and disk = ?", _key(copy)):
        return Rejected("conflict", "this disk is being put back as the desktop's own")
    if copy["state"] == C.SUPERSEDED:
        name = scalar(db, "select name from servers where id = ?", [copy["server"]], default=copy["server"])
        desktop = scalar(db, "select name from desktops where id = ?", [copy["desktop"]], default=copy["desktop"])
        note(db, command, "copy", copy["desktop"], f"the superseded disk of desktop {desktop} on {name} is deleted")
    db.execute(
        "update copies set state = ?, changed_at = ? where desktop = ? and server = ? and generation = ?",
        [C.DROPPING, command.at, *_key(copy)],
    )
    return Applied()


def dropped(db: Database, command: Command) -> Outcome:
    """Its server has deleted a disk, or is no server of the grid any more. body: desktop, server, generation."""
    copy = _copy(db, command.body)
    if copy is None:
        return Applied()
    state = scalar(db, "select state from servers where id = ?", [copy["server"]], default=ServerState.REMOVED)
    if copy["state"] != C.DROPPING and state != ServerState.REMOVED:
        return Rejected("conflict", f"this disk is {copy['state']}, not to be deleted")
    db.execute("delete from copies where desktop = ? and server = ? and generation = ?", _key(copy))
    return Applied()


def alarm(db: Database, command: Command) -> Outcome:
    """Safe copies of a server's desktops fall behind, or have caught up. body: server, desktops, cause, over."""
    whose = _whose(db, command.body)
    if not whose:
        return Applied()
    text = "are up to date again" if command.body["over"] else f"fall behind: {command.body['cause']}"
    note(db, command, "alarm", str(command.body["server"]), f"the safe copies of {whose} {text}")
    return Applied()


def still(db: Database, command: Command) -> Outcome:
    """Guests do not say that their file systems go on after a safe copy, or have. body: server, desktops, over."""
    whose = _whose(db, command.body)
    if whose:
        text = "go on" if command.body["over"] else f"stand still: the guest agent does not answer. {CURE}"
        note(db, command, "alarm", str(command.body["server"]), f"the file systems of {whose} {text}")
    return Applied()


def _whose(db: Database, body: Mapping[str, Any]) -> str:
    told = [
        str(row["name"])
        for row in rows(db, "select id, name from desktops where server = ? order by name", [body["server"]])
        if row["id"] in body["desktops"]
    ]
    if not told:
        return ""
    return f"{told[0]} and {len(told) - 1} more desktops" if len(told) > 1 else f"desktop {told[0]}"


def _is_last(db: Database, copy: Row) -> bool:
    desktop = one(db, "select * from desktops where id = ?", [copy["desktop"]])
    if desktop is None or not owned(desktop) or desktop["generation"] != copy["generation"]:
        return False
    others = rows(
        db,
        "select server from copies where desktop = ? and generation = ? and state = ? and server <> ?"
        " order by server",
        [copy["desktop"], copy["generation"], C.READY, copy["server"]],
    )
    return not others


def _copy(db: Database, told: Mapping[str, Any]) -> Row | None:
    key = [told.get(name) for name in ("desktop", "server", "generation")]
    if not all(isinstance(part, str | int) for part in key):
        return None
    return one(db, "select * from copies where desktop = ? and server = ? and generation = ?", key)


def _key(copy: Row) -> list[Any]:
    return [copy["desktop"], copy["server"], copy["generation"]]


def _whole(value: object) -> bool:
    return is_whole(value, 0, (1 << 53) - 1)


def _clock(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%H:%M:%S} UTC"


APPLIERS: Mapping[str, Applier] = {
    "copy.alarm": alarm,
    "copy.assign": assign,
    "copy.points": points,
    "copy.promoted": promoted,
    "copy.still": still,
    "copy.drop": drop,
    "copy.dropped": dropped,
    "desktop.take_over": take_over,
}
