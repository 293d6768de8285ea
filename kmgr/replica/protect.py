"""Decide which server holds the second copy of a personal disk.

Rule 1: one copy, on another server than the disk's own.
Rule 2: who holds one and can go on keeps it: copies are large, evenness is not
worth moving them. A server that drains, was removed, or has been lost for
`LOST_FOR_GOOD_S` cannot go on, and one that cannot make the desktop's machine gives
way to one that can; the former copy is given up once the new one is complete.
Rule 3: a server must take new things and have room for the disk beyond a reserve.
Rule 4: among those, one that can make the machine goes before one that cannot, for
from the latter's copy nothing can be started; then one that has the version under the
disk before one that waits for it, the one with the fewest copies, the one with most room.
Rule 5: ties are broken by id, never by the order of the input.

Pure.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kmgr.ids import DesktopId, ServerId, VersionId

# A server that restarts is back before a disk would have been copied anew.
LOST_FOR_GOOD_S = 600.0
# A disk whose size nobody has told yet counts as so much.
UNKNOWN_MIB = 2048
# Among a server's `extra` vitals: the desktops whose copies on its disk are known to be bad.
BAD_COPIES = "bad_copies"


@dataclass(frozen=True, slots=True)
class Disk:
    """A personal desktop's own disk: where it is, how large (MiB; 0: not known), who cannot make its machine."""

    desktop: DesktopId
    server: ServerId
    version: VersionId
    mib: int = 0
    unable: frozenset[ServerId] = frozenset()


@dataclass(frozen=True, slots=True)
class Shelf:
    """A server as a place for copies. `keeps`: what it holds stays there; `takes`: it may be given more."""

    server: ServerId
    keeps: bool
    takes: bool
    free_mib: int = 0
    versions: frozenset[VersionId] = field(default_factory=frozenset)


def holders(
    disks: Sequence[Disk], shelves: Sequence[Shelf], held: Mapping[DesktopId, Collection[ServerId]]
) -> Iterator[tuple[DesktopId, ServerId]]:
    """Yield who should begin to hold which disk's copy; `held` says who does already, complete or not."""
    known = {shelf.server: shelf for shelf in shelves}
    sizes = {disk.desktop: disk.mib for disk in disks}
    count = Counter(server for servers in held.values() for server in servers)
    booked: Counter[ServerId] = Counter()
    for disk in sorted(disks, key=lambda d: d.desktop):
        mine = [known[s] for s in held.get(disk.desktop, ()) if s in known and s != disk.server]
        kept = [shelf for shelf in mine if shelf.keeps]
        if any(shelf.server not in disk.unable for shelf in kept):
            continue
        fit = [
            shelf
            for shelf in shelves
            if shelf.takes
            and shelf.server != disk.server
            and shelf.free_mib - booked[shelf.server] >= _size(sizes, disk)
            and not (kept and shelf.server in disk.unable)
        ]
        if not fit:
            continue
        best = min(
            fit,
            key=lambda s: (
                s.server in disk.unable,
                disk.version not in s.versions,
                count[s.server],
                booked[s.server] - s.free_mib,
                s.server,
            ),
        )
        count[best.server] += 1
        booked[best.server] += _size(sizes, disk)
        yield disk.desktop, best.server


def _size(sizes: Mapping[DesktopId, int], disk: Disk) -> int:
    return sizes[disk.desktop] or UNKNOWN_MIB
