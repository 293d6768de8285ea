"""Time as an argument: the only file that asks the machine what time it is.

`now_ms` is for stamps that people read, `monotonic` for ages and time-outs. No
decision compares two servers' wall clocks; only a person is told when they differ (`grid.skew`).
"""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What code that needs time is given."""

    def now_ms(self) -> int:
        """Return the wall clock in milliseconds since 1970, for stamps."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back, for ages and time-outs on this server."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of this clock."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        """Return the wall clock in milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return the machine's monotonic clock in seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep in the running loop."""
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that stands still until a test or a simulation moves it."""

    def __init__(self, *, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = 0

    def now_ms(self) -> int:
        """Return the start plus all time advanced so far, in milliseconds, and what it was set back or forward."""
        return self._now_ms + int(self._elapsed * 1000)

    def monotonic(self) -> float:
        """Return the seconds advanced so far."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has moved the clock by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        self._sleepers.append((self._elapsed + seconds, self._order, future))
        await future

    def set_back(self, seconds: float) -> None:
        """Set the wall clock back, or forward by a negative number, as a person or a time server does."""
        self._now_ms -= int(seconds * 1000)

    def skip(self, seconds: float) -> None:
        """Move time forward while nobody runs, as for a process that stood still: who was due wakes late, once."""
        self._elapsed += seconds

    async def advance(self, seconds: float, *, settle: int = 20) -> None:
        """Move time forward, waking sleepers in order; after each the loop turns `settle` times, or until idle."""
        target = self._elapsed + seconds
        while True:
            due = sorted(s for s in self._sleepers if s[0] <= target)
            if not due:
                break
            at, _, future = due[0]
            self._sleepers.remove(due[0])
            self._elapsed = max(self._elapsed, at)
            if not future.done():
                future.set_result(None)
            await until_idle(settle)
        self._elapsed = target
        await until_idle(settle)


# Turns without anything to do after which a loop is called idle: the first may come before what a socket or a thread
# has for it, which the next two look for.
_IDLE_TURNS = 3


async def until_idle(turns: int) -> None:
    """Return when the running loop has nothing left to do, or after `turns` of its turns.

    A loop that does not show what is ready in it is given all the turns.
    """
    ready = getattr(asyncio.get_running_loop(), "_ready", None)
    idle = 0
    for _ in range(turns):
        await asyncio.sleep(0)
        idle = idle + 1 if ready is not None and not ready else 0
        if idle == _IDLE_TURNS:
            return
