"""Keeps the guard of this server's personal desktops alive (`provision.guard`), and says whether it is.

The guard is a process of its own, in a session of its own: it must live on when
this daemon is killed. It is begun when the first personal desktop is to run here.
"""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kmgr.clock import Clock
from kmgr.provision import guard

logger = logging.getLogger(__name__)

LOOK_S = 1.0
# A process of Python takes its time to begin; another one before that would only end at once.
_PATIENCE_S = 10.0


class Guarding:
    """`run()` looks after the guard until it is cancelled; `needed` tells whether there is anything to guard."""

    def __init__(self, data_dir: Path, uri: str, grid: str, *, needed: Callable[[], bool], clock: Clock) -> None:
        self._data_dir = data_dir
        self._command = (sys.executable, "-m", "kmgr.provision.guard", str(data_dir), uri, grid)
        self._needed = needed
        self._clock = clock
        self._alive = False
        self._begun_at = float("-inf")
        self._children: list[subprocess.Popen[bytes]] = []

    def guarded(self) -> bool:
        """Tell whether the guard lives, or nothing is to be guarded."""
        return self._alive or not self._needed()

    def told(self, until: float) -> None:
        """Tell the guard until when the lease goes."""
        guard.write_lease(guard.lease_path(self._data_dir), until)

    async def run(self) -> None:
        """Look once a second."""
        while True:
            await self.look()
            await self._clock.sleep(LOOK_S)

    async def look(self) -> None:
        """Begin a guard if one is needed and none lives."""
        self._children = [child for child in self._children if child.poll() is None]
        self._alive = await asyncio.to_thread(guard.is_locked, self._data_dir)
        now = self._clock.monotonic()
        if self._alive or not self._needed() or now - self._begun_at < _PATIENCE_S:
            return
        self._begun_at = now
        self._children.append(await asyncio.to_thread(self._begin))
        logger.info("the guard of the personal desktops was begun", extra={"pid": self._children[-1].pid})

    def _begin(self) -> "subprocess.Popen[bytes]":
        with (self._data_dir / "run" / "guard.log").open("wb") as out:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd="/",
            )
