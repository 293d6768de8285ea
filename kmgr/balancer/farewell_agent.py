"""The leader's duty of letting people leave a draining server: look, judge (`balancer.farewells`), propose.

On an island nothing is decided. Runs in the daemon's loop.
"""

import logging

from kmgr.balancer.farewells import End, Farewells, Tell
from kmgr.balancer.queries import look
from kmgr.clock import Clock
from kmgr.errors import KmgrError
from kmgr.grid.envelope import Rejected
from kmgr.grid.leadership import Leading
from kmgr.grid.port import Grid, VitalsBoard
from kmgr.provision.drain_rows import leaving, notices

logger = logging.getLogger(__name__)

PERIOD_S = 1.0


class FarewellAgent:
    """Tells people to leave, and ends what is over; `run` is registered as a duty."""

    def __init__(self, grid: Grid, board: VitalsBoard, *, clock: Clock) -> None:
        self._grid = grid
        self._board = board
        self._clock = clock
        self._farewells = Farewells()

    async def run(self, leading: Leading) -> None:
        """Do rounds until cancelled."""
        self._farewells = Farewells()
        while True:
            try:
                await self.run_once()
            except KmgrError as error:
                logger.info("a look at draining servers was cut short", extra={"cause": error.message})
            await self._clock.sleep(PERIOD_S)

    async def run_once(self) -> int:
        """Do one round; return how many changes were applied."""
        if self._grid.status().island:
            return 0
        now = self._clock.monotonic()
        with self._grid.view() as db:
            given = notices(db)
            if not given:  # nearly always: then nothing else is read
                return 0
            view, told = look(db, self._board.all(), now), leaving(db)
        done = 0
        for action in self._farewells.due(view, given, told, now=now, now_ms=self._clock.now_ms()):
            done += await self._carry_out(action)
        return done

    async def _carry_out(self, action: Tell | End) -> bool:
        desktop = action.desktop
        body: dict[str, object] = {"desktop": desktop.id, "generation": desktop.generation, "server": desktop.server}
        if isinstance(action, End):
            body["until"] = action.until
        word = "drain.end" if isinstance(action, End) else "drain.tell"
        outcome = await self._grid.propose(word, body, by=self._grid.server)
        extra = {"desktop": desktop.name, "user": desktop.user, "what": word}
        if isinstance(outcome, Rejected):
            logger.info("a word to somebody on a draining server came too late", extra=extra)
            return False
        logger.info("somebody has to leave a draining server", extra=extra)
        return True
