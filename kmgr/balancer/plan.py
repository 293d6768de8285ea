"""Decide what the balancer does now: one view in, all changes out.

What leaves because of its server goes first, so that its place under the maximum
is free in the same round; then each template is judged; then what is missing is
placed, the neediest template first, one desktop at a time. What is only to stand by stops where the memory is kept
for a loss (`reserve`). Planning again after a
plan was carried out plans nothing more, and the order of the input does not matter.

Pure.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kmgr.balancer.evacuate import evacuate
from kmgr.balancer.model import Forget, Place, Plan, Retire, Shortage, View, Why
from kmgr.balancer.place import COMING, Room, able, blocked_by, choose, refusal, rooms
from kmgr.balancer.pool import UNEVEN, Need, judge, orphaned
from kmgr.balancer.protection import protect
from kmgr.balancer.relocate import relocate
from kmgr.balancer.reserve import Reserve
from kmgr.balancer.rollout import lines, withdrawn
from kmgr.grid.model import RUNNING
from kmgr.ids import DesktopId, TemplateId
from kmgr.provision.model import Desktop, DesktopState, Purpose

KEPT = (
    "what memory is left is kept for the loss of a server, so no more stand by; whoever asks for a desktop gets one "
    "all the same. Add memory or a server, or lower how many stand by"
)


def plan(view: View, *, calm: bool = False) -> Plan:
    """Return what to do. While `calm` is kept after an election, nothing is done because of a loss."""
    leaving = tuple(evacuate(view, calm=calm))
    retire = [action for action in leaving if isinstance(action, Retire)]
    gone = {a.desktop if isinstance(a, Forget) else a.desktop.id for a in leaving}
    # What is edited or tested belongs to no pool; it only takes room.
    staying = tuple(d for d in view.desktops if d.id not in gone and d.purpose is Purpose.USE)
    retire += orphaned(view, staying)
    needs = []
    of_template: defaultdict[TemplateId, list[Desktop]] = defaultdict(list)
    for desktop in staying:
        of_template[desktop.template].append(desktop)
    for template in sorted(view.templates, key=lambda t: t.id):
        over, staying_of_it = withdrawn(template, of_template[template.id], view)
        retire += over
        for line in lines(template, staying_of_it, view):
            verdict = judge(line.template, line.desktops, line.view)
            retire += verdict.retire
            if verdict.need is not None:
                needs.append(verdict.need)
    going = {action.desktop.id for action in retire}
    filling = _Filling(view, needs, rooms(view, going), going)
    filling.fill()
    quiet = not calm and _is_quiet(view, [*retire, *filling.retire], filling.places)
    if not calm:
        filling.even_out()
    moves = () if calm else relocate(view, filling.rooms, quiet=quiet and not filling.places)
    forget = [action for action in leaving if isinstance(action, Forget)]
    kept = protect(view, calm=calm)
    return Plan((*forget, *kept, *retire, *filling.retire, *filling.places, *moves), filling.short())


def _is_quiet(view: View, retire: Sequence[Retire], places: Sequence[Place]) -> bool:
    """Tell whether nothing is being made or removed anywhere, nor about to be; servers that cannot are left out."""
    working = {server.id for server in view.servers if server.state in RUNNING and able(view, server.id)}
    moving = [d for d in view.desktops if d.state in (*COMING, DesktopState.RETIRED)]
    return not places and not any(d.server in working for d in (*moving, *(action.desktop for action in retire)))


@dataclass(slots=True)
class _Open:
    """A need while it is being met. `freed` places under the maximum came from former desktops.

    One that `stopped` would take what is kept for the loss of a server.
    """

    need: Need
    placed: int = 0
    freed: int = 0
    emptied: bool = False
    stopped: bool = False

    @property
    def left(self) -> int:
        """How many more may be placed now."""
        most = self.need.allowed + len(self.need.stuck) + self.freed
        return min(self.need.missing, most) - self.placed

    @property
    def urgency(self) -> tuple[int, str]:
        """The smaller the sooner: which part of its target a template has, in thousandths."""
        have = self.need.target - self.need.missing + self.placed
        return have * 1000 // max(1, self.need.target), self.need.template.id


class _Filling:
    """Places what is needed while there is room, and makes room for a newer version where there is none."""

    def __init__(
        self, view: View, needs: Sequence[Need], rooms: tuple[Room, ...], going: Collection[DesktopId]
    ) -> None:
        self._view = view
        self.rooms = rooms
        self._reserve = Reserve(view, rooms, going)
        self._open = [_Open(need) for need in needs]
        self.places: list[Place] = []
        self.retire: list[Retire] = []

    def fill(self) -> None:
        """Place one desktop after the other until no template can be given any more."""
        progress = True
        while progress:
            progress = any(self._place(entry) for entry in sorted(self._open, key=lambda e: e.urgency)) or any(
                self._make_room(entry) for entry in self._open
            )
        for entry in self._open:
            self.retire += [Retire(desktop, Why.STUCK) for desktop in entry.need.stuck[: entry.placed]]

    def even_out(self) -> None:
        """Begin to move one standby of each template that is all ready from the fullest server to the emptiest."""
        for entry in self._open:
            need = entry.need
            if need.missing or not need.settled:
                continue
            room = choose(need.template, self.rooms, self._view, holders_only=True)
            if room is None or room.waiting[need.template.id] + UNEVEN > need.fullest:
                continue
            if need.allowed:
                if self._reserve.allows(room.server, need.template.memory_mib):
                    self._book(entry, room)
            elif need.gives is not None:
                self.retire.append(Retire(need.gives, Why.UNEVEN))

    def short(self) -> tuple[Shortage, ...]:
        """Name the templates that get less than they lack."""
        return tuple(
            Shortage(entry.need.template.id, missing, self._reason(entry))
            for entry in self._open
            if (missing := entry.need.missing - entry.placed) > 0
        )

    def _place(self, entry: _Open) -> bool:
        if entry.left <= 0 or entry.stopped:
            return False
        template = entry.need.template
        room = choose(template, self.rooms, self._view, holders_only=entry.need.holders_only)
        if room is None:
            return False
        if entry.placed >= entry.need.pressing and not self._reserve.allows(room.server, template.memory_mib):
            left = [r for r in self.rooms if self._reserve.allows(r.server, template.memory_mib)]
            room = choose(template, left, self._view, holders_only=True)
            if room is None:
                entry.stopped = True
                return False
        self._book(entry, room)
        return True

    def _book(self, entry: _Open, room: Room) -> None:
        template = entry.need.template
        room.book(template)
        self._reserve.book(room.server, template.memory_mib)
        entry.placed += 1
        self.places.append(Place(template.id, template.version, room.server))

    def _make_room(self, entry: _Open) -> bool:
        """Let former desktops go if they are what keeps fresh ones from being placed; once per plan."""
        need = entry.need
        if entry.placed or entry.emptied or not need.missing or not need.settled or not need.former:
            return False
        if not need.allowed:
            self._roll(entry)
        if not entry.placed:
            entry.emptied = self._empty_one(need)
        return bool(entry.placed) or entry.emptied

    def _roll(self, entry: _Open) -> None:
        """At the maximum, each fresh desktop takes the place of a former one; never more than a step at once."""
        for desktop in entry.need.former[: entry.need.step]:
            entry.freed += 1
            if not self._place(entry):
                entry.freed -= 1
                return
            self.retire.append(Retire(desktop, Why.MAKES_ROOM))

    def _empty_one(self, need: Need) -> bool:
        """Where memory or disk is full, one former desktop goes from a server on which that is enough."""
        blocked = blocked_by(need.template, self.rooms, self._view)
        for desktop in need.former:
            if desktop.server in blocked and self._would_fit(need, desktop):
                self.retire.append(Retire(desktop, Why.MAKES_ROOM))
                return True
        return False

    def _would_fit(self, need: Need, leaves: Desktop) -> bool:
        room = next(room for room in self.rooms if room.server == leaves.server)
        memory = room.memory_mib + leaves.memory_mib - need.template.memory_mib
        return memory >= 0 and room.disk_mib >= 0

    def _reason(self, entry: _Open) -> str:
        if entry.left <= 0:
            return f"its maximum of {entry.need.template.maximum} is reached until former desktops are gone"
        if entry.stopped:
            return KEPT
        return refusal(entry.need.template, self.rooms, self._view)
