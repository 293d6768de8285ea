"""The leader's duty of letting people and their desktops leave a draining server.

Looks, judges (`balancer.farewells`), proposes.

On an island nothing is decided. Runs in the daemon's loop.
"""

import logging
from collections.abc import Iterator

from kmgr.balancer.farewells import End, Farewells, Leave, Tell
from kmgr.balancer.queries import look
from kmgr.clock import Clock
from kmgr.grid.envelope import Rejected
from kmgr.grid.leadership import Leading
from kmgr.grid.model import ServerState, Vitals
from kmgr.grid.port import Grid, VitalsBoard
from kmgr.grid.queries import servers
from kmgr.ids import DesktopId
from kmgr.provision.drain_rows import leaving, notices
from kmgr.rounds import rounds

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
        await rounds(self.run_once, "a look at draining servers was cut short", every_s=PERIOD_S, clock=self._clock)

    async def run_once(self) -> int:
        """Do one round; return how many changes were applied."""
        if self._grid.status().island:
            return 0
        now = self._clock.monotonic()
        with self._grid.view() as db:
            draining = [one.id for one in servers(db) if one.state is ServerState.DRAINING]
            if not draining:  # nearly always: then nothing else is read
                return 0
            heard = self._board.all()
            view, given, told = look(db, heard, now), notices(db), leaving(db)
        left = {desktop for one in draining if one in heard for desktop in _left(heard[one])}
        done = 0
        for action in self._farewells.due(view, given, told, now=now, now_ms=self._clock.now_ms(), left=left):
            done += await self._carry_out(action)
        return done

    async def _carry_out(self, action: Tell | End | Leave) -> bool:
        desktop = action.desktop
        body: dict[str, object] = {"desktop": desktop.id, "generation": desktop.generation, "server": desktop.server}
        match action:
            case Tell():
                word = "drain.tell"
            case End(_, until):
                word, body = "drain.end", {**body, "until": until}
            case Leave(_, target, left):
                seen = {"connected_at": desktop.connected_at, "disconnected_at": desktop.disconnected_at}
                word, body = "drain.leave", {**body, "target": target, "left": left, **seen}
        outcome = await self._grid.propose(word, body, by=self._grid.server)
        extra = {"desktop": desktop.name, "user": desktop.user, "what": word}
        if isinstance(outcome, Rejected):
            logger.info("a word to somebody on a draining server came too late", extra=extra)
            return False
        logger.info("somebody has to leave a draining server", extra=extra)
        return True


def _left(vitals: Vitals) -> Iterator[DesktopId]:
    """Yield in which of its personal desktops nobody is logged on, as a server said."""
    told = vitals.extra.get("left")
    if isinstance(told, list):
        yield from (DesktopId(one) for one in told if isinstance(one, str))
