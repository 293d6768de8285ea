"""The leader's duty of keeping pools filled and lost servers empty: look, plan, propose, forget.

A round reads one view, plans on it (`balancer.plan`, pure) and proposes the
changes one after the other. Each carries what the plan believed, so one that
comes too late is rejected and changes nothing; the next round looks again. A
round follows each change of the state, and at least one per second follows the
heartbeats. Between rounds only that is remembered which the state does not tell: who waits since when
(`patience`), whose loss was waited out (`fencing`), whose place is not taken again (`owed`).

After an election nothing is done about losses for a while (`calm_after_election_ms`):
a new leader has heard little yet. Refilling begins at once. Runs in the daemon's loop.
"""

import logging
from collections import Counter
from dataclasses import replace

from kmgr.balancer.alone import plan_alone
from kmgr.balancer.fencing import Fencing
from kmgr.balancer.model import (
    Action,
    Assign,
    DropCopy,
    Forget,
    ForgetCopy,
    GoOn,
    Place,
    Plan,
    PutAside,
    Relocate,
    Retire,
    View,
)
from kmgr.balancer.owed import Owed
from kmgr.balancer.patience import Patience
from kmgr.balancer.plan import plan
from kmgr.balancer.queries import look
from kmgr.clock import Clock
from kmgr.entropy import new_id
from kmgr.errors import KmgrError
from kmgr.grid.envelope import Outcome, Rejected
from kmgr.grid.leadership import Leading
from kmgr.grid.port import Grid, VitalsBoard
from kmgr.grid.queries import settings
from kmgr.ids import ServerId, TemplateId
from kmgr.provision.lease import TAKE_OVER_S
from kmgr.provision.model import Copy
from kmgr.provision.queries import asks, tenures
from kmgr.replica.protect import LOST_FOR_GOOD_S

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
# Between two rounds at least: many changes at once need one look, not one each.
BREATH_S = 0.1
# Changes of one round at most, so that a long plan does not go on with an old view.
MOST_PER_ROUND = 64
NOTHING = "nothing to do"


