"""Decide what happens at an open screen where nobody does anything, and which screens the log does not know of yet.

All ages are measured by the desktop's own server, whose display all input passes;
after a restart it starts anew: somebody is called idle late, never early.

Pure.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kmgr.ids import DesktopId
from kmgr.provision.model import Desktop, DesktopState
from kmgr.templates.policy import Policy

# A screen that is opened again so soon was never closed for the log: its page was loaded anew, the network blinked.
SETTLE_S = 10.0


class Idleness(StrEnum):
    """How an open screen stands with its template's idle rule."""

    NO_RULE = "no_rule"
    ACTIVE = "active"
    WARNED = "warned"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`left_s` until the rule acts, `again_s` until there may be something new to say; both 0 without a rule."""

    idleness: Idleness
    left_s: float = 0.0
    again_s: float = 0.0


def judge(policy: Policy, idle_s: float) -> Verdict:
    """Return how a screen stands at which nobody did anything for `idle_s` seconds."""
    if policy.idle_s is None:
        return Verdict(Idleness.NO_RULE)
    left_s = policy.idle_s - idle_s
    if left_s <= 0:
        return Verdict(Idleness.OVER)
    if left_s <= policy.idle_warning_s:
        return Verdict(Idleness.WARNED, left_s, left_s)
    return Verdict(Idleness.ACTIVE, left_s, left_s - policy.idle_warning_s)


def unreported(
    desktops: Sequence[Desktop], watched: Collection[DesktopId], gone_at: Mapping[DesktopId, float], now: float
) -> Iterator[tuple[str, Desktop]]:
    """Yield command and desktop of each change that the log does not know: an opening at once, a closing later.

    `desktops` are this server's; `gone_at` says since when nobody looks at one.
    """
    for desktop in sorted(desktops, key=lambda d: d.id):
        if desktop.state is not DesktopState.IN_USE:
            continue
        if desktop.id in watched and not desktop.is_open:
            yield "desktop.connected", desktop
        elif desktop.id not in watched and desktop.is_open and now - gone_at.get(desktop.id, now) >= SETTLE_S:
            yield "desktop.disconnected", desktop
