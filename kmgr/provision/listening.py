"""This server's ear: wakes the agent when something happens to a domain, and counts what guests do too often.

While events flow the agent looks at everything only now and then; when they do not,
it looks as often as it would without. A flood of events makes no flood of looks.
"""

import asyncio
import logging
from collections.abc import Collection

from kmgr.clock import Clock
from kmgr.errors import KmgrError
from kmgr.ids import DesktopId
from kmgr.provision.happening import Events, Happening, What

logger = logging.getLogger(__name__)

AGAIN_S = 5.0
# Between two looks that events ask for: one that a full disk halts at every step would ask for them on end.
GAP_S = 1.0
WINDOW_S = 300.0
# SeaBIOS that finds itself reset resets the machine once or twice more, 0.04-0.1 s later (measured with QEMU 7.2).
FIRMWARE_S = 1.0
# An update may well ask for two or three.
MOST_REBOOTS = 6
# So often an agent comes and goes within that time only if something else writes to its channel.
MOST_ANSWERS = 40
_MOST_COUNTED = 1_000
_REBOOTS = "it rebooted {} times within {} minutes"
_FLOODS = "its guest agent sends more than it was asked for: it came and went {} times within {} minutes"


class Listening:
    """What was heard. `run()` listens until it is cancelled. No `events`: nothing is ever heard."""

    def __init__(self, events: Events | None, *, clock: Clock) -> None:
        self._events = events
        self._clock = clock
        self.flows = False
        self._woken = asyncio.Event()
        self._looked_at = -GAP_S
        self._counted: dict[What, dict[DesktopId, list[float]]] = {What.REBOOTED: {}, What.ANSWERS: {}}

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

    def unruly(self, used: Collection[DesktopId]) -> dict[DesktopId, str]:
        """Say which guests may not go on like that, and why: `used` ones only if they cannot be worked with."""
        minutes = round(WINDOW_S / 60)
        floods = {
            desktop: _FLOODS.format(times, minutes)
            for desktop, times in self._lately(What.ANSWERS).items()
            if times >= MOST_ANSWERS and desktop not in used
        }
        return floods | {
            desktop: _REBOOTS.format(times, minutes)
            for desktop, times in self._lately(What.REBOOTED).items()
            if times >= MOST_REBOOTS
        }

    def forget(self, desktop: DesktopId) -> None:
        """Begin to count anew: the desktop was made anew, or is gone."""
        for counted in self._counted.values():
            counted.pop(desktop, None)

    def _lately(self, what: What) -> dict[DesktopId, int]:
        since = self._clock.monotonic() - WINDOW_S
        counted = self._counted[what]
        for desktop in [*counted]:
            counted[desktop] = [at for at in counted[desktop] if at > since][-_MOST_COUNTED:]
            if not counted[desktop]:
                del counted[desktop]
        return {desktop: len(times) for desktop, times in counted.items()}

    def _hear(self, happening: Happening) -> None:
        if happening.what is What.LISTENING:
            self.flows = True
            logger.info("events of the hypervisor flow")
        elif happening.what in self._counted and happening.desktop is not None:
            times, now = self._counted[happening.what].setdefault(happening.desktop, []), self._clock.monotonic()
            if happening.what is not What.REBOOTED or not times or now - times[-1] >= FIRMWARE_S:
                times.append(now)
                del times[:-_MOST_COUNTED]
        self._woken.set()