class Balancer:
    """Keeps desktops where they should be while this server leads; `run` is registered as a duty.

    On an island it leads itself, and keeps its own standbys.
    """

    def __init__(self, grid: Grid, board: VitalsBoard, *, clock: Clock) -> None:
        self._grid = grid
        self._board = board
        self._clock = clock
        self._told: dict[TemplateId, str] = {}
        self._patience = Patience()
        self._owed = Owed()
        self._fencing = Fencing(TAKE_OVER_S)
        self._rejected = 0

    async def run(self, leading: Leading) -> None:
        """Do rounds until cancelled."""
        while True:
            seen = self._grid.status().applied
            try:
                said = await self.run_once(leading)
                if said != NOTHING:
                    logger.info("the balancer did a round", extra={"did": said})
            except KmgrError as error:
                logger.info("a round of the balancer was cut short", extra={"cause": error.message})
                self._rejected = 1
            if self._rejected:
                # Its own rejected changes are no news: wait for somebody else's.
                seen = self._grid.status().applied
            await self._clock.sleep(BREATH_S)
            await self._grid.changed(seen, timeout_s=PERIOD_S)

    async def run_once(self, leading: Leading) -> str:
        """Do one round; return in one sentence what it did."""
        self._rejected = 0
        now = self._clock.monotonic()
        with self._grid.view() as db:
            view = look(db, self._board.all(), now, at_ms=self._clock.now_ms())
            asking = asks(db)
            calm_s = settings(db)["calm_after_election_ms"] / 1000
            kept = tenures(db)
        view = replace(
            view,
            fenced=self._fencing.fenced(view.servers, now, kept),
            given_up=frozenset(s.id for s in view.servers if self._fencing.lost_for(s, now) >= LOST_FOR_GOOD_S),
            owed=self._owed.now(),
        )
        if self._grid.status().island:
            decided = plan_alone(view, self._grid.server)
            # Here nobody can repeat a request, nor can one be dropped: the waiting begins anew with a majority.
            self._patience, over = Patience(), []
        else:
            decided = plan(view, calm=now - leading.since < calm_s)
            over = self._patience.over(asking, now)
        self._tell_shortages(decided, view)
        self._owed.keep(decided.short)
        done: Counter[str] = Counter()
        for ask in over:
            body = {"template": ask.template, "user": ask.user, "at": ask.at}
            await self._grid.propose("desktop.unask", body, by=self._grid.server)
            done["waits no longer"] += 1
        for action in decided.actions[:MOST_PER_ROUND]:
            outcome = await self._propose(action, view)
            if isinstance(outcome, Rejected):
                self._rejected += 1
                done["was rejected"] += 1
                logger.info(
                    "a change came too late", extra={"change": type(action).__name__, "cause": outcome.detail}
                )
            else:
                self._owed.done(action)
                done[_words(action, view)] += 1
        left = len(decided.actions) - MOST_PER_ROUND
        if left > 0:
            done["left for the next round"] = left
        return "; ".join(f"{count} {what}" for what, count in sorted(done.items())) or NOTHING

    async def _propose(self, action: Action, view: View) -> Outcome:
        by = self._grid.server
        match action:
            case Forget(desktop):
                return await self._grid.propose("desktop.forget", {"desktop": desktop}, by=by)
            case Retire(desktop, why):
                states = {server.id: server.state for server in view.servers}
                body = {
                    "desktop": desktop.id,
                    "why": why,
                    "generation": desktop.generation,
                    "state": desktop.state,
                    "server_state": states[desktop.server],
                }
                return await self._grid.propose("desktop.retire", body, by=by)
            case Place(template, version, server):
                body = {
                    "desktop": new_id("dsk"),
                    "template": template,
                    "version": version,
                    "server": server,
                }
                return await self._grid.propose("desktop.place", body, by=by)
            case Relocate(desktop, target, why):
                moved = {"server": desktop.server, "target": target, "why": why}
                body = {"desktop": desktop.id, "generation": desktop.generation, **moved}
                return await self._grid.propose("desktop.move", body, by=by)
            case Assign(desktop, server):
                body = {"desktop": desktop.id, "generation": desktop.generation, "server": server}
                return await self._grid.propose("copy.assign", body, by=by)
            case GoOn(desktop, target, lost_at):
                body = {
                    "desktop": desktop.id,
                    "generation": desktop.generation,
                    "server": desktop.server,
                    "lost_at": lost_at,
                    "target": target,
                }
                return await self._grid.propose("desktop.take_over", body, by=by)
            case PutAside(desktop, lost_at):
                body = {"desktop": desktop.id, "generation": desktop.generation, "server": desktop.server}
                return await self._grid.propose("desktop.put_aside", {**body, "lost_at": lost_at}, by=by)
            case DropCopy(copy):
                return await self._grid.propose("copy.drop", _key(copy), by=by)
            case ForgetCopy(copy):
                return await self._grid.propose("copy.dropped", _key(copy), by=by)

    def _tell_shortages(self, decided: Plan, view: View) -> None:
        """Log a shortage when it begins, changes its reason or ends; the overview shows it all the time."""
        names = {template.id: template.name for template in view.templates}
        short = {shortage.template: shortage.reason for shortage in decided.short}
        for template in sorted({*short, *self._told}):
            if short.get(template) != self._told.get(template):
                reason = short.get(template, "the shortage is over")
                extra = {"template": names.get(template, template), "cause": reason}
                logger.info("the refill of a template changed", extra=extra)
        self._told = short


def _words(action: Action, view: View) -> str:
    match action:
        case Forget():
            return "forgotten with its server"
        case Retire(_, why):
            return f"retired because {why}"
        case Place(_, _, server):
            return f"placed on {_name(server, view)}"
        case Relocate(_, target, why):
            return f"moves to {_name(target, view)} because {why}"
        case Assign(_, server):
            return f"to be copied to {_name(server, view)}"
        case GoOn(_, target, _):
            return f"goes on from its safe copy on {_name(target, view)}"
        case PutAside():
            return "goes on from a former disk"
        case DropCopy() | ForgetCopy():
            return "copy is not needed any more"


def _key(copy: Copy) -> dict[str, object]:
    return {"desktop": copy.desktop, "server": copy.server, "generation": copy.generation}


def _name(server: ServerId, view: View) -> str:
    return next((s.name for s in view.servers if s.id == server), server)
