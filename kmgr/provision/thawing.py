"""Asks guests to let their file systems go on until they say that they did (`stillness` says when and how).

What is owed is a file per desktop, `run/<desktop>.frozen`, written before the
guest is told to hold still: the next life of a killed daemon goes on asking. A
guest that moves while it runs takes the note with it, and is asked where it goes on.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from kmgr.clock import Clock
from kmgr.errors import KmgrError, NotFound
from kmgr.ids import DesktopId
from kmgr.provision import stillness
from kmgr.provision.stillness import Owed, Told

logger = logging.getLogger(__name__)

LOOK_S = 1.0


def mark_of(folder: Path, desktop: DesktopId) -> Path:
    """Return where it is noted that a guest is owed its thaw."""
    return folder / f"{desktop}.frozen"


def noted(folder: Path, desktop: DesktopId, *, now_ms: int) -> Owed | None:
    """Return what a guest is owed by its note; None if there is none. Blocks."""
    try:
        return stillness.parse(mark_of(folder, desktop).read_text(errors="replace"), now_ms=now_ms)
    except FileNotFoundError:
        return None


class Guests(Protocol):
    """The guests of this server, as far as letting their file systems go on is concerned."""

    async def thaw(self, desktop: DesktopId) -> Told:
        """Ask a guest's agent, for some seconds at most; `NotFound` if the guest does not run (any more)."""
        ...

    async def press(self, desktop: DesktopId) -> None:
        """Press the keys by which a kernel thaws without an agent."""
        ...


class Thaws:
    """What this server's guests are owed. `owe` may be called on any thread."""

    def __init__(self, guests: Guests, folder: Path, *, clock: Clock) -> None:
        self._guests = guests
        self._folder = folder
        self._clock = clock
        self._owed: dict[DesktopId, Owed] = {}

    def mark(self, desktop: DesktopId) -> Path:
        """Return where it is noted that a guest is owed its thaw."""
        return mark_of(self._folder, desktop)

    def owe(self, desktop: DesktopId) -> None:
        """Go on asking this guest, if its mark is still there."""
        owed = noted(self._folder, desktop, now_ms=self._clock.now_ms())
        if owed is None:
            self._owed.pop(desktop, None)
        elif desktop not in self._owed:
            self._owed[desktop] = replace(owed, due=self._clock.monotonic() + stillness.wait_s(1))

    def still(self) -> Mapping[DesktopId, int]:
        """Return of which desktops a person has to know that they stand still, and since when (ms)."""
        now = self._clock.now_ms()
        return {d: owed.since for d, owed in sorted(self._owed.items()) if stillness.stands_still(owed, now_ms=now)}

    async def recover(self) -> None:
        """Ask whoever an earlier life left, once; `run` asks on."""
        for mark in sorted(self._folder.glob("*.frozen")):
            self.owe(DesktopId(mark.stem))
        await asyncio.gather(*(self._ask(desktop) for desktop in tuple(self._owed)))

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await self._clock.sleep(LOOK_S)
            now = self._clock.monotonic()
            await asyncio.gather(*(self._ask(d) for d, owed in tuple(self._owed.items()) if owed.due <= now))

    async def _ask(self, desktop: DesktopId) -> None:
        owed = self._owed.get(desktop)
        if owed is None:
            return  # its agent has just answered somebody else
        try:
            if stillness.presses(owed):
                logger.info("the keys that thaw are pressed", extra={"desktop": desktop, "tries": owed.tries})
                await self._guests.press(desktop)
            told = await self._guests.thaw(desktop)
        except NotFound as error:
            self._settle(desktop, error.message)
            return
        except KmgrError as error:
            logger.info("a guest could not be asked to thaw", extra={"desktop": desktop, "cause": error.message})
            told = Told(False, owed.run, owed.writes)
        after = stillness.asked(owed, told, now=self._clock.monotonic())
        if after is None:
            self._settle(desktop, "it said so" if told.thawed else "it was started anew")
        elif desktop in self._owed:
            self._owed[desktop] = after

    def _settle(self, desktop: DesktopId, why: str) -> None:
        try:
            self.mark(desktop).unlink(missing_ok=True)
        except OSError as error:  # a later life asks once more, in vain
            logger.warning("a note of a thaw cannot be deleted", extra={"desktop": desktop, "cause": str(error)})
        if self._owed.pop(desktop, None) is not None:
            logger.info("a guest's file systems are not held any more", extra={"desktop": desktop, "cause": why})
