"""A guest that was told to hold its file systems still, and has not said since that it lets them go on.

Its agent hangs, or died, between the two. Nothing but the guest itself can let
them go: it is asked again and again for as long as it runs. Twice the keys are
pressed by which a Linux kernel lets everything go without its agent (Alt, SysRq
and J; the guest's `kernel.sysrq` has to allow it: 64 among its bits).

A disk that is written again is the sign that its guest goes on; that its agent
has not said so is then no trouble for a person, but a reason to ask further.

Pure.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

# The third try, when it is not just slow, and once more when the agent has had half a minute.
_PRESSED = (2, 6)
_FIRST_S = 1.0
_MOST_S = 30.0
# Until then the user may wonder; from then on somebody has to know.
TOLD_S = 10.0
UNKNOWN = -1
CURE = (
    "It is asked on. If the desktop does not go on by itself, restart qemu-guest-agent in it or press Alt+SysRq+J on "
    "its screen; if nothing helps, reset it: what its programs had saved is on its disk."
)


@dataclass(frozen=True, slots=True)
class Owed:
    """What is owed to one guest: `since` when (ms), in which `run` of its domain (0: not known).

    `tries` is how often it was asked in this life of the daemon, `due` when it is asked next (monotonic seconds),
    `writes` how often its disk had been written to at the last try, `going` that it was written to between two.
    """

    since: int
    run: int
    tries: int = 0
    writes: int = UNKNOWN
    due: float = 0.0
    going: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """What asking a guest brought: whether it said that it `thawed`; its domain's `run` (`UNKNOWN`: it is off)."""

    thawed: bool
    run: int
    writes: int


def spell(owed: Owed) -> str:
    """Return what the next life of the daemon has to know."""
    return json.dumps({"since": owed.since, "run": owed.run})


def parse(text: str, *, now_ms: int) -> Owed:
    """Return what an earlier life noted; of a note that was cut short, that something is owed."""
    try:
        told: Any = json.loads(text)
        return Owed(int(told["since"]), int(told["run"]))
    except (ValueError, TypeError, KeyError):
        return Owed(now_ms, 0)


def asked(owed: Owed, told: Told, *, now: float) -> Owed | None:
    """Return what is still owed after a guest was asked; None if it thawed, or is another run of its domain."""
    if told.thawed or told.run == UNKNOWN or (owed.run and told.run != owed.run):
        return None
    tries = owed.tries + 1
    going = owed.going or UNKNOWN < owed.writes < told.writes
    return replace(owed, tries=tries, due=now + wait_s(tries), writes=told.writes, going=going)


def wait_s(tries: int) -> float:
    """Return how long to wait after so many tries."""
    return float(min(_MOST_S, _FIRST_S * 2 ** min(tries - 1, 10)))


def presses(owed: Owed) -> bool:
    """Tell whether the keys are pressed before the guest is asked the next time."""
    return owed.tries in _PRESSED and not owed.going


def stands_still(owed: Owed, *, now_ms: int) -> bool:
    """Tell whether a person has to know."""
    return not owed.going and now_ms - owed.since >= TOLD_S * 1000


def sentence(name: str, seconds: int) -> str:
    """Return what a person is told of a desktop whose guest stands still."""
    return (
        f"The file systems of desktop {name} have stood still for {seconds} s: its guest agent was asked to hold "
        f"them for a safe copy and has not answered since. {CURE}"
    )
