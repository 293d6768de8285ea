"""Decide who on a draining server with a notice is told to leave, and whose time is over.

A desktop that can be moved while it runs is moved, its user need not know. One that
cannot for `SURE_S` on end (a server may be silent for a moment) is to leave.

Pure.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kmgr.balancer.drains import stays
from kmgr.balancer.model import View
from kmgr.grid.model import ServerState
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.model import Desktop, Leaving, Purpose

SURE_S = 10.0


@dataclass(frozen=True, slots=True)
class Tell:
    """Its user is told to leave."""

    desktop: Desktop


@dataclass(frozen=True, slots=True)
class End:
    """Its user was told, and the time is over."""

    desktop: Desktop
    until: int


class Farewells:
    """Remembers since when who cannot be moved; a new leader begins anew, so people are told late, never too soon."""

    def __init__(self) -> None:
        self._since: dict[tuple[DesktopId, int], float] = {}

    def due(
        self,
        view: View,
        notices: Mapping[ServerId, int],
        told: Mapping[DesktopId, Leaving],
        *,
        now: float,
        now_ms: int,
    ) -> tuple[Tell | End, ...]:
        """Return what is due at this moment; `now` is monotonic, `now_ms` the clock that notices are given by."""
        return tuple(self._due(view, notices, told, now, now_ms))

    def _due(
        self, view: View, notices: Mapping[ServerId, int], told: Mapping[DesktopId, Leaving], now: float, now_ms: int
    ) -> Iterator[Tell | End]:
        desktops = {d.id: d for d in view.desktops}
        stuck: dict[tuple[DesktopId, int], Desktop] = {}
        for server in sorted(view.servers, key=lambda s: s.id):
            if server.state is not ServerState.DRAINING or server.id not in notices:
                continue
            for one in stays(view, server.id):
                desktop = desktops[one.desktop]
                if desktop.owned or desktop.purpose is not Purpose.USE:
                    continue
                if (leaves := told.get(desktop.id)) is not None:
                    if now_ms >= leaves.until:
                        yield End(desktop, leaves.until)
                elif one.why:
                    stuck[(desktop.id, desktop.generation)] = desktop
        self._since = {key: self._since.get(key, now) for key in stuck}
        for key, desktop in stuck.items():
            if now - self._since[key] >= SURE_S:
                yield Tell(desktop)
