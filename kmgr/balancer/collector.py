"""The leader's duty of deleting versions that nobody needs any more: look, decide (`replica.collect`), propose.

The log looks again when it applies each deletion (`version.collect`), so one that
comes too late changes nothing. On an island nothing is deleted. Runs in the daemon's loop.
"""

import logging

from kmgr.clock import Clock
from kmgr.grid.envelope import Rejected
from kmgr.grid.leadership import Leading
from kmgr.grid.port import Grid
from kmgr.grid.queries import settings
from kmgr.provision.uses import uses
from kmgr.replica.collect import collect
from kmgr.replica.queries import versions

logger = logging.getLogger(__name__)

PERIOD_S = 60.0


class Collector:
    """Deletes superfluous versions while this server leads; `run` is registered as a duty."""

    def __init__(self, grid: Grid, *, clock: Clock) -> None:
        self._grid = grid
        self._clock = clock

    async def run(self, leading: Leading) -> None:
        """Do rounds until cancelled. The first one waits: a new leader may not have applied everything yet."""
        while True:
            await self._clock.sleep(PERIOD_S)
            await self.run_once()

    async def run_once(self) -> int:
        """Do one round; return how many versions were deleted."""
        if self._grid.status().island:
            return 0
        with self._grid.view() as db:
            rules = settings(db)
            going = collect(
                versions(db),
                uses(db),
                keep_versions=rules["keep_versions"],
                keep_days=rules["keep_days"],
                now_ms=self._clock.now_ms(),
            )
        deleted = 0
        for version in going:
            outcome = await self._grid.propose("version.collect", {"version": version}, by=self._grid.server)
            if isinstance(outcome, Rejected):
                logger.info("a version stays after all", extra={"version": version, "cause": outcome.detail})
            else:
                deleted += 1
        return deleted
