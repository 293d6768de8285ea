"""This server's ear: wakes the agent when something happens to a domain, and counts reboots.

While events flow the agent looks at everything only now and then; when they do not,
it looks as often as it would without. A flood of events makes no flood of looks.
"""

import asyncio
import logging

from kmgr.clock import Clock
from kmgr.errors import KmgrError
from kmgr.ids import DesktopId
from kmgr.provision.happening import Events, Happening, What

logger = logging.getLogger(__name__)

AGAIN_S = 5.0
# Between two looks that events ask for: one that a full disk halts at every step would ask for them on end.
GAP_S = 1.0
REBOOT_WINDOW_S = 300.0


class Listening:
    """What was heard. `run()` listens until it is cancelled. No `events`: nothing is ever heard."""

    def __init__(self, events: Events | None, *, clock: Clock) -> None:
        self._events = events
        self._clock = clock
        self.flows = False
        self._woken = asyncio.Event()
        self._looked_at = -GAP_S
        self._reboots: dict[DesktopId, list[float]] = {}

    async def run(self) -> None:
        """Listen, and begin anew whenever the connection breaks."""
        if self._events is None:
            return
        while True:
            try:
                async for happening in self._events.happenings():
                    self._hear(happening)
            except KmgrError as error:
                if self.flows:
                    logger.info("events of the hypervisor do not flow any more", extra={"cause": error.message})
            finally:
                self.flows = False
                self._woken.set()
            await self._clock.sleep(AGAIN_S)

    async def heard(self) -> None:
        """Return when something happened since the last look, but not too soon after it."""
        await self._woken.wait()
        early_s = self._looked_at + GAP_S - self._clock.monotonic()
        if early_s > 0:
            await self._clock.sleep(early_s)

    def looked(self) -> None:
        """Take note that a look begins: it sees all that was heard so far."""
        self._woken.clear()
        self._looked_at = self._clock.monotonic()

    def reboots(self) -> dict[DesktopId, int]:
        """Return how often which desktops rebooted of late."""
        since = self._clock.monotonic() - REBOOT_WINDOW_S
        recent = {desktop: [at for at in times if at > since] for desktop, times in self._reboots.items()}
        self._reboots = {desktop: times for desktop, times in recent.items() if times}
        return {desktop: len(times) for desktop, times in self._reboots.items()}

    def forget(self, desktop: DesktopId) -> None:
        """Begin to count anew: the desktop was made anew, or is gone."""
        self._reboots.pop(desktop, None)

    def _hear(self, happening: Happening) -> None:
        if happening.what is What.LISTENING:
            self.flows = True
            logger.info("events of the hypervisor flow")
        elif happening.what is What.REBOOTED and happening.desktop is not None:
            self._reboots.setdefault(happening.desktop, []).append(self._clock.monotonic())
        self._woken.set()
