"""The leader's duty of taking back pooled desktops that their users left: look, decide (`users.over`), propose.

Each change carries what was believed of the absence, so whoever comes back in that
moment keeps their desktop. On an island nothing is taken from anybody: others may be
at work where this server cannot see it.
"""

import logging

from kmgr.clock import Clock
from kmgr.grid.envelope import Rejected
from kmgr.grid.leadership import Leading
from kmgr.grid.model import RUNNING
from kmgr.grid.port import Grid
from kmgr.grid.queries import servers
from kmgr.grid.zone import local_time
from kmgr.provision.queries import left_alone
from kmgr.rounds import rounds
from kmgr.templates.queries import templates
from kmgr.users.over import Left, Over, absences, left, over, takes_back

logger = logging.getLogger(__name__)

PERIOD_S = 5.0


class TakingBack:
    """Takes back what was left while this server leads; `run` is registered as a duty."""

    def __init__(self, grid: Grid, *, clock: Clock) -> None:
        self._grid = grid
        self._clock = clock
        self._since: dict[Left, float] = {}

    async def run(self, _: Leading) -> None:
        """Look every few seconds until cancelled."""
        self._since = {}
        await rounds(self.run_once, "left desktops could not be taken back now", every_s=PERIOD_S, clock=self._clock)

    async def run_once(self) -> tuple[Over, ...]:
        """Do one round; return whose time is over."""
        if self._grid.status().island:
            self._since = {}
            return ()
        now = self._clock.monotonic()
        with self._grid.view() as db:
            policies = {template.id: template.policy for template in templates(db) if takes_back(template.policy)}
            running = {server.id for server in servers(db) if server.state in RUNNING}
            absent = tuple(absences(left_alone(db), running)) if policies else ()
            at = local_time(db, self._clock.now_ms())
        self._since = {left(desktop): self._since.get(left(desktop), now) for desktop in absent}
        found = tuple(over(absent, policies, since=self._since, now=now, at=at))
        for one in found:
            await self._propose(one)
        return found

    async def _propose(self, one: Over) -> None:
        desktop = one.desktop
        body = {
            "desktop": desktop.id,
            "user": desktop.user,
            "generation": desktop.generation,
            "connected_at": desktop.connected_at,
            "disconnected_at": desktop.disconnected_at,
            "why": one.why,
        }
        outcome = await self._grid.propose("desktop.over", body, by=self._grid.server)
        extra = {"desktop": desktop.name, "user": desktop.user, "why": one.why}
        if isinstance(outcome, Rejected):
            logger.info("a left desktop is kept after all", extra={**extra, "cause": outcome.detail})
        else:
            logger.info("a left desktop is taken back", extra=extra)
