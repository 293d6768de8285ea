"""Which 64 KiB of a desktop's own disk lie where in its copy.

A *grain* is the unit in which a second copy is kept: the cluster of the overlay
and the granularity of QEMU's dirty bitmaps. Each grain of the disk is `ABSENT`
(the golden image shows through), `ZERO`, or in a *slot*: slot n is the n-th grain
of the copy's file, counted from 1.

Pure: no I/O, no clock.
"""

from array import array
from collections.abc import Iterable, Iterator

GRAIN = 1 << 16
ABSENT = 0
ZERO = 0xFFFFFFFF

# Grains in one table: 32 KiB of memory for each 512 MiB of disk that holds anything.
_TABLE = 8192


class GrainMap:
    """Where each grain is, `default` for those never set; takes memory only where the disk holds something."""

    def __init__(self, default: int = ABSENT) -> None:
        self._default = default
        self._tables: dict[int, array[int]] = {}

    def get(self, grain: int) -> int:
        """Return a grain's place."""
        table = self._tables.get(grain // _TABLE)
        return self._default if table is None else table[grain % _TABLE]

    def set(self, grain: int, place: int) -> None:
        """Give a grain its place."""
        table = self._tables.get(grain // _TABLE)
        if table is None:
            table = self._tables[grain // _TABLE] = array("I", [self._default]) * _TABLE
        table[grain % _TABLE] = place

    def learn(self, pairs: "array[int]") -> None:
        """Give many grains their places: grain, place, grain, place …"""
        number, table = -1, array("I")
        for grain, place in zip(pairs[::2], pairs[1::2], strict=True):
            if grain // _TABLE != number:
                self.set(grain, place)
                number = grain // _TABLE
                table = self._tables[number]
            else:
                table[grain % _TABLE] = place

    def places(self, first: int = 0) -> Iterator[tuple[int, int]]:
        """Return every grain from `first` on that was set, in order, with its place."""
        for number in sorted(self._tables):
            base = number * _TABLE
            if base + _TABLE <= first:
                continue
            for index, place in enumerate(self._tables[number]):
                if place != self._default and base + index >= first:
                    yield base + index, place


class GrainSet:
    """A set of grains of one disk, a bit for each."""

    def __init__(self, count: int) -> None:
        self._bits = bytearray(-(-count // 8))

    def add(self, grain: int) -> None:
        """Put a grain in."""
        self._bits[grain >> 3] |= 1 << (grain & 7)

    def __contains__(self, grain: int) -> bool:
        return bool(self._bits[grain >> 3] & (1 << (grain & 7)))


class Slots:
    """Which slots are taken; the lowest free one is taken next, so that the file stays short."""

    def __init__(self) -> None:
        self._taken = bytearray(b"\1")  # slot 0 is the room for the overlay's header
        self._from = 1

    def take(self) -> int:
        """Return a free slot, taken from now on."""
        found = self._taken.find(0, self._from)
        if found < 0:
            found = len(self._taken)
            self._taken.append(1)
        self._taken[found] = 1
        self._from = found + 1
        return found

    def hold(self, slot: int) -> None:
        """Take a certain slot, as read from the index."""
        if slot >= len(self._taken):
            self._taken.extend(bytes(slot + 1 - len(self._taken)))
        self._taken[slot] = 1

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._taken[slot] = 0
        self._from = min(self._from, slot)

    def taken(self, slot: int) -> bool:
        """Tell whether a slot is taken."""
        return slot < len(self._taken) and bool(self._taken[slot])

    def end(self) -> int:
        """Return the number after the last taken slot: so many grains long the file must be."""
        return self._taken.rfind(1) + 1


def grains_in(extents: Iterable[tuple[int, int]], *, size_bytes: int) -> Iterator[int]:
    """Return the grains that extents (offset, length; in order) touch, each once."""
    following = 0
    for offset, length in extents:
        end = min(offset + length, size_bytes)
        if end > offset:
            first = max(following, offset // GRAIN)
            following = max(following, -(-end // GRAIN))
            yield from range(first, following)


def grain_count(size_bytes: int) -> int:
    """Return how many grains a disk has."""
    return -(-size_bytes // GRAIN)
