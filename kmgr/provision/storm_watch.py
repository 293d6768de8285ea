"""Watches how hard this server is asked for and says how many desktops may be coming up at once (`storm`).

Memory only: after a restart of the daemon it begins with what is usual. Runs in the daemon's loop, the
measures are read in a thread.
"""

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import Unavailable
from kmgr.provision.storm import Boot, Boots, Bounds, Pace, Pressure, next_pace
from kmgr.provision.timely import Blocking

logger = logging.getLogger(__name__)

PERIOD_S = 2.0


class StormWatch:
    """`run()` looks every two seconds until it is cancelled; `limit` is how many at once by the last look."""

    def __init__(self, bounds: Bounds, read: Callable[[], Pressure], *, clock: Clock, blocking: Blocking) -> None:
        self._bounds = bounds
        self._read = read
        self._blocking = blocking
        self._clock = clock
        self._pace = Pace(bounds.usual)
        self._boots = Boots()
        self._pressure = Pressure()
        self._coming = self._most_coming = 0

    @property
    def limit(self) -> int:
        """How many desktops may be coming up at once."""
        return self._pace.limit

    def coming(self, now: int) -> None:
        """Note how many desktops are coming up now; a look takes the most that were since the one before."""
        self._coming = now
        self._most_coming = max(self._most_coming, now)

    def booted(self, kind: Hashable, took_s: float) -> None:
        """Note that a desktop got ready that was made from the beginning; what that says holds for the next one."""
        self._boots.note(Boot(kind, self._clock.monotonic() - took_s, took_s))
        self._judge()

    def vitals(self) -> Mapping[str, Any]:
        """Return what the heartbeat says: how many at once, at most ever, and why fewer than usual."""
        return {"builds": {"limit": self._pace.limit, "most": self._bounds.most, "why": self._pace.why}}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await self._clock.sleep(PERIOD_S)

    async def look(self) -> None:
        """Measure once."""
        try:
            self._pressure = await self._blocking(self._read)
        except Unavailable:  # the disk does not answer: then nothing is made here anyway
            self._pressure = Pressure()
        self._judge()
        self._most_coming = self._coming

    def _judge(self) -> None:
        before, now = self._pace, self._clock.monotonic()
        self._pace = next_pace(
            before, self._pressure, self._boots, coming=self._most_coming, now=now, bounds=self._bounds
        )
        if bool(self._pace.why) != bool(before.why):
            extra = {"at_once": self._pace.limit, "cause": self._pace.why or "it is quiet again"}
            logger.info("another number of desktops come up at once", extra=extra)
