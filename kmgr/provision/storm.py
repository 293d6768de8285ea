"""Decide how many desktops may be coming up at once on a server, from what is measured on it.

More boots at once are quicker until processors or disks are the narrow place; from
there each only makes all the others later, and slows down whoever works. Where that
is, depends on disks, images and on what people do: so it is found out, as a sender
finds out how much a network takes (additive increase, multiplicative decrease: Chiu
and Jain, *Analysis of the Increase and Decrease Algorithms for Congestion Avoidance*,
1989). A boot that takes much longer than the quickest of its kind is the earliest
sign, as a late answer is in TCP Vegas (Brakmo and Peterson, 1995); the kernel's
pressure (`/proc/pressure`) and the time a disk takes for a request are the others.

Rule 1: never fewer than one, never more than `most`.
Rule 2: a sign of strain makes it fewer, at most once in `HOLD_S`: what was begun before goes on, and the
measures look ten seconds back. Boots that were begun before the last cut tell nothing about what came of it.
Rule 3: with no such sign it grows to what is usual, beyond only while all places are taken; while desktops come up
the next step waits until it was seen how long one takes since the last.
Rule 4: processors alone do not bring it below a quarter of theirs: shared they are slower, but lose nothing.
Rule 5: if nothing is known of the strain, it is what is usual.

Pure.
"""

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from statistics import median

# At most one cut in this time, one step up in that.
HOLD_S = 10.0
GROW_S = 4.0
# Steps from nothing to `most`.
_STEPS = 8
# The boots that are judged: as many, begun within this time.
JUDGED = 5
_JUDGED_S = 300.0
# For so long, and for so many kinds, it is remembered how quick the quickest was.
_BEST_S = 86_400.0
_KINDS = 64
# A boot is never judged by less: a guest's agent is asked every half second.
_LEAST_BOOT_S = 2.0


