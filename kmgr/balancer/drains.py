"""How far a drain is: what is left on the server, what moves now, who is waited for and why. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kmgr.balancer.model import View
from kmgr.balancer.place import Room, rooms
from kmgr.balancer.protection import safe_copies
from kmgr.balancer.relocate import EACH_AT_ONCE, movable, refuge, refused
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.model import Copy, Desktop, DesktopState


@dataclass(frozen=True, slots=True)
class Waits:
    """A desktop that does not move now, and why."""

    desktop: DesktopId
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Moves:
    """A desktop that is on its way, and how far it is."""

    desktop: DesktopId
    name: str
    percent: int


@dataclass(frozen=True, slots=True)
class Progress:
    """`left` desktops are still there, `moving` are on their way; `others` are used by nobody and are being removed.

    `people` are the users whose desktops are there.
    `remaining_s` is reckoned from the moves that go on; None: nothing tells yet, or
    it depends on people (`waiting`).
    """

    left: int
    moving: tuple[Moves, ...]
    waiting: tuple[Waits, ...]
    others: int
    remaining_s: int | None
    people: int = 0


def progress(view: View, server: ServerId, *, percents: Mapping[DesktopId, int], now_ms: int) -> Progress:
    """Return how far the drain of a server is; `percents` are its own words about what moves."""
    here = sorted((d for d in view.desktops if d.server == server), key=lambda d: (d.name, d.id))
    used = [d for d in here if d.state is DesktopState.IN_USE]
    moving = tuple(Moves(d.id, d.name, percents.get(d.id, 0)) for d in used if d.moving_to is not None)
    staying = tuple(stays(view, server))
    waiting = [one for one in staying if one.why]
    next_ones = len(staying) - len(waiting)
    waiting += [
        Waits(d.id, d.name, f"it is broken ({d.step}): try it again or delete it")
        for d in here
        if d.owned and d.state is DesktopState.BROKEN
    ]
    each_s = _each_s(view, moving, now_ms)
    remaining = None if waiting or each_s is None else _remaining_s(moving, each_s, next_ones)
    people = len({d.user for d in used})
    return Progress(len(here), moving, tuple(waiting), len(here) - len(used), 0 if not used else remaining, people)


def stays(view: View, server: ServerId) -> Iterator[Waits]:
    """Yield the desktops in use there that are not on their way, with why they cannot be (empty: they are next)."""
    spaces = [room for room in rooms(view) if room.server != server]
    safe = safe_copies(view)
    for desktop in sorted((d for d in view.desktops if d.server == server), key=lambda d: (d.name, d.id)):
        if desktop.state is DesktopState.IN_USE and desktop.moving_to is None:
            why = _why(desktop, view, spaces, safe.get(desktop.id, ()))
            yield Waits(desktop.id, desktop.name, why)


def _why(desktop: Desktop, view: View, spaces: Sequence[Room], held: Sequence[Copy]) -> str:
    if not movable(desktop, view):
        failed = view.moves.get(desktop.id)
        cause = f": {failed.cause}" if failed is not None else ""
        if desktop.owned and refuge(desktop, held, spaces, view) is None:
            return f"it could not be moved while it runs, and nothing can start it from a whole safe copy{cause}"
        return f"it could not be moved while it runs and leaves when its user logs out{cause}"
    refusals = {room.name: refused(desktop, room, view) for room in spaces}
    if refusals and all(refusals.values()):
        return f"no server can take it: {'; '.join(f'{name} {why}' for name, why in sorted(refusals.items()))}"
    return "" if refusals else "there is no other server"


def _each_s(view: View, moving: Sequence[Moves], now_ms: int) -> float | None:
    """Return how long one move takes, by those that are far enough to tell."""
    told = [
        (now_ms - view.moves[one.desktop].begun_at) / 10 / one.percent
        for one in moving
        if one.percent > 0 and one.desktop in view.moves
    ]
    return max(told) if told else None


def _remaining_s(moving: Sequence[Moves], each_s: float, next_ones: int) -> int:
    least = min((one.percent for one in moving), default=100)
    return round(each_s * (100 - least) / 100 + each_s * -(-next_ones // EACH_AT_ONCE))
