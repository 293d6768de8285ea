"""What people lost with a server: a pooled desktop is made anew, and what was on it only is gone. They are told.

Written by a trigger (`schema`), whoever retires the desktop; gone when its user gives the next one back.
"""

from dataclasses import dataclass

from sqlite_utils import Database

from kmgr.grid.rows import rows
from kmgr.ids import AccountName, ServerId, TemplateId


@dataclass(frozen=True, slots=True)
class Loss:
    """A desktop of a template that a user had when its server was lost, and since when that was so (ms)."""

    user: AccountName
    template: TemplateId
    desktop: str
    server: ServerId
    at: int


def losses(db: Database, user: AccountName) -> tuple[Loss, ...]:
    """Return what a user lost, at most once per template."""
    found = rows(
        db,
        "select user, template, desktop, server, at from losses where user = ? order by template",
        [user],
    )
    return tuple(Loss(**row) for row in found)
