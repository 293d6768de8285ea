"""The daemon's loops, kept alive: one that fails by a bug is logged and started again, never silently gone."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

from kmgr.clock import Clock
from kmgr.errors import InvariantBroken, KmgrError, Unavailable
from kmgr.grid.raft.worker import DiskTrouble

logger = logging.getLogger(__name__)

RESTART_S = 1.0
DAY_S = 86_400

Loop: TypeAlias = Callable[[], Awaitable[None]]


class Loops:
    """The loops of one daemon: `begin` starts one, `stop` ends all, in reverse order."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._fatal = asyncio.Event()
        self._left = asyncio.Event()
        self._reason = ""

    def begin(self, name: str, loop: Loop) -> None:
        """Run `loop` until `stop`; whenever it ends by an error it is started again after a second."""
        self._tasks[name] = asyncio.create_task(self._keep(name, loop), name=name)

    def fail(self, reason: str) -> None:
        """End this daemon because of a broken invariant (any thread; the first reason counts)."""
        self._reason = self._reason or reason
        with suppress(RuntimeError):  # the loop has ended: this daemon is stopping anyway
            self._loop.call_soon_threadsafe(self._fatal.set)

    def leave(self) -> None:
        """End this part of the daemon's life in order: what it was has ended (in the daemon's loop)."""
        self._left.set()

    async def until(self, stop: asyncio.Event) -> None:
        """Return when `stop` is set or something called `leave`; raise `InvariantBroken` if it called `fail`.

        A disk that is full or failing is no bug: that is `Unavailable`, and systemd tries again.
        """
        await either(stop, self._fatal, self._left)
        if self._fatal.is_set():
            if isinstance(self._reason, DiskTrouble):
                raise Unavailable(self._reason)
            raise InvariantBroken(self._reason)

    async def stop(self) -> None:
        """Cancel the loops, those that were begun last first, and wait for each."""
        for name in reversed(list(self._tasks)):
            task = self._tasks.pop(name)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep(self, name: str, loop: Loop) -> None:
        while True:
            try:
                await loop()
            except KmgrError as error:
                logger.warning("a part stopped and starts again", extra={"part": name, "cause": error.message})
            except Exception:
                logger.exception("a part failed by a bug and starts again: please report it", extra={"part": name})
            else:
                return
            await self._clock.sleep(RESTART_S)


async def every_day(deed: Callable[[], Awaitable[None]], *, clock: Clock) -> None:
    """Do something once a day, for as long as this daemon runs: months, with luck."""
    while True:
        await clock.sleep(DAY_S)
        await deed()


async def either(*events: asyncio.Event) -> None:
    """Return as soon as one of the events is set."""
    waiters = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
