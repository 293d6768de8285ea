"""The leader's duty of watching canaries and the dates of versions: look, judge (`templates.canary`), propose.

How long something goes on is counted from when this server first saw it: a new
leader begins to count anew, so a canary may pass or be stopped late, never early.
What failed is counted in the log. On an island nothing is decided. Runs in the daemon's loop.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kmgr.clock import Clock
from kmgr.grid.envelope import Rejected
from kmgr.grid.leadership import Leading
from kmgr.grid.port import Grid
from kmgr.ids import DesktopId
from kmgr.provision.model import Desktop, DesktopState, Purpose
from kmgr.provision.queries import desktops
from kmgr.rounds import rounds
from kmgr.templates.canary import Pass, Stop, judge
from kmgr.templates.version_queries import canaries, template_versions
from kmgr.templates.versions import Canary, Stand, TemplateVersion

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
_GOOD = (DesktopState.READY, DesktopState.IN_USE)

Change = tuple[str, Mapping[str, Any]]


class Canaries:
    """Lets canaries pass or stops them, and ends versions whose time is over; `run` is registered as a duty."""

    def __init__(self, grid: Grid, *, clock: Clock) -> None:
        self._grid = grid
        self._clock = clock
        self._begun: dict[tuple[str, str, int], float] = {}
        self._ready: dict[tuple[DesktopId, int], float] = {}

    async def run(self, leading: Leading) -> None:
        """Do rounds until cancelled."""
        self._begun, self._ready = {}, {}
        await rounds(self.run_once, "a look at the canaries was cut short", every_s=PERIOD_S, clock=self._clock)

    async def run_once(self) -> int:
        """Do one round; return how many changes were applied."""
        if self._grid.status().island:
            return 0
        with self._grid.view() as db:
            going = canaries(db)
            # What somebody edits or tests of that version tells nothing: it was asked for, and is looked after.
            every = tuple(d for d in desktops(db) if d.purpose is Purpose.USE) if going else ()
            versions = template_versions(db)
        changes = [*self._judged(going, every), *due(versions, self._clock.now_ms())]
        done = 0
        for command, body in changes:
            outcome = await self._grid.propose(command, body, by=self._grid.server)
            if isinstance(outcome, Rejected):
                logger.info("a verdict came too late", extra={"verdict": command, "cause": outcome.detail})
            else:
                done += 1
                logger.info("a template's version changed", extra={"verdict": command, **body})
        return done

    def _judged(self, going: Sequence[Canary], every: Sequence[Desktop]) -> Iterable[Change]:
        now = self._clock.monotonic()
        self._begun = {key: self._begun.get(key, now) for key in map(_key, going)}
        of_each = {
            canary.template: [d for d in every if (d.template, d.version) == (canary.template, canary.version)]
            for canary in going
        }
        good = {(d.id, d.generation): d for own in of_each.values() for d in own if d.state in _GOOD}
        self._ready = {key: self._ready.get(key, now) for key in good}
        for canary in going:
            own = [d for d in of_each[canary.template] if d.state is not DesktopState.RETIRED]
            ready_for = [now - self._ready[d.id, d.generation] for d in own if d.state in _GOOD]
            verdict = judge(canary, ready_for, made=len(own), waited_s=now - self._begun[_key(canary)])
            body = {"template": canary.template, "version": canary.version}
            match verdict:
                case Pass():
                    yield "template.canary_passed", body
                case Stop(step, cause):
                    yield "template.canary_stopped", {**body, "step": step, "cause": cause}
                case None:
                    continue


def due(versions: Iterable[TemplateVersion], now_ms: int) -> Iterable[Change]:
    """Yield what has to be said about versions whose dates have come."""
    for one in versions:
        if one.hard_at is not None and one.hard_at <= now_ms:
            stand = Stand.ENDED
        elif one.soft_at is not None and one.soft_at <= now_ms:
            stand = Stand.EXPIRED
        else:
            continue
        if one.stand in (Stand.PUBLISHED, Stand.CANARY) or (one.stand, stand) == (Stand.EXPIRED, Stand.ENDED):
            yield "template.expire", {"template": one.template, "version": one.version, "stand": str(stand)}


def _key(canary: Canary) -> tuple[str, str, int]:
    return (canary.template, canary.version, canary.at)
