"""Decide about a canary: how many desktops it gets, what they leave to the others, and whether it passed.

Rule 1: the present version goes on serving. The canary's desktops are beyond the
standbys; only where the maximum leaves no room for them do a few standbys make way, never the last one.
Rule 2: a canary's desktop that failed is not replaced: each shows once what the version is worth.
Rule 3: more failures than `tolerated` stop it, and so does impatience. What stops
it names step and cause. Nothing but the canary's own desktops goes then.
Rule 4: it passes when all of them, but for the tolerated failures, have been ready for as long as they are watched.

Failures are counted in the log (`Canary.failed`), ages by the clock of the server that judges, never from stamps of
others.

Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from kmgr.templates.model import Template
from kmgr.templates.versions import Canary

# One desktop in so many may fail for a reason that isn't the version's.
_TOLERANCE = 4
# What a canary asks for if nothing else is said.
WATCH_S, PATIENCE_S = 60, 900
LONGEST_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Pass:
    """All is well: the version becomes the default."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The version is stopped: which step failed and why, in words."""

    step: str
    cause: str


Verdict: TypeAlias = Pass | Stop | None


def size_of(template: Template, *, count: int = 0, percent: int = 0) -> int:
    """Return how many desktops a canary gets: a count, or a part of the standbys; at least one stays of the old."""
    wanted = count or -(-template.standby * percent // 100)
    return max(1, min(wanted, template.maximum - 1))


def tolerated(size: int) -> int:
    """Return how many of a canary's desktops may fail: none of a few, one in four of more."""
    return size // _TOLERANCE


def shares(template: Template, canary: Canary, *, used: int) -> tuple[Template, Template]:
    """Split a template in two while its canary goes on: the present version's part, and the canary's.

    `used` of the canary's desktops have a user: they are not made again, nor are those that failed.
    """
    size = min(canary.size, max(0, template.maximum - 1))
    present = replace(
        template, maximum=template.maximum - size, standby=min(template.standby, template.maximum - size)
    )
    # A template that is stopped for the failures of its present version tries the next one all the same.
    trial = replace(
        template,
        version=canary.version,
        standby=max(0, size - used - canary.failed),
        maximum=max(0, size - canary.failed),
        broken_cause="",
    )
    return present, trial


def judge(canary: Canary, ready_for: Sequence[float], *, made: int, waited_s: float) -> Verdict:
    """Tell whether a canary passed or has to be stopped; None: it goes on.

    `ready_for` are the seconds that each of its ready desktops is that, `made` how many there are at all,
    `waited_s` is how long the canary goes on.
    """
    may_fail = tolerated(canary.size)
    if canary.failed > may_fail:
        return Stop(canary.step, f"{_of(canary.failed, canary.size)} failed: {canary.cause}")
    if sum(seconds >= canary.watch_s for seconds in ready_for) >= canary.size - may_fail:
        return Pass()
    if waited_s > canary.patience_s + canary.watch_s:
        return Stop(*_impatience(canary, made=made, ready=len(ready_for)))
    return None


def _impatience(canary: Canary, *, made: int, ready: int) -> tuple[str, str]:
    if not made:
        return "placing", f"no server could make a desktop of it within {canary.patience_s} s: is there room?"
    return "guest", f"only {_of(ready, canary.size)} stayed ready, {canary.patience_s} s after the canary began"


def _of(count: int, size: int) -> str:
    return f"{count} of {size} desktops" if size > 1 else f"{count or 'none'} of one desktop"
