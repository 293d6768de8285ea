"""Who has to leave a draining server, and by when: reads of the state, and what people are told of it."""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr.grid.rows import rows, scalar
from kmgr.grid.zone import local_time
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.model import Leaving
from kmgr.templates.model import Kind


def notices(db: Database) -> Mapping[ServerId, int]:
    """Return until when people were told to leave each draining server."""
    return {row["server"]: row["until"] for row in rows(db, "select * from drain_notices order by server")}


def leaving(db: Database) -> Mapping[DesktopId, Leaving]:
    """Return who has to leave."""
    return {row["desktop"]: Leaving(**row) for row in rows(db, "select * from leaving order by desktop")}


def farewell(db: Database, one: Leaving) -> str:
    """Say what happens to a desktop, when, and what its user can do."""
    at = local_time(db, one.until)
    when = f"at {at:%H:%M} ({at:%d %B}, {at:%Z})"
    out = "The server of this desktop is taken out of service"
    kind = scalar(db, "select kind from desktops where id = ?", [one.desktop], default=Kind.POOLED)
    if kind == Kind.PERSONAL:
        then = "the desktop is shut down and starts again on another server, with all that you saved by then"
        return f"{out}: {when} {then}. Once you have logged out in it, that is done at once."
    return f"{out}: the desktop ends {when}. Save your work. Log out and in again to go on on another server."
