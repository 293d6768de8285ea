"""Halts this server's personal desktops when its lease has ended; what lets them go on is `reconcile`.

A look every quarter of a second, so that also what was being started when the
lease ended is found. The guard (`provision.guard`) does the same from another
process, should this one have died.
"""

import logging
from collections.abc import Callable

from kmgr.clock import Clock
from kmgr.errors import KmgrError
from kmgr.ids import DesktopId
from kmgr.provision.hypervisor import DomainState, Hypervisor

logger = logging.getLogger(__name__)

LOOK_S = 0.25
# What was being started when the lease ended has come by then; a hypervisor is not asked so often for hours.
QUIET_LOOKS, QUIET_S = 40, 2.0


class Halting:
    """Halts whatever runs without a lease. `run()` goes on until it is cancelled."""

    def __init__(self, hypervisor: Hypervisor, holds: Callable[[], bool], *, clock: Clock) -> None:
        self._hypervisor = hypervisor
        self._holds = holds
        self._clock = clock
        self.problem = ""

    async def run(self) -> None:
        """Watch until cancelled."""
        quiet = 0
        while True:
            if self._holds():
                quiet = 0
            else:
                halted = await self.halt()
                quiet = 0 if halted or self.problem else quiet + 1
            await self._clock.sleep(LOOK_S if quiet < QUIET_LOOKS else QUIET_S)

    async def halt(self) -> tuple[DesktopId, ...]:
        """Halt every personal desktop that runs; return them."""
        halted = []
        try:
            for domain in await self._hypervisor.domains():
                if domain.personal and domain.state is DomainState.RUNNING:
                    await self._hypervisor.suspend(domain.desktop)
                    halted.append(domain.desktop)
        except KmgrError as error:
            if not self.problem:
                logger.warning("personal desktops could not be halted", extra={"cause": error.message})
            self.problem = f"Personal desktops of this server may run without its lease: {error.message}"
        else:
            self.problem = ""
        if halted:
            logger.warning(
                "personal desktops are halted: this server's lease has ended", extra={"count": len(halted)}
            )
        return tuple(halted)
