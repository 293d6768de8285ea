"""The grid's time zone: in which calendars and schedules are meant.

The log checks the form of its name only: which zones a server knows depends on
its packages, and every server must judge an entry alike. Whoever proposes one
has checked that it exists.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from sqlite_utils import Database

from kmgr.errors import Refused
from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.rows import scalar

USUAL = "UTC"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")


def zone_name(db: Database) -> str:
    """Return the name of the grid's time zone."""
    return str(scalar(db, "select name from time_zone where id = 1", default=USUAL))


def local_time(db: Database, at_ms: int) -> datetime:
    """Return a moment in the grid's time zone; in UTC where this server does not know that zone."""
    return datetime.fromtimestamp(at_ms / 1000, zone_of(zone_name(db)) or UTC)


@lru_cache(maxsize=16)
def zone_of(name: str) -> tzinfo | None:
    """Return a time zone by its name, None if this server does not know it."""
    try:
        return ZoneInfo(name) if _NAME.fullmatch(name) else None
    except (OSError, ValueError, KeyError):
        return None


def check_zone(name: str) -> str:
    """Return the name if this server knows the time zone; raise `Refused` otherwise."""
    if zone_of(name.strip()) is None:
        raise Refused(f"there is no time zone {name!r}: give its name like Europe/Berlin, or UTC")
    return name.strip()


def set_zone(db: Database, command: Command) -> Outcome:
    """Choose the grid's time zone. body: zone."""
    name = command.body["zone"]
    if not isinstance(name, str) or len(name) > 64 or not _NAME.fullmatch(name):
        return Rejected("refused", f"{name!r} is no name of a time zone: give one like Europe/Berlin, or UTC")
    before = zone_name(db)
    if name != before:
        db.execute(
            "insert into time_zone (id, name) values (1, ?) on conflict (id) do update set name = excluded.name",
            [name],
        )
        note(db, command, "setting", "time_zone", f"the grid's time zone changed from {before} to {name}")
    return Applied({"before": before})


APPLIERS: Mapping[str, Applier] = {"grid.zone": set_zone}
