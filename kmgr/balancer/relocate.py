"""Decide which desktops go on on another server while somebody works on them: off a draining one, or for balance.

Rule 1: only a few at once from and to each server, and on the whole: copies take network and disk.
Rule 2: a target has the golden image and what the desktop's machine needs, runs desktops by the
same means, has a processor that can go on with what the guest found (`provision.processors`), and
has room for the whole desktop beyond its reserve; the emptiest is taken.
Rule 3: for balance only in calm weather, when nothing else happens, one server is
much fuller than another, and the move leaves it the fuller one still: so
nothing goes back and forth. Never if the loss of a server would be worse afterwards, and
never a personal desktop without a whole, good safe copy: its copy is made anew after each move.
Nor does one move while it is being started from another disk, or a version is being made of it.
Rule 4: one that could not be moved so often stays until its user logs out. A personal one can then be shut down, and
started where its safe copy is (`farewells`).

Pure.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from kmgr.balancer.model import Relocate, View, Why
from kmgr.balancer.place import GROWTH_MIB, OVERHEAD_MIB, Room, able, by_server, lacking, machine_of
from kmgr.balancer.protection import good_copies
from kmgr.balancer.weaknesses import homeless
from kmgr.grid.model import PLACEABLE, Server, ServerState
from kmgr.ids import ServerId
from kmgr.provision import processors
from kmgr.provision.model import Copy, CopyState, Desktop, DesktopState, Purpose

EACH_AT_ONCE = 2
ALL_AT_ONCE = 16
MOST_FAILURES = 3
# How much fuller a server must be than another, in percent of its memory, before desktops in use move for it.
MUCH_FULLER = 25
FOR_BALANCE = 2


def relocate(view: View, rooms: Sequence[Room], *, quiet: bool) -> tuple[Relocate, ...]:
    """Return what should begin to move now; `quiet` tells that nothing else happens."""
    moving = _Moving(view, rooms)
    for server in sorted(view.servers, key=lambda s: s.id):
        if server.state is ServerState.DRAINING and able(view, server.id):
            moving.empty(server)
    if quiet and not moving.busy:
        moving.balance()
    return tuple(moving.chosen)


def movable(desktop: Desktop, view: View) -> bool:
    """Tell whether a desktop may be moved while it is used; else it waits until its user has logged out."""
    failed = view.moves.get(desktop.id)
    used = desktop.state is DesktopState.IN_USE and desktop.purpose is Purpose.USE
    return used and (failed is None or failed.failures < MOST_FAILURES)


@dataclass(slots=True)
class _Load:
    """How full a server is: what its desktops take of its memory."""

    server: ServerId
    memory_mib: int
    taken_mib: int

    def percent(self, more_mib: int = 0) -> int:
        """Return how full it is, or would be with more."""
        return (self.taken_mib + more_mib) * 100 // max(1, self.memory_mib)


class _Moving:
    """Chooses moves one after the other and books each."""

    def __init__(self, view: View, rooms: Sequence[Room]) -> None:
        self._view = view
        self._rooms = {room.server: room for room in rooms}
        going = [d for d in view.desktops if d.moving_to is not None]
        self._out = Counter(d.server for d in going)
        self._in = Counter(d.moving_to for d in going)
        self._left = ALL_AT_ONCE - len(going)
        self._on_each = by_server(view.desktops)
        self._safe = good_copies(view)
        self._starting = {copy.desktop for copy in view.copies if copy.state is CopyState.STARTING}
        self.chosen: list[Relocate] = []

    @property
    def busy(self) -> bool:
        """True while something moves, or is about to."""
        return bool(self._out or self.chosen)

    def empty(self, server: Server) -> None:
        """Move what is used away from a draining server."""
        for desktop in sorted(self._on_each.get(server.id, ()), key=lambda d: d.id):
            if desktop.moving_to is None and self._may_go(desktop):
                self._choose(desktop, Why.DRAINING, self._targets(desktop))

    def balance(self) -> None:
        """Move a few from the fullest server to the emptiest, if they differ much."""
        loads = self._loads()
        for _ in range(FOR_BALANCE):
            if len(loads) < 2:
                return
            fullest = max(loads, key=lambda load: (load.percent(), load.server))
            emptiest = min(loads, key=lambda load: (load.percent(), load.server))
            if fullest.percent() - emptiest.percent() < MUCH_FULLER:
                return
            chosen = next(self._evening(fullest, emptiest), None)
            if chosen is None or not self._choose(chosen, Why.BALANCE, [self._rooms[emptiest.server]]):
                return
            size = chosen.memory_mib + OVERHEAD_MIB
            fullest.taken_mib -= size
            emptiest.taken_mib += size

    def _evening(self, fullest: _Load, emptiest: _Load) -> Iterator[Desktop]:
        taken = {action.desktop.id for action in self.chosen}
        for desktop in sorted(self._on_each.get(fullest.server, ()), key=lambda d: (d.memory_mib, d.id)):
            size = desktop.memory_mib + OVERHEAD_MIB
            stays_fuller = fullest.percent(-size) >= emptiest.percent(size)
            if desktop.id in taken or not self._may_go(desktop) or not stays_fuller:
                continue
            if desktop.owned and desktop.id not in self._safe:
                continue
            if not self._is_worse(desktop, emptiest.server):
                yield desktop

    def _may_go(self, desktop: Desktop) -> bool:
        held = desktop.id in self._starting or desktop.id in self._view.captured
        return movable(desktop, self._view) and not held

    def _is_worse(self, desktop: Desktop, target: ServerId) -> bool:
        """Tell whether after the moves so far and this one fewer desktops would find a home when a server is lost."""
        homes = {**{action.desktop.id: action.target for action in self.chosen}, desktop.id: target}
        moved = tuple(replace(d, server=homes.get(d.id, d.server)) for d in self._view.desktops)
        before, after = homeless(self._view), homeless(replace(self._view, desktops=moved))
        return sum(after.values()) > sum(before.values())

    def _loads(self) -> list[_Load]:
        return [
            _Load(server.id, vitals.memory_mib, _taken(self._on_each.get(server.id, ())))
            for server in self._view.servers
            if server.state in PLACEABLE
            and server.id in self._rooms
            and self._rooms[server.id].closed is None
            and (vitals := self._view.vitals.get(server.id)) is not None
        ]

    def _targets(self, desktop: Desktop) -> list[Room]:
        return sorted(
            (room for room in self._rooms.values() if room.server != desktop.server),
            key=lambda room: (-room.memory_mib, room.server),
        )

    def _choose(self, desktop: Desktop, why: Why, rooms: Sequence[Room]) -> bool:
        if self._left <= 0 or self._out[desktop.server] >= EACH_AT_ONCE:
            return False
        for room in rooms:
            if self._in[room.server] < EACH_AT_ONCE and not refused(desktop, room, self._view):
                room.memory_mib -= desktop.memory_mib + OVERHEAD_MIB
                room.disk_mib -= _disk_mib(desktop, self._view)
                self._out[desktop.server] += 1
                self._in[room.server] += 1
                self._left -= 1
                self.chosen.append(Relocate(desktop, room.server, why))
                return True
        return False


def refused(desktop: Desktop, room: Room, view: View) -> str:
    """Say why a server cannot take a desktop that is used; empty if it can."""
    here, there = view.vitals.get(desktop.server), view.vitals.get(room.server)
    if room.closed is not None:
        return str(room.closed.value)
    if here is None or there is None or here.accelerator != there.accelerator:
        return "runs desktops by other means"
    if why := processors.why_not(here.accelerator, here.processor, there.processor):
        return why
    if missing := lacking(machine_of(desktop, view), room.machines):
        return str(missing.value)
    if room.server not in view.holders.get(desktop.version, frozenset()):
        return "does not have its golden image"
    if room.memory_mib < desktop.memory_mib + OVERHEAD_MIB:
        return "has too little memory left"
    return "has too little disk left" if room.disk_mib < _disk_mib(desktop, view) else ""


def refuge(desktop: Desktop, held: Sequence[Copy], rooms: Sequence[Room], view: View) -> Room | None:
    """Return where a personal desktop could be started now; None: nowhere. `held` are its `safe_copies`."""
    spaces, machine = {room.server: room for room in rooms}, machine_of(desktop, view)
    there = [spaces[copy.server] for copy in held if copy.server in spaces]
    fit = [room for room in there if room.closed is None and lacking(machine, room.machines) is None]
    return next((room for room in fit if room.memory_mib >= desktop.memory_mib + OVERHEAD_MIB), None)


def _disk_mib(desktop: Desktop, view: View) -> int:
    """Return what its own disk may take there: as much as its safe copy, if it has one."""
    known = [copy.bytes >> 20 for copy in view.copies if copy.desktop == desktop.id] if desktop.owned else []
    return max([GROWTH_MIB, *known])


def _taken(desktops: Collection[Desktop]) -> int:
    return sum(desktop.memory_mib + OVERHEAD_MIB for desktop in desktops)
