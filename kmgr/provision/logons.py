"""Sees users log off inside their desktops, where the guest agent can tell: a desktop made anew at log-out goes then.

Of a personal desktop, on a server that drains, it is only told (in the heartbeat) that nobody is logged on in it.

Rule 1: only a guest that told of somebody and then, twice, of nobody was left.
Rule 2: an agent that does not answer tells nothing, and what was known is
forgotten: a guest that boots again has nobody logged on. Rule 3: one that does not
answer is asked less and less often.

Runs in the daemon's loop.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import KmgrError
from kmgr.grid.envelope import Rejected
from kmgr.grid.model import ServerState
from kmgr.grid.port import Grid
from kmgr.grid.queries import server
from kmgr.ids import DesktopId
from kmgr.provision import guest
from kmgr.provision.hypervisor import Hypervisor
from kmgr.provision.model import Desktop, DesktopState, Purpose
from kmgr.provision.queries import desktops
from kmgr.rounds import rounds
from kmgr.templates.policy import Refresh
from kmgr.templates.queries import templates

logger = logging.getLogger(__name__)

PERIOD_S = 5.0
LOOK_S = 10.0
MOST_S = 300.0
AT_ONCE = 8
# Looks in a row with nobody after which somebody has logged off: a session may end and another one begin.
_NOBODY = 2


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one guest: was somebody logged on, since how many looks nobody is, when to look next."""

    generation: int
    somebody: bool = False
    nobody: int = 0
    silent: int = 0
    next_at: float = 0.0

    @property
    def was_left(self) -> bool:
        """True once somebody was there and logged off."""
        return self.somebody and self.is_empty

    @property
    def is_empty(self) -> bool:
        """True while surely nobody is logged on."""
        return self.nobody >= _NOBODY


def after_look(seen: Seen, users: frozenset[str] | None, now: float) -> Seen:
    """Return what is known after a look; `users` is None if the agent told nothing."""
    if users is None:
        wait_s = min(MOST_S, LOOK_S * 2.0 ** min(seen.silent, 10))
        return Seen(seen.generation, silent=seen.silent + 1, next_at=now + wait_s)
    if users:
        return Seen(seen.generation, somebody=True, next_at=now + LOOK_S)
    return replace(seen, nobody=seen.nobody + 1, silent=0, next_at=now + LOOK_S)


class LogOns:
    """Watches the guests of this server's used desktops. `run()` goes on until it is cancelled."""

    def __init__(self, grid: Grid, hypervisor: Hypervisor, *, clock: Clock) -> None:
        self._grid = grid
        self._hypervisor = hypervisor
        self._clock = clock
        self._seen: dict[DesktopId, Seen] = {}
        self._leaving: frozenset[DesktopId] = frozenset()

    def vitals(self) -> Mapping[str, Any]:
        """Return what this part adds to the heartbeat: the personal desktops that can leave this draining server."""
        return {"extra": {"left": sorted(one for one in self._leaving if self._seen[one].is_empty)}}

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        await rounds(self.run_once, "a look at who is logged on was cut short", every_s=PERIOD_S, clock=self._clock)

    async def run_once(self) -> None:
        """Ask the guests whose turn it is, and give back the desktops that were left."""
        now = self._clock.monotonic()
        with self._grid.view() as db:
            ending = {one.id for one in templates(db) if one.refresh is Refresh.ON_LOGOUT}
            own = server(db, self._grid.server)
            drains = own is not None and own.state is ServerState.DRAINING
            here = [
                one
                for one in desktops(db, server=self._grid.server)
                if one.state is DesktopState.IN_USE
                and one.purpose is Purpose.USE
                and (drains if one.personal else one.template in ending)
            ]
        fresh = {one.id: Seen(one.generation) for one in here}
        self._seen = {
            one: known if (known := self._seen.get(one)) and known.generation == seen.generation else seen
            for one, seen in fresh.items()
        }
        self._leaving = frozenset(one.id for one in here if one.personal)
        due = [one for one in here if self._seen[one.id].next_at <= now]
        for at in range(0, len(due), AT_ONCE):
            await asyncio.gather(*(self._look(one) for one in due[at : at + AT_ONCE]))

    async def _look(self, desktop: Desktop) -> None:
        try:
            users = await guest.logged_on(self._hypervisor, desktop.id)
        except KmgrError:
            users = None
        seen = after_look(self._seen[desktop.id], users, self._clock.monotonic())
        self._seen[desktop.id] = seen
        if seen.was_left and not desktop.personal:
            await self._give_back(desktop)

    async def _give_back(self, desktop: Desktop) -> None:
        body = {
            "desktop": desktop.id,
            "user": desktop.user,
            "generation": desktop.generation,
            "connected_at": desktop.connected_at,
            "disconnected_at": desktop.disconnected_at,
            "why": "its user logged off in it",
        }
        try:
            outcome = await self._grid.propose("desktop.over", body, by=self._grid.server)
        except KmgrError as error:  # it is tried again after the next look; others are looked at meanwhile
            logger.info("a left desktop is kept", extra={"desktop": desktop.name, "cause": error.message})
            return
        if isinstance(outcome, Rejected):
            logger.info("a left desktop is kept", extra={"desktop": desktop.name, "cause": outcome.detail})
