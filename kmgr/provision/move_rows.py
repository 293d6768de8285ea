"""The row of a desktop's move, while one goes on or after it failed: reads, its begin and its end.

A *cold* move is one whose desktop is shut down here and started there from its safe copy. Its mark, by which
nothing that was said of an earlier one counts, is in the log as long as it goes on.
"""

from sqlite_utils import Database

from kmgr.grid.envelope import Command
from kmgr.grid.history import note
from kmgr.grid.rows import Row, one, rows, scalar
from kmgr.ids import DesktopId
from kmgr.provision.capture_queries import WANTED
from kmgr.provision.model import CopyState, Move


def moves(db: Database) -> tuple[Move, ...]:
    """Return the moves that go on, and the last one of each desktop that failed, by desktop."""
    sql = "select m.* from moves m join desktops d on d.id = m.desktop and d.generation = m.generation"
    return tuple(Move(**row) for row in rows(db, f"{sql} order by m.desktop"))


def cold_mark(db: Database, desktop: DesktopId) -> str:
    """Return the mark of a desktop's cold move, empty unless one goes on."""
    return str(scalar(db, "select mark from cold_moves where desktop = ?", [desktop], default=""))


def why_not_move(db: Database, row: Row, target: Row) -> str:
    """Say why a desktop cannot begin to go to another server, whether it runs meanwhile or not; empty if it can."""
    if target["id"] == row["server"]:
        return f"desktop {row['name']} is on {target['name']} already"
    if one(db, "select * from captures where desktop = ? and state = ?", [row["id"], WANTED]) is not None:
        return f"a version is being made of desktop {row['name']}: it stays until that is done"
    if one(db, "select * from copies where desktop = ? and state = ?", [row["id"], CopyState.STARTING]) is not None:
        return f"desktop {row['name']} is being started from another disk: it stays until it is"
    if one(db, "select * from holdings where version = ? and server = ?", [row["version"], target["id"]]) is None:
        return f"{target['name']} does not have the golden image of desktop {row['name']}"
    return ""


def announce(db: Database, command: Command, row: Row, target: Row, why: str) -> None:
    """Begin a desktop's move."""
    db.execute("update desktops set moving_to = ? where id = ?", [target["id"], row["id"]])
    db.execute("delete from moves where desktop not in (select id from desktops)")
    db.execute(
        "insert into moves (desktop, generation, source, target, why, begun_at, failures, cause)"
        " values (?, ?, ?, ?, ?, ?, 0, '') on conflict (desktop) do update set"
        " failures = case when generation = excluded.generation then failures else 0 end, cause = '',"
        " generation = excluded.generation, source = excluded.source, target = excluded.target,"
        " why = excluded.why, begun_at = excluded.begun_at",
        [row["id"], row["generation"], row["server"], target["id"], why, command.at],
    )


def announce_cold(db: Database, command: Command, row: Row, target: Row, why: str) -> None:
    """Begin a desktop's cold move."""
    announce(db, command, row, target, why)
    db.execute("insert into cold_moves (desktop, mark) values (?, ?)", [row["id"], command.id])


def give_up(db: Database, command: Command, row: Row, cause: str) -> None:
    """End a desktop's move, if there is one, with the cause: it stays where it is."""
    if row["moving_to"] is None:
        return
    db.execute("update desktops set moving_to = null where id = ?", [row["id"]])
    db.execute("update moves set failures = failures + 1, cause = ? where desktop = ?", [cause, row["id"]])
    target = scalar(db, "select name from servers where id = ?", [row["moving_to"]], default=row["moving_to"])
    note(db, command, "desktop", row["id"], f"desktop {row['name']} stays where it is, not on {target}: {cause}")
