"""Making versions of desktops' disks: shut the guest down, copy the disk, bring it into the grid, tell the log.

A capture stands in the log until this server says how it ended; whatever cut an
attempt off, the next round begins it anew, and the version's id is the same. While
it stands, nobody else does anything with the desktop (`holds`). Runs in the daemon's loop.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from kmgr.clock import Clock
from kmgr.errors import KmgrError, OutcomeUnknown, Refused, Unavailable
from kmgr.grid.envelope import Rejected
from kmgr.grid.port import Grid
from kmgr.ids import DesktopId, VersionId
from kmgr.provision import disks, firmware
from kmgr.provision.capture_queries import WANTED, Capture, captures
from kmgr.provision.flatten import flatten
from kmgr.provision.hypervisor import DomainState, Hypervisor
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.queries import desktop as find_desktop
from kmgr.provision.steps import StepFailed
from kmgr.replica import manifest as m
from kmgr.replica.queries import version as find_version
from kmgr.templates.importer import Importer

logger = logging.getLogger(__name__)

PERIOD_S = 2.0
# How long a guest may take to shut down, and how often it is looked at.
SHUTDOWN_S = 180.0
_LOOK_S = 1.0
_CALL_S = 10.0
# Attempts that were cut off (no majority, no answer) before it is given up.
_MOST_TRIES = 5


class Capturing:
    """This server's maker of versions. `backing` finds a version's raw file; it may block."""

    def __init__(
        self,
        grid: Grid,
        hypervisor: Hypervisor,
        importer: Importer,
        *,
        clock: Clock,
        data_dir: Path,
        backing: Callable[[VersionId], Path | None],
    ) -> None:
        self._grid = grid
        self._hypervisor = hypervisor
        self._importer = importer
        self._clock = clock
        self._data_dir = data_dir
        self._backing = backing
        self._tries: dict[VersionId, int] = {}

    def holds(self) -> frozenset[DesktopId]:
        """Return the desktops of this server that are being captured: nothing is done about them."""
        return frozenset(one.desktop for one in self._wanted())

    async def run(self) -> None:
        """Make one version after the other until cancelled."""
        while True:
            try:
                await self.run_once()
            except KmgrError as error:
                logger.info("making versions of desktops was cut short", extra={"cause": error.message})
            except Exception:
                logger.exception("making a version of a desktop failed by a bug; it is tried again")
            await self._clock.sleep(PERIOD_S)

    async def run_once(self) -> int:
        """Make what is wanted now; return how many versions were made.

        Without a majority nothing is begun: none could be added, and guests would be shut down for it all the time.
        """
        status = self._grid.status()
        if status.island or not status.majority:
            return 0
        return sum([await self._attempt(one) for one in self._wanted()])

    async def _attempt(self, capture: Capture) -> bool:
        with self._grid.view() as db:
            desktop = find_desktop(db, capture.desktop)
        if desktop is None or desktop.state is not DesktopState.IN_USE:
            return False  # it was removed meanwhile, and the capture goes with it
        try:
            await self._make(capture, desktop)
        except StepFailed as failure:
            await self._give_up(capture, desktop, failure.step, failure.message)
            return False
        except (Unavailable, OutcomeUnknown) as error:
            logger.info("a version was not made yet", extra={"desktop": desktop.name, "cause": error.message})
            tries = self._tries[capture.version] = self._tries.get(capture.version, 0) + 1
            if tries >= _MOST_TRIES:
                await self._give_up(capture, desktop, "copy", error.message)
            return False
        logger.info("a version was made of a desktop", extra={"desktop": desktop.name, "version": capture.version})
        return True

    async def _make(self, capture: Capture, desktop: Desktop) -> None:
        with self._grid.view() as db:
            there = find_version(db, capture.version) is not None
        if not there:  # else an attempt before this one got so far
            await self._off(desktop)
            await self._copy(capture, desktop)
        kept = await asyncio.to_thread(firmware.packed, firmware.variables_path(self._data_dir, desktop.id))
        if capture.how["keep"]:
            await self._go_on(desktop)
        await self._report("desktop.captured", capture, **({"variables": kept} if kept else {}))

    async def _off(self, desktop: Desktop) -> None:
        """Shut the guest down, as from inside; raise `StepFailed` if it does not go off."""
        until, asked = self._clock.monotonic() + SHUTDOWN_S, False
        while await self._state(desktop) not in (DomainState.OFF, None):
            if not asked:
                asked = await self._ask_off(desktop)
            if self._clock.monotonic() >= until:
                raise StepFailed(
                    "shutdown",
                    f"the guest did not shut down within {round(SHUTDOWN_S)} s: does its agent answer? Shut it down "
                    "from inside and try again at once",
                )
            await self._clock.sleep(_LOOK_S)

    async def _ask_off(self, desktop: Desktop) -> bool:
        try:
            await self._hypervisor.agent(desktop.id, "guest-shutdown", {"mode": "powerdown"}, _CALL_S)
        except KmgrError:
            # A guest that goes down does not answer any more: look whether it does.
            return False
        return True

    async def _state(self, desktop: Desktop) -> DomainState | None:
        every = await self._hypervisor.domains()
        return next((one.state for one in every if one.desktop == desktop.id), None)

    async def _copy(self, capture: Capture, desktop: Desktop) -> None:
        base = self._backing(desktop.version)
        overlay = disks.overlay_path(self._data_dir, desktop.id)
        if base is None or not overlay.exists():
            raise StepFailed("copy", "its disk or its golden image is not on this server any more")

        def make(raw: Path, on_bytes: Callable[[int], None], stop: Callable[[], bool]) -> m.Manifest:
            return flatten(overlay, base, raw, on_bytes=on_bytes, stop=stop)

        bring = partial(self._importer.import_made, capture.version, make, size_bytes=base.stat().st_size)
        try:
            await bring(image_name=capture.image, notes=capture.notes, by=capture.by, source=desktop.name)
        except Refused as error:
            raise StepFailed("copy", error.message) from error
        except OSError as error:
            raise StepFailed("copy", f"{error.strerror or error}") from error
        except Unavailable as error:
            if error.code != "disk_full":
                raise
            raise StepFailed("copy", error.message) from error

    async def _go_on(self, desktop: Desktop) -> None:
        """Power it on again; the agent does it where this may not: a personal one needs its server's lease."""
        if not desktop.personal:
            with suppress(KmgrError):
                await self._hypervisor.start(desktop.id)

    async def _give_up(self, capture: Capture, desktop: Desktop, step: str, cause: str) -> None:
        await self._go_on(desktop)
        await self._report("desktop.capture_failed", capture, step=step, cause=cause)

    async def _report(self, command: str, capture: Capture, **more: str) -> None:
        body = {
            "desktop": capture.desktop,
            "generation": capture.generation,
            "server": self._grid.server,
            "version": capture.version,
            **more,
        }
        outcome = await self._grid.propose(command, body, by=self._grid.server)
        self._tries.pop(capture.version, None)
        if isinstance(outcome, Rejected):
            logger.info("a report came too late", extra={"desktop": capture.desktop, "cause": outcome.detail})

    def _wanted(self) -> tuple[Capture, ...]:
        with self._grid.view() as db:
            found = captures(db, server=self._grid.server)
        return tuple(one for one in found if one.state == WANTED)
