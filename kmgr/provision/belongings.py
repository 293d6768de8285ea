"""What becomes of a person's desktops when their account is deleted: whoever gets the name later is somebody else.

A pooled desktop goes, as when its user logs out. What is kept for a person, with all that they saved, goes only when
somebody says so of that desktop: until then the name is not given up.

Runs on the thread that applies the log.
"""

from sqlite_utils import Database

from kmgr.grid.envelope import Command
from kmgr.grid.history import note
from kmgr.grid.rows import Row, rows
from kmgr.provision.allowance import Whom
from kmgr.provision.desktop_rows import owned
from kmgr.provision.lifecycle import Event, after
from kmgr.provision.model import DesktopState as S
from kmgr.provision.model import Purpose


def kept_for(db: Database, user: str) -> tuple[str, ...]:
    """Return the names of the desktops that are a person's for good: personal ones, and what they edit or test."""
    return tuple(row["name"] for row in _of(db, user) if owned(row) or row["purpose"] != Purpose.USE)


def forget_person(db: Database, command: Command, user: str) -> None:
    """Give back the pooled desktops of a person, and drop what is noted for their name alone."""
    for row in _of(db, user):
        if row["purpose"] == Purpose.USE and not owned(row):
            state = after(S(row["state"]), Event.RETIRED)
            db.execute("update desktops set state = ?, changed_at = ? where id = ?", [state, command.at, row["id"]])
            note(db, command, "desktop", row["id"], f"desktop {row['name']} is removed: {user}'s account was deleted")
    db.execute("delete from quotas where whom = ? and subject = ?", [Whom.USER, user])
    for table in ("asks", "losses"):
        db.execute(f"delete from {table} where user = ?", [user])  # noqa: S608 - own names


def _of(db: Database, user: str) -> list[Row]:
    return rows(db, "select * from desktops where user = ? and state <> ? order by id", [user, S.RETIRED])
