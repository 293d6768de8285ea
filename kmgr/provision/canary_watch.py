"""Asks the guests of canaries on this server again and again: one that fell silent after it was ready has failed.

A canary's desktops wait for nobody, so nobody else would notice. Only those are asked that are ready and running: one
that somebody uses is theirs, one that sleeps or was halted cannot answer. A hypervisor that does not answer tells
nothing about guests. Runs in the daemon's loop.
"""

import logging
from dataclasses import dataclass

from kmgr.clock import Clock
from kmgr.errors import Unavailable
from kmgr.grid.port import Grid
from kmgr.ids import DesktopId
from kmgr.provision.causes import counts, recognise
from kmgr.provision.hypervisor import DomainState, Hypervisor
from kmgr.provision.model import Desktop, DesktopState, Purpose
from kmgr.provision.queries import desktops
from kmgr.rounds import rounds
from kmgr.templates.version_queries import canaries

logger = logging.getLogger(__name__)

PERIOD_S = 5.0
# A busy server's guest may not answer once or twice.
SILENT_S = 30.0
_LOOKS = 3
_CAUSE = (
    "its guest agent answered when it had started, and has been silent for {:.0f} s since: does the guest still run, "
    "and is its agent kept going?"
)


@dataclass(frozen=True, slots=True)
class Silence:
    """Since when and for how many looks a guest has not answered."""

    since: float
    looks: int = 1

    def is_long(self, now: float) -> bool:
        """Tell whether that is no accident any more."""
        return self.looks >= _LOOKS and now - self.since >= SILENT_S


class CanaryWatch:
    """The watch over one server's canaries. `run()` goes on until it is cancelled."""

    def __init__(self, grid: Grid, hypervisor: Hypervisor, *, clock: Clock) -> None:
        self._grid = grid
        self._hypervisor = hypervisor
        self._clock = clock
        self._silent: dict[tuple[DesktopId, int], Silence] = {}

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        await rounds(
            self.run_once, "a look at the canaries' guests was cut short", every_s=PERIOD_S, clock=self._clock
        )

    async def run_once(self) -> None:
        """Ask each of them once, and report those that are silent for long."""
        asked = self._asked()
        if asked:
            found = {one.desktop: one.state for one in await self._hypervisor.domains()}
            asked = [one for one in asked if found.get(one.id) is DomainState.RUNNING]
        known, self._silent = self._silent, {}
        for desktop in asked:
            key, now = (desktop.id, desktop.generation), self._clock.monotonic()
            before = known.get(key)
            try:
                if await self._hypervisor.answers(desktop.id):
                    continue
            except Unavailable:
                if before is not None:
                    self._silent[key] = before
                continue
            silence = Silence(now) if before is None else Silence(before.since, before.looks + 1)
            self._silent[key] = silence
            if silence.is_long(now):
                await self._report(desktop, now - silence.since)

    def _asked(self) -> list[Desktop]:
        with self._grid.view() as db:
            tried = {(one.template, one.version) for one in canaries(db)}
            here = desktops(db, server=self._grid.server) if tried else ()
        return [
            one
            for one in here
            if (one.template, one.version) in tried and one.state is DesktopState.READY and one.purpose is Purpose.USE
        ]

    async def _report(self, desktop: Desktop, silent_s: float) -> None:
        cause = _CAUSE.format(silent_s)
        logger.warning("a canary's guest fell silent", extra={"desktop": desktop.name, "cause": cause})
        body = {"desktop": desktop.id, "generation": desktop.generation, "server": self._grid.server}
        trouble = recognise("guest", cause)
        why = {"step": "guest", "cause": cause, "trouble": trouble, "against": counts(trouble)}
        await self._grid.propose("desktop.failed", {**body, **why}, by=self._grid.server)
