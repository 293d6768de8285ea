"""Whether a disk that desktops grow on will soon be full, and how that is said.

Three alarms, the worst one is told: less is left than imports and copies must leave
free (they wait already), less than a tenth, and: at the present growth it is full within two hours.

Pure: the time is an argument.
"""

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

SPAN_S = 600.0
SOON_S = 2 * 3600.0
# A shorter look at the growth says nothing: a boot writes much, then little.
_LEAST_S = 60.0
_MIB = 1 << 20
_LOW_MOST = 8 << 30


class Level(IntEnum):
    """How near a disk is to being full."""

    FINE = 0
    SOON = 1
    LOW = 2
    NEARLY_FULL = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said about a disk. `full_in_s` is None if it does not grow or that is not known."""

    level: Level
    text: str
    full_in_s: float | None


class Growth:
    """Remembers how much the desktops' own disks took over the last minutes."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def note(self, taken_bytes: int, *, now: float) -> None:
        """Hear how much they take now."""
        if self._marks and now < self._marks[-1][0]:
            self._marks.clear()
        self._marks.append((now, taken_bytes))
        while len(self._marks) > 2 and now - self._marks[1][0] >= SPAN_S:
            self._marks.popleft()

    def rate(self) -> float:
        """Return bytes per second; 0 while they shrink or that is not known."""
        if len(self._marks) < 2 or self._marks[-1][0] - self._marks[0][0] < _LEAST_S:
            return 0.0
        (since, first), (until, last) = self._marks[0], self._marks[-1]
        return max(0.0, (last - first) / (until - since))


def judge(where: str, *, free_bytes: int, total_bytes: int, reserve_bytes: int, rate: float) -> Verdict:
    """Say how a disk stands. `reserve_bytes` is what imports and copies leave free."""
    full_in_s = free_bytes / rate if rate > 0 else None
    growing = ""
    if full_in_s is not None and full_in_s < SOON_S:
        growing = f" At the present growth of the desktops it is full in {max(1, round(full_in_s / 60))} minutes."
    left = f"{free_bytes // _MIB} MiB of {total_bytes // _MIB} MiB are free"
    if free_bytes < reserve_bytes:
        return Verdict(
            Level.NEARLY_FULL,
            f"the disk of {where} is nearly full: {left}. Imports and copies of images wait; desktops go on until it "
            f"is full, and are halted then.{growing} Make room, or drain this server",
            full_in_s,
        )
    if free_bytes < min(total_bytes // 10, _LOW_MOST):
        return Verdict(
            Level.LOW, f"the disk of {where} is filling up: {left}.{growing} Make room before it is full", full_in_s
        )
    if growing:
        return Verdict(
            Level.SOON, f"the disk of {where} will soon be full: {left}.{growing} Make room, or drain this server",
            full_in_s,
        )  # fmt: skip
    return Verdict(Level.FINE, "", full_in_s)
