"""The little of qcow2 (QEMU's docs/interop/qcow2.txt, version 3) that second copies need.

`overlay` and `bitmaps` read what an overlay's header and its directory of dirty
bitmaps say. `tables` makes an overlay of a copy's file: the grains stay where
they are, the tables that say so follow behind the last one, and the header,
which makes it a disk, is written last.

Pure: no I/O, no clock.
"""

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kmgr.errors import Refused
from kmgr.replica.grains import GRAIN, ZERO

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_BITMAP = struct.Struct(">QIIBBHI")
_MAGIC = b"QFI\xfb"
_BACKING_FORMAT = 0xE2792ACA
_BITMAPS = 0x23852875
_CLUSTER_BITS = 16
_PER_TABLE = GRAIN // 8
_PER_COUNTS = GRAIN // 2
_COPIED = 1 << 63
_READS_AS_ZERO = 1
LONGEST_NAME = 1023
# More than QEMU itself takes: in a header that rotted such numbers must not become memory.
_MOST_ENTRIES = (32 << 20) // 8
_FURTHEST = 1 << 62
HEADER_BYTES = GRAIN


@dataclass(frozen=True, slots=True)
class Overlay:
    """What the header of an overlay says; offsets and lengths in bytes.

    `backing` is the path as written, empty if there is none; `first_level` where the
    first table lies and how many entries it has; `bitmaps` where the directory of
    bitmaps lies, how long it is and how many they are: zeros if there is none that counts.
    """

    size_bytes: int
    backing: str
    first_level: tuple[int, int]
    bitmaps: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A dirty bitmap in an overlay. `whole`: it was closed in order and misses no change since it began."""

    name: str
    table_at: int
    entries: int
    granularity: int
    whole: bool


def overlay(header: bytes) -> Overlay:
    """Read the first 64 KiB of an overlay; raise `Refused` if it is not such a file as kmgr makes."""
    if len(header) < _HEADER.size or header[:4] != _MAGIC:
        raise Refused("the desktop's disk is not a qcow2 file")
    _, version, name_at, name_bytes, bits, size_bytes, encrypted, entries, first_at, *rest = _HEADER.unpack_from(
        header
    )
    incompatible, autoclear, header_bytes = rest[4], rest[6], rest[8]
    # The first bit only says that reference counts may be out of date: reading does not use them.
    if version != 3 or bits != _CLUSTER_BITS or encrypted or incompatible & ~1:
        raise Refused(
            f"the desktop's disk is a qcow2 file as kmgr does not make (version {version}, {bits} bits a cluster, "
            f"features {incompatible:#x}): it cannot be copied to another server"
        )
    if name_bytes > LONGEST_NAME or name_at + name_bytes > len(header):
        raise Refused("the header of the desktop's disk is damaged: its backing file's name lies outside")
    if entries < -(-size_bytes // (GRAIN * _PER_TABLE)):
        raise Refused("the header of the desktop's disk is damaged: its first table is too short")
    if not 0 < size_bytes <= GRAIN * (ZERO - 2) or entries > _MOST_ENTRIES or first_at > _FURTHEST:
        raise Refused("the header of the desktop's disk is damaged: its numbers cannot be right")
    name = header[name_at : name_at + name_bytes].decode(errors="surrogateescape") if name_at else ""
    directory = _bitmap_directory(header, header_bytes) if autoclear & 1 else (0, 0, 0)
    return Overlay(size_bytes, name, (first_at, entries), directory)


def bitmaps(directory: bytes, count: int) -> list[Bitmap]:
    """Read the directory of bitmaps."""
    found, at = [], 0
    for _ in range(count):
        if at + _BITMAP.size > len(directory):
            raise Refused("the directory of dirty bitmaps in the desktop's disk is damaged")
        table_at, entries, flags, kind, bits, name_bytes, extra_bytes = _BITMAP.unpack_from(directory, at)
        name_at = at + _BITMAP.size + extra_bytes
        name = directory[name_at : name_at + name_bytes].decode(errors="replace")
        # In use (bit 0): QEMU died before it could write it. Extra data may change what it means. `auto` is bit 1.
        whole = kind == 1 and flags & 3 == 2 and not extra_bytes and 9 <= bits <= 31 and table_at <= _FURTHEST
        found.append(Bitmap(name, table_at, entries, 1 << min(bits, 31), whole))
        at = -(-(name_at + name_bytes) // 8) * 8
    return found


def _bitmap_directory(header: bytes, at: int) -> tuple[int, int, int]:
    while at + 8 <= len(header):
        kind, length = struct.unpack_from(">II", header, at)
        if kind == 0:
            break
        if kind == _BITMAPS and length >= 24 and at + 32 <= len(header):
            count, _, size, offset = struct.unpack_from(">IIQQ", header, at + 8)
            return (offset, size, count) if offset <= _FURTHEST else (0, 0, 0)
        at += 8 + -(-length // 8) * 8
    return 0, 0, 0


def tables(
    size_bytes: int, backing: bytes, *, places: Iterable[tuple[int, int]], taken: Callable[[int], bool], end: int
) -> Iterator[tuple[int, bytes]]:
    """Return what to write where, in grains of the file, the header (0) last.

    `places` are (grain, slot or ZERO) in order, `taken` tells which slots below `end` they use.
    """
    at, first_level = end, array("Q", bytes(8 * -(-size_bytes // (GRAIN * _PER_TABLE))))
    for number, table in _second_level(places):
        first_level[number] = (at * GRAIN) | _COPIED
        yield at, _big(table)
        at += 1
    first_at = at
    yield first_at, _big(first_level)
    at += max(1, -(-len(first_level) // _PER_TABLE))
    counts = _clusters_of_counts(at)
    table_clusters = -(-counts // _PER_TABLE)
    total = at + counts + table_clusters
    for number in range(counts):
        numbers = range(number * _PER_COUNTS, (number + 1) * _PER_COUNTS)
        used = array("H", (1 if n < total and (n >= end or n == 0 or taken(n)) else 0 for n in numbers))
        yield at + number, _big(used)
    yield at + counts, _big(array("Q", ((at + number) * GRAIN for number in range(counts))))
    yield 0, _header(size_bytes, backing, len(first_level), first_at, at + counts, table_clusters)


def _second_level(places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, "array[int]"]]:
    number, table = -1, array("Q")
    for grain, place in places:
        if grain // _PER_TABLE != number:
            if number >= 0:
                yield number, table
            number, table = grain // _PER_TABLE, array("Q", bytes(GRAIN))
        table[grain % _PER_TABLE] = _READS_AS_ZERO if place == ZERO else (place * GRAIN) | _COPIED
    if number >= 0:
        yield number, table


def _clusters_of_counts(before: int) -> int:
    """Return how many clusters of reference counts cover a file that has `before` clusters without them."""
    counts = 0
    while True:
        total = before + counts + -(-counts // _PER_TABLE)
        needed = -(-total // _PER_COUNTS)
        if needed <= counts:
            return counts
        counts = needed


def _header(
    size_bytes: int, backing: bytes, entries: int, first_at: int, table_at: int, table_clusters: int
) -> bytes:
    if len(backing) > LONGEST_NAME:
        raise Refused(f"the path of the golden image is too long for an overlay ({LONGEST_NAME} bytes)")
    extensions = struct.pack(">II", _BACKING_FORMAT, 3) + b"raw\0\0\0\0\0" + struct.pack(">II", 0, 0)
    header = _HEADER.pack(
        *(_MAGIC, 3, _HEADER.size + len(extensions), len(backing), _CLUSTER_BITS, size_bytes, 0),
        *(entries, first_at * GRAIN, table_at * GRAIN, table_clusters, 0, 0, 0, 0, 0, 4, _HEADER.size),
    )
    return (header + extensions + backing).ljust(GRAIN, b"\0")


def _big(values: "array[int]") -> bytes:
    """Return big-endian bytes, filled up to whole clusters."""
    swapped = array(values.typecode, values)
    swapped.byteswap()  # every machine with KVM that kmgr runs on is little-endian
    data = swapped.tobytes()
    return data + bytes(-len(data) % GRAIN)
