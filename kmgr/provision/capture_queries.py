"""Reads of versions that are to be made of desktops' disks: rows of the state → records."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from kmgr.grid.rows import rows, scalar
from kmgr.ids import DesktopId, ServerId, VersionId

WANTED, FAILED = "wanted", "failed"


@dataclass(frozen=True, slots=True)
class Capture:
    """A version that is to be made of a desktop's disk. `state` is wanted or failed; `step`, `cause`: why it failed.

    `how` says what becomes of version and desktop: publish, template, keep.
    """

    desktop: DesktopId
    generation: int
    server: ServerId
    version: VersionId
    image: str
    notes: str
    how: Mapping[str, Any]
    by: str
    at: int
    state: str
    step: str
    cause: str


def captures(db: Database, *, server: ServerId | None = None) -> tuple[Capture, ...]:
    """Return what is to be made, or could not be: everywhere or on one server, the oldest first."""
    sql = "select * from captures where ? is null or server = ? order by at, desktop"
    return tuple(Capture(**{**row, "how": json.loads(row["how"])}) for row in rows(db, sql, [server, server]))


def variables(db: Database, version: VersionId, firmware: str) -> str:
    """Return the firmware variables that a version's desktops begin with, packed; empty for the firmware's own."""
    sql = "select variables from version_variables where version = ? and firmware = ?"
    return str(scalar(db, sql, [version, firmware], default=""))
