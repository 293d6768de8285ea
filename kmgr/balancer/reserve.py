"""Decide whether one more standby still leaves room for the desktops of any one server that may be lost.

Memory that a loss would need is kept free of standbys, whatever a template or its calendar asks for. Who asks for
a desktop may have it: somebody waits for it now. While a server is lost or drains nothing is kept: this is what
it was kept for. Nor is it where it cannot be, on one server alone or against the loss of one
whose desktops in use are too many for the others.

Pure.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from kmgr.balancer.model import View
from kmgr.balancer.place import OVERHEAD_MIB, WAITING, Room, by_server
from kmgr.grid.model import RUNNING, ServerState
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.lifecycle import LIVING
from kmgr.provision.model import Desktop

# States of a server during which what was kept may be used.
_USED_IN = (ServerState.LOST, ServerState.DRAINING)


def without_home(sizes: Mapping[int, int], gaps: Iterable[int]) -> int:
    """Return how many desktops (size in MiB → how many) fit into no gap, the largest placed first."""
    left, unplaced = sorted(gaps), 0
    for size, count in sorted(sizes.items(), reverse=True):
        rest = count
        for n, gap in enumerate(left):
            taken = min(rest, max(0, gap) // size)
            left[n] = gap - taken * size
            rest -= taken
            if not rest:
                break
        unplaced += rest
    return unplaced


def sizes_of(desktops: Iterable[Desktop]) -> Counter[int]:
    """Return the sizes of living desktops as they are counted on a server."""
    return Counter(d.memory_mib + OVERHEAD_MIB for d in desktops if d.state in LIVING)


class Reserve:
    """What is kept on `rooms` while standbys are placed; each booking is told with `book`. `going` count no more."""

    def __init__(self, view: View, rooms: Sequence[Room], going: Collection[DesktopId] = ()) -> None:
        self._gaps = {room.server: room.memory_mib for room in rooms if room.closed is None}
        runs = {s.id for s in view.servers if s.state in RUNNING and not s.is_witness}
        in_need = any(s.state in _USED_IN and not s.is_witness for s in view.servers)
        self._used = not view.keep_for_loss or in_need or len(self._gaps) < 2
        staying = [d for d in view.desktops if d.id not in going]
        on_each = by_server(staying)
        self._own = {server: sizes_of(on_each.get(server, ())) for server in sorted(runs)}
        idle = [d for d in staying if d.state in WAITING and d.user is None]
        self._standbys = {server: sizes_of(desktops) for server, desktops in by_server(idle).items()}
        # For each server that may be lost: its largest desktop, how many of those the others have room for, less
        # how many it has. As long as that is not negative nobody is left without a home.
        self._largest: dict[ServerId, int] = {}
        self._slack: dict[ServerId, int] = {}
        for server in self._own:
            self._measure(server)

    def allows(self, server: ServerId, memory_mib: int) -> bool:
        """Tell whether a standby of this size may be placed there."""
        if self._used:
            return True
        size = memory_mib + OVERHEAD_MIB
        return all(self._is_kept(lost, server, size) for lost in self._own)

    def book(self, server: ServerId, memory_mib: int) -> None:
        """Count a desktop that was placed."""
        size = memory_mib + OVERHEAD_MIB
        before = self._gaps.get(server, 0)
        self._gaps[server] = before - size
        for lost, largest in self._largest.items():
            if lost != server:
                self._slack[lost] += _fit(before - size, largest) - _fit(before, largest)
        if server in self._own:
            self._own[server][size] += 1
            self._standbys.setdefault(server, Counter())[size] += 1
            self._measure(server)

    def _measure(self, lost: ServerId) -> None:
        largest = max(self._own[lost], default=1)
        room = sum(_fit(gap, largest) for other, gap in self._gaps.items() if other != lost)
        self._largest[lost] = largest
        self._slack[lost] = room - self._own[lost].total()

    def _is_kept(self, lost: ServerId, server: ServerId, size: int) -> bool:
        if lost != server:
            largest, gap = self._largest[lost], self._gaps.get(server, 0)
            if self._slack[lost] + _fit(gap - size, largest) - _fit(gap, largest) >= 0:
                return True
        elif size <= self._largest[lost] and self._slack[lost] > 0:
            return True
        # The quick answer was no: sizes differ, look closer.
        others = {other: gap for other, gap in self._gaps.items() if other != lost}
        own = self._own[lost]
        now = without_home(own, others.values())
        if lost == server:
            then = without_home(own + Counter({size: 1}), others.values())
        else:
            then = without_home(own, ({**others, server: others.get(server, 0) - size}).values())
        return then <= now or (now > 0 and self._is_hopeless(lost, others))

    def _is_hopeless(self, lost: ServerId, others: Mapping[ServerId, int]) -> bool:
        """Tell whether the others had no room for its desktops even if nothing stood by anywhere."""
        emptied = [
            gap + sum(size * count for size, count in self._standbys.get(other, Counter()).items())
            for other, gap in others.items()
        ]
        return without_home(self._own[lost] - self._standbys.get(lost, Counter()), emptied) > 0


def _fit(gap: int, size: int) -> int:
    return max(0, gap) // size
