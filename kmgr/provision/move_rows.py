"""The row of a desktop's move, while one goes on or after it failed: reads, and its end."""

from sqlite_utils import Database

from kmgr.grid.envelope import Command
from kmgr.grid.history import note
from kmgr.grid.rows import Row, rows, scalar
from kmgr.provision.model import Move


def moves(db: Database) -> tuple[Move, ...]:
    """Return the moves that go on, and the last one of each desktop that failed, by desktop."""
    sql = "select m.* from moves m join desktops d on d.id = m.desktop and d.generation = m.generation"
    return tuple(Move(**row) for row in rows(db, f"{sql} order by m.desktop"))


def give_up(db: Database, command: Command, row: Row, cause: str) -> None:
    """End a desktop's move, if there is one, with the cause: it stays where it is."""
    if row["moving_to"] is None:
        return
    db.execute("update desktops set moving_to = null where id = ?", [row["id"]])
    db.execute("update moves set failures = failures + 1, cause = ? where desktop = ?", [cause, row["id"]])
    target = scalar(db, "select name from servers where id = ?", [row["moving_to"]], default=row["moving_to"])
    note(db, command, "desktop", row["id"], f"desktop {row['name']} stays where it is, not on {target}: {cause}")
