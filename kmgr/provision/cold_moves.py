"""Shuts a personal desktop of this server down for good: in order, with all of it in its safe copy, its domain gone.

Rule 1: nothing of it may run when its copy is brought up to its end for the last time; so its domain
goes before, and what a start that was under way would still bring up goes with it. `provision.work`
begins none meanwhile.
Rule 2: its plug is pulled only after the moment that its user was told, when it did not shut down when
asked, and only by a server that may run it.
Rule 3: nothing is remembered. A daemon that was killed in the middle finds it running, halted, off or
without a domain, and goes on from there.

The log has the move (`drain.leave`), and `provision.moving` hands it over.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from kmgr.clock import Clock
from kmgr.errors import Conflict, KmgrError, NotFound, Unavailable
from kmgr.grid.port import Grid
from kmgr.ids import DesktopId, ServerId
from kmgr.provision import guest
from kmgr.provision.drain_rows import leaving
from kmgr.provision.hypervisor import DomainState, Hypervisor
from kmgr.provision.model import Desktop
from kmgr.replica.mirror import CopyPoint

logger = logging.getLogger(__name__)

SHUT_DOWN_S = 120.0
_ASK_AGAIN_S = 30.0
_LOOK_S = 1.0


class ColdMoves:
    """What shuts desktops down here.

    `last` brings the copy of one that is off up to its end (`Protection.last`); `may_run` as in `Moving`.
    """

    def __init__(
        self,
        grid: Grid,
        hypervisor: Hypervisor,
        last: Callable[[Desktop, ServerId], Awaitable[CopyPoint]],
        *,
        clock: Clock,
        may_run: Callable[[Desktop], bool],
    ) -> None:
        self._grid = grid
        self._hypervisor = hypervisor
        self._last = last
        self._clock = clock
        self._may_run = may_run

    async def end(self, desktop: Desktop, to: ServerId, check: Callable[[], None]) -> CopyPoint:
        """Return what the copy on `to` has when nothing of the desktop is left to run here: all of it.

        `check` raises once that is not wanted any more.
        """
        if await self._went_off(desktop, check):
            await self._last(desktop, to)  # the long part, while it could still be started as it is
            check()
        await self._hypervisor.remove(desktop.id)
        return await self._last(desktop, to)

    async def stay(self, desktop: Desktop) -> None:
        """Let it go on here; one whose domain is gone is given another one by the agent."""
        with suppress(NotFound):
            await self._hypervisor.start(desktop.id)

    async def _went_off(self, desktop: Desktop, check: Callable[[], None]) -> bool:
        """Wait until it is off; False if its plug may be pulled, raises if it does not go off otherwise."""
        until, ask_at = self._clock.monotonic() + SHUT_DOWN_S, 0.0
        while (state := await self._state(desktop.id)) not in (DomainState.OFF, None):
            check()
            now = self._clock.monotonic()
            if now >= until:
                if self._was_told(desktop) and self._may_run(desktop):
                    logger.warning("a desktop did not shut down and is cut off", extra={"desktop": desktop.name})
                    return False
                raise Unavailable(f"it did not shut down within {round(SHUT_DOWN_S)} s")
            if state is DomainState.PAUSED and self._may_run(desktop):
                await self._hypervisor.start(desktop.id)
            elif state is DomainState.RUNNING and now >= ask_at:
                if not ask_at:
                    await self._check_nobody(desktop)
                ask_at = now + _ASK_AGAIN_S
                await self._ask(desktop)
            await self._clock.sleep(_LOOK_S)
        check()
        return True

    async def _check_nobody(self, desktop: Desktop) -> None:
        """Raise if somebody has logged on since the leader heard that nobody is, unless their time is over."""
        if self._was_told(desktop):
            return
        try:
            users = await guest.logged_on(self._hypervisor, desktop.id)
        except KmgrError:  # it told so a moment ago
            return
        if users:
            raise Conflict("somebody has logged on in it")

    async def _ask(self, desktop: Desktop) -> None:
        try:
            await self._hypervisor.shut_down(desktop.id)
        except KmgrError as error:  # it is looked at again, whatever became of it
            logger.info("a desktop was not asked to shut down", extra={"cause": error.message})

    async def _state(self, desktop: DesktopId) -> DomainState | None:
        return next((one.state for one in await self._hypervisor.domains() if one.desktop == desktop), None)

    def _was_told(self, desktop: Desktop) -> bool:
        with self._grid.view() as db:
            told = leaving(db).get(desktop.id)
        return told is not None and told.generation == desktop.generation and told.until <= self._clock.now_ms()