@dataclass(frozen=True, slots=True)
class Pressure:
    """How hard processors and disks are asked for; None: this machine does not tell.

    `cpu_percent` of the last ten seconds some thread waited for a processor, `io_percent` of them nothing went
    on but waiting for disks; `disk_ms` is what a request took on the disk that the desktops lie on.
    """

    cpu_percent: float | None = None
    io_percent: float | None = None
    disk_ms: float | None = None

    @property
    def known(self) -> bool:
        """True if anything is known."""
        return (self.cpu_percent, self.io_percent, self.disk_ms) != (None, None, None)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Never more than `most`; `usual` is what it begins with and grows back to. `cpus`: the server's processors."""

    usual: int
    most: int
    cpus: int

    @property
    def least_by_cpu(self) -> int:
        """What busy processors alone leave."""
        return max(1, min(self.cpus // 4, self.usual))


@dataclass(frozen=True, slots=True)
class Boot:
    """A desktop that got ready: of which kind (only like is compared with like), begun when, after how long."""

    kind: Hashable
    begun_at: float
    took_s: float


class Boots:
    """The last desktops that got ready, and the quickest of each kind in a day."""

    def __init__(self, boots: Iterable[Boot] = ()) -> None:
        self._last: deque[Boot] = deque(maxlen=JUDGED)
        self._best: dict[Hashable, Boot] = {}
        for boot in boots:
            self.note(boot)

    def note(self, boot: Boot) -> None:
        """Take one that has just got ready."""
        self._last.append(boot)
        best = self._best.pop(boot.kind, boot)
        old = boot.begun_at - best.begun_at > _BEST_S
        self._best[boot.kind] = boot if old or boot.took_s < best.took_s else best  # the latest kind comes last
        if len(self._best) > _KINDS:
            del self._best[next(iter(self._best))]

    def slowness(self, since: float) -> float | None:
        """Return how many times as long as the quickest of their kind those took that were begun `since` then."""
        judged = [boot for boot in self._last if boot.begun_at >= since]
        if not judged:
            return None
        return median(max(1.0, boot.took_s / max(_LEAST_BOOT_S, self._best[boot.kind].took_s)) for boot in judged)


@dataclass(frozen=True, slots=True)
class Pace:
    """How many at once now, and why fewer than usual (empty if not)."""

    limit: int
    why: str = ""
    cut_at: float = float("-inf")
    grown_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class _Strain:
    """A measure with the point from which it makes it fewer, and the one above which it does not grow."""

    cut_from: float
    grows_below: float


_CPU = _Strain(90.0, 75.0)
_IO = _Strain(20.0, 10.0)
_DISK = _Strain(60.0, 30.0)
_SLOW = _Strain(2.0, 1.6)
_MUCH_TOO_SLOW = _Strain(4.0, 4.0)


def bounds_of(cpus: int, asked: int = 0) -> Bounds:
    """Return the bounds of a server: as many as its configuration says (`asked`), or by its processors.

    A booting guest keeps one processor busy; one more overlaps their waiting.
    """
    if asked:
        return Bounds(asked, asked, cpus)
    return Bounds(cpus + 1, max(4, 2 * cpus), cpus)


def next_pace(before: Pace, pressure: Pressure, boots: Boots, *, coming: int, now: float, bounds: Bounds) -> Pace:
    """Return the pace from now on; `coming` are the desktops that are coming up at this moment."""
    if not pressure.known:
        return Pace(bounds.usual)
    slow = boots.slowness(max(before.cut_at, now - _JUDGED_S))
    disks = _above(pressure.io_percent, _IO) or _above(pressure.disk_ms, _DISK)
    late = _above(slow, _SLOW)
    if disks or late or _above(pressure.cpu_percent, _CPU):
        why, least = _reason(pressure, slow), 1 if disks or late else bounds.least_by_cpu
        part = 2 if disks or _above(slow, _MUCH_TOO_SLOW) else 4 if late else 8
        return _told(_cut(before, why, part, least=least, coming=coming, now=now), bounds)
    measures = ((pressure.cpu_percent, _CPU), (pressure.io_percent, _IO), (pressure.disk_ms, _DISK), (slow, _SLOW))
    if any(value is not None and value >= strain.grows_below for value, strain in measures):
        return _told(before, bounds)
    seen = boots.slowness(max(before.cut_at, before.grown_at)) is not None
    return _told(_grown(before, coming, now, bounds, seen=seen), bounds)


def _cut(before: Pace, why: str, part: int, *, least: int, coming: int, now: float) -> Pace:
    """Take a `part` away from what is really coming up: 2 is a half; not below `least`."""
    if now - before.cut_at < HOLD_S or before.limit <= least:
        return replace(before, why=why)
    base = min(before.limit, coming) or before.limit
    return Pace(max(least, min(before.limit - 1, base - max(1, base // part))), why, now, before.grown_at)


def _grown(before: Pace, coming: int, now: float, bounds: Bounds, *, seen: bool) -> Pace:
    """Grow a step, while desktops come up only if it is `seen` what the last step did."""
    if now - before.grown_at < GROW_S or now - before.cut_at < HOLD_S or (coming and not seen):
        return before
    beyond = seen and coming >= before.limit
    ceiling = bounds.most if beyond else max(bounds.usual, before.limit)
    more = min(ceiling, before.limit + max(1, bounds.most // _STEPS))
    return before if more == before.limit else replace(before, limit=more, grown_at=now)


def _told(pace: Pace, bounds: Bounds) -> Pace:
    limit = min(bounds.most, max(1, pace.limit))
    return replace(pace, limit=limit, why=pace.why if limit < bounds.usual else "")


def _reason(pressure: Pressure, slow: float | None) -> str:
    if _above(pressure.io_percent, _IO):
        return f"its disks were busy ({pressure.io_percent:.0f} % of the time nothing went on but waiting for them)"
    if _above(pressure.disk_ms, _DISK):
        return f"its disks were busy (a request takes {pressure.disk_ms:.0f} ms)"
    if _above(slow, _SLOW):
        return f"desktops came up {slow:.1f} times as slowly as when it is quiet"
    # Waiting is not use: beside "22 %" on the same page this would look like an error without the last words.
    waited = f"{pressure.cpu_percent:.0f} % of the time somebody waited for one, however little all of them did"
    return f"its processors were busy ({waited})"


def _above(value: float | None, strain: _Strain) -> bool:
    return value is not None and value >= strain.cut_from
