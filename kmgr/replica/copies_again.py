"""Reads the safe copies on this server again, a little at a time, so that a bad one is known before it is needed.

As with golden images (`replica.scrub`): at most `scrub_mib_s`, each copy once in
`scrub_days`, one after the other, after everybody else's work on the disk. A cycle
that updates the copy goes before. What went bad is told, and the copy is no
longer trusted: the next cycle compares all of it with the desktop's disk. When a
copy was read through is the time of its file `read`.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kmgr.clock import Clock
from kmgr.errors import KmgrError, NotFound, Unavailable
from kmgr.ids import DesktopId
from kmgr.replica.grains import GRAIN
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.scrub import Rules

logger = logging.getLogger(__name__)

IDLE_S = 30.0
# Grains in one stretch, 16 MiB: a cycle that comes meanwhile waits for no more.
STRETCH = 256
# One in which something was bad is read once more so much later.
AGAIN_S = 3600.0
_DAY_MS = 86_400_000
_READ = "read"


class Readable(Protocol):
    """The copies of this server, as far as they are read here."""

    async def held(self) -> Sequence[CopyPoint]:
        """Return the newest complete point of every copy."""
        ...

    async def verify_some(self, desktop: DesktopId, generation: int, first: int, most: int) -> tuple[int, int]:
        """Read at most so many grains from `first` on; return where to go on (0: it is through), how many are bad."""
        ...


@dataclass(slots=True)
class _Pass:
    key: tuple[DesktopId, int]
    next: int = 0
    bad: int = 0


class CopiesAgain:
    """This server's reader of its copies. `run()` goes on until it is cancelled; `step()` is one stretch of it."""

    def __init__(self, copies: Readable, *, folder: Path, rules: Callable[[], Rules], clock: Clock) -> None:
        self._copies = copies
        self._folder = folder
        self._rules = rules
        self._clock = clock
        self._pass: _Pass | None = None
        self._bad: dict[tuple[DesktopId, int], str] = {}

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            read = 0
            try:
                read = await self.step()
            except (KmgrError, OSError) as error:
                logger.debug("a copy is not read again now", extra={"cause": str(error)})
            await self._clock.sleep(read / (self._rules().mib_s << 20) if read else IDLE_S)

    def problems(self, names: Mapping[DesktopId, str]) -> tuple[str, ...]:
        """Return what a person should know, one sentence each."""
        return tuple(
            f"The safe copy of {names.get(desktop, desktop)} {bad} on this disk; it is compared with the desktop's "
            "disk again. Look after this disk: smartctl and dmesg tell more."
            for (desktop, _), bad in sorted(self._bad.items())
        )

    async def step(self) -> int:
        """Read one stretch; return how many bytes that may have been, 0 if nothing is due."""
        here = {(point.desktop, point.generation) for point in await self._copies.held()}
        self._bad = {key: bad for key, bad in self._bad.items() if key in here}
        if self._pass is None or self._pass.key not in here:
            self._pass = self._due(sorted(here))
        if self._pass is None:
            return 0
        try:
            after, bad = await self._copies.verify_some(*self._pass.key, self._pass.next, STRETCH)
        except NotFound:  # it went meanwhile
            self._pass = None
            return 0
        except Unavailable as error:
            if error.code != "damaged":
                raise
            # The next cycle makes it anew; the others' turn comes meanwhile.
            self._bad[self._pass.key] = "had lost a file, or its index was damaged,"
            self._pass.bad += 1
            self._through(self._pass)
            self._pass = None
            return 0
        self._pass.next, self._pass.bad = after, self._pass.bad + bad
        if bad:
            self._bad[self._pass.key] = f"had gone bad in {self._pass.bad} places of 64 KiB"
        if not after:
            self._through(self._pass)
            self._pass = None
        return STRETCH * GRAIN

    def _due(self, here: Sequence[tuple[DesktopId, int]]) -> _Pass | None:
        days = self._rules().days
        read_at = {key: self._read_at(key) for key in here}
        oldest = min(here, key=lambda key: (read_at[key], key), default=None)
        if oldest is None or not days or self._clock.now_ms() - read_at[oldest] < days * _DAY_MS:
            return None
        return _Pass(oldest)

    def _through(self, done: _Pass) -> None:
        now = self._clock.now_ms() / 1000
        if done.bad:
            # By then a cycle has compared all of it.
            now += AGAIN_S - self._rules().days * _DAY_MS / 1000
        else:
            self._bad.pop(done.key, None)
        mark = self._mark(done.key)
        mark.touch()
        os.utime(mark, (now, now))

    def _read_at(self, key: tuple[DesktopId, int]) -> int:
        try:
            at = round(self._mark(key).stat().st_mtime * 1000)
        except OSError:
            return 0
        # One from the future: the clock was set back, and nobody knows how long ago that is.
        return at if at <= self._clock.now_ms() + 1000 else 0

    def _mark(self, key: tuple[DesktopId, int]) -> Path:
        desktop, generation = key
        return self._folder / desktop / str(generation) / _READ
