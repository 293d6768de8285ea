"""Decide which pooled desktops are taken back from users who left them.

A user has left a desktop when no screen of it is open: they closed the window,
went home, or were idle for too long. Logging out is another matter (`users.sessions`).

Rule 1: nobody's desktop is taken while its screen is open, or while its server
cannot be asked. Rule 2: what somebody has just got is given time to be opened.
Rule 3: ages are the leader's own, from when it first saw a desktop as it is now: a
new leader takes back late, never early. Rule 4: a schedule takes what was claimed
before it was due last; whoever worked through that moment keeps theirs until they leave.

Pure.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from kmgr.ids import DesktopId, ServerId, TemplateId
from kmgr.provision.model import Desktop, DesktopState, Purpose
from kmgr.templates.calendar import last_due
from kmgr.templates.policy import Policy, Refresh

# Between getting a desktop and opening it, and between closing a page and opening it anew.
LEAST_S = 60.0

# A desktop as somebody left it: it changes when they come back.
Left: TypeAlias = tuple[DesktopId, int, str | None, int | None, int | None]


@dataclass(frozen=True, slots=True)
class Over:
    """A user's time with a desktop is over, and why in words."""

    desktop: Desktop
    why: str


def left(desktop: Desktop) -> Left:
    """Return what tells this absence from another one."""
    return desktop.id, desktop.generation, desktop.user, desktop.connected_at, desktop.disconnected_at


def takes_back(policy: Policy) -> bool:
    """Tell whether a template's desktops are taken back from those who left them at all."""
    return policy.keep_s is not None or policy.refresh is Refresh.SCHEDULE


def absences(desktops: Sequence[Desktop], running: Collection[ServerId]) -> Iterator[Desktop]:
    """Yield the pooled desktops of users who are not at them."""
    for desktop in desktops:
        in_use = desktop.state is DesktopState.IN_USE and not desktop.personal and desktop.purpose is Purpose.USE
        if in_use and not desktop.is_open and desktop.server in running:
            yield desktop


def over(
    absent: Sequence[Desktop],
    policies: Mapping[TemplateId, Policy],
    *,
    since: Mapping[Left, float],
    now: float,
    at: datetime,
) -> Iterator[Over]:
    """Yield whose time is over; `since` is the leader's clock, `at` the moment in the grid's time zone."""
    for desktop in sorted(absent, key=lambda d: d.id):
        policy = policies.get(desktop.template)
        age_s = now - since.get(left(desktop), now)
        if policy is None or age_s < LEAST_S:
            continue
        if policy.keep_s is not None and age_s >= policy.keep_s:
            yield Over(desktop, f"nobody came back to it for {_told(max(policy.keep_s, round(LEAST_S)))}")
        elif policy.refresh is Refresh.SCHEDULE and policy.schedule is not None:
            due = last_due(policy.schedule, at)
            if (desktop.claimed_at or 0) < due.timestamp() * 1000:
                yield Over(desktop, f"it is made anew on a schedule, which was due on {due:%Y-%m-%d at %H:%M}")


def _told(seconds: int) -> str:
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size} {unit}{'' if seconds == size else 's'}"
    return f"{seconds} seconds"
