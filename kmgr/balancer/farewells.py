"""Decide who on a draining server with a notice is told to leave, whose time is over, and what is shut down to go on.

Rule 1: a desktop that can be moved while it runs is moved, its user need not know. One that
cannot for `SURE_S` on end (a server may be silent for a moment) is to leave.
Rule 2: a pooled one ends at the moment that was told. A personal one goes on from its safe copy, so it leaves only
where one is whole and can be started: at that moment or, with a notice or without, once nobody is logged on in it.
Rule 3: one that did not get away like that is tried again after a while; a few go at once.

Pure.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kmgr.balancer.drains import stays
from kmgr.balancer.model import View
from kmgr.balancer.place import OVERHEAD_MIB, Room, rooms
from kmgr.balancer.protection import safe_copies
from kmgr.balancer.relocate import EACH_AT_ONCE, refuge
from kmgr.grid.model import ServerState
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.model import Copy, Desktop, Leaving, Purpose

SURE_S = 10.0
AGAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Tell:
    """Its user is told to leave."""

    desktop: Desktop


@dataclass(frozen=True, slots=True)
class End:
    """Its user was told, and the time is over."""

    desktop: Desktop
    until: int


@dataclass(frozen=True, slots=True)
class Leave:
    """It is shut down and goes on from its safe copy on another server; `left`: because nobody is logged on in it."""

    desktop: Desktop
    target: ServerId
    left: bool


class Farewells:
    """Remembers since when who cannot be moved, and what was tried when.

    A new leader begins anew, so people are told late, never too soon.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[DesktopId, int], float] = {}
        self._tried: dict[tuple[DesktopId, int], float] = {}

    def due(
        self,
        view: View,
        notices: Mapping[ServerId, int],
        told: Mapping[DesktopId, Leaving],
        *,
        now: float,
        now_ms: int,
        left: Collection[DesktopId] = (),
    ) -> tuple[Tell | End | Leave, ...]:
        """Return what is due at this moment; `now` is monotonic, `now_ms` the clock that notices are given by.

        In `left` personal desktops nobody is logged on, by their servers' word.
        """
        over = {desktop for desktop, leaves in told.items() if now_ms >= leaves.until}
        staying = list(_staying(view))
        stuck = self._stuck(staying, now)
        spaces, safe = rooms(view), safe_copies(view)
        ends = [End(d, told[d.id].until) for d, _ in staying if d.id in over and not d.owned]
        leaves = self._leaves(view, stuck, spaces, safe, over, left, now)
        warned = [d for d in stuck if d.server in notices and d.id not in told]
        tells = [Tell(d) for d in warned if not d.owned or refuge(d, safe.get(d.id, ()), spaces, view) is not None]
        return (*ends, *leaves, *tells)

    def _stuck(self, staying: Sequence[tuple[Desktop, str]], now: float) -> list[Desktop]:
        """Return what surely cannot be moved while it runs."""
        found = {(desktop.id, desktop.generation): desktop for desktop, why in staying if why}
        self._since = {key: self._since.get(key, now) for key in found}
        self._tried = {key: at for key, at in self._tried.items() if key in found or now - at < AGAIN_S}
        return [desktop for key, desktop in found.items() if now - self._since[key] >= SURE_S]

    def _leaves(
        self,
        view: View,
        stuck: Sequence[Desktop],
        spaces: Sequence[Room],
        safe: Mapping[DesktopId, Sequence[Copy]],
        over: Collection[DesktopId],
        left: Collection[DesktopId],
        now: float,
    ) -> list[Leave]:
        going = Counter(d.server for d in view.desktops if d.moving_to is not None)
        chosen = []
        for desktop in stuck:
            nobody, key = desktop.id in left and not desktop.is_open, (desktop.id, desktop.generation)
            due = desktop.owned and (nobody or desktop.id in over)
            if not due or going[desktop.server] >= EACH_AT_ONCE or now - self._tried.get(key, -AGAIN_S) < AGAIN_S:
                continue
            if (room := refuge(desktop, safe.get(desktop.id, ()), spaces, view)) is not None:
                room.memory_mib -= desktop.memory_mib + OVERHEAD_MIB
                going[desktop.server] += 1
                self._tried[key] = now
                chosen.append(Leave(desktop, room.server, nobody))
        return chosen


def _staying(view: View) -> Iterator[tuple[Desktop, str]]:
    """Yield what people work on on draining servers and is not on its way, with why (empty: it is next)."""
    desktops = {desktop.id: desktop for desktop in view.desktops}
    for server in sorted(view.servers, key=lambda s: s.id):
        if server.state is ServerState.DRAINING:
            for one in stays(view, server.id):
                if desktops[one.desktop].purpose is Purpose.USE:
                    yield desktops[one.desktop], one.why
