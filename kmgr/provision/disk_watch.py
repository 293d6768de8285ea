"""Watches the disks that desktops and images grow on, and raises the alarm before they are full (`growth`).

What guests' serial consoles take is bounded at each look (`console_logs`).
"""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import Unavailable
from kmgr.provision.console_logs import shorten
from kmgr.provision.growth import Growth, Level, Verdict, judge
from kmgr.replica.images import Images, Measure, room

logger = logging.getLogger(__name__)

PERIOD_S = 10.0


class DiskWatch:
    """`run()` looks every ten seconds until it is cancelled; `vitals()` says what it saw last."""

    def __init__(self, data_dir: Path, images: Images, clock: Clock, *, measure: Measure = room) -> None:
        self._desktops = data_dir / "desktops"
        self._images = images
        self._clock = clock
        self._measure = measure
        self._growth = Growth()
        self._problems: list[str] = []
        self._worst = Level.FINE

    def vitals(self) -> Mapping[str, Any]:
        """Return what this part adds to the heartbeat."""
        return {"problems": list(self._problems), "extra": {"desktops_grow_bytes_s": round(self._growth.rate())}}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except OSError as error:
                self._problems = [f"the disks of this server cannot be measured: {error.strerror or error}"]
            await self._clock.sleep(PERIOD_S)

    async def look(self) -> None:
        """Measure once, and log when it gets worse or better."""
        consoles = await asyncio.to_thread(shorten, self._desktops)
        self._growth.note(await asyncio.to_thread(_taken, self._desktops), now=self._clock.monotonic())
        found = [await asyncio.to_thread(self._verdict, "desktops", self._desktops, self._growth.rate())]
        if await asyncio.to_thread(self._apart):
            found.append(await asyncio.to_thread(self._verdict, "golden images", self._images.folder, 0.0))
        self._problems = [text for text in (*(one.text for one in found), consoles) if text]
        worst = max(one.level for one in found)
        if worst != self._worst:
            told = logger.warning if worst > self._worst else logger.info
            told(
                "the room on the disks changed",
                extra={"level": worst.name.lower(), "cause": "; ".join(self._problems)},
            )
            self._worst = worst

    def _verdict(self, what: str, folder: Path, rate: float) -> Verdict:
        left = self._measure(folder)
        return judge(
            f"{what} ({folder})",
            free_bytes=left.free_bytes,
            total_bytes=left.total_bytes,
            reserve_bytes=left.reserve_bytes,
            rate=rate,
        )

    def _apart(self) -> bool:
        try:
            self._images.room()
        except Unavailable:  # the disk is not there: the images' agent says so
            return False
        return self._images.folder.stat().st_dev != self._desktops.stat().st_dev


def _taken(folder: Path) -> int:
    """Return what the desktops' own disks take."""
    taken = 0
    for file in folder.iterdir():
        try:
            taken += file.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return taken
