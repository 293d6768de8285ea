"""How the journal is spelled on disk: records with length, checksum and kind; tells a torn tail from damage.

* `SYNCED` begins every batch and holds the offset that was already on the disk
  when the batch was written. A valid one behind a broken record, with an offset
  beyond it, proves that the broken record had been synced: that is damage.
  Without such a witness the broken part is the torn tail of a crash, which
  nobody was ever told about.

Pure.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

MAGIC = b"kmgrlog1"
_HEAD = struct.Struct("<IIB")
_NUMBER = struct.Struct("<Q")
_ENTRY = struct.Struct("<QQ")


class Kind(IntEnum):
    """What a record says."""

    ENTRY = 1
    CUT = 2
    VOTE = 3
    COMMIT = 4
    VOTERS = 5
    SYNCED = 6
    EPOCH = 7
    REMEMBERED = 8
    DOUBT = 9
    LEAST = 10


class Entry(NamedTuple):
    """One log entry, in the order of fields that pysyncobj unpacks."""

    command: bytes
    index: int  # type: ignore[assignment]
    term: int


class Word(NamedTuple):
    """What one server promised another: in `term` to have entry `index` (of `index_term`, 0: not known), and a vote.

    `vote` is the last term in which it gave that other one its vote.
    """

    term: int = 0
    index: int = 0  # type: ignore[assignment]
    index_term: int = 0
    vote: int = 0

    def joined(self, other: "Word | None") -> "Word":
        """Return the most that was promised by both."""
        if other is None:
            return self
        best = max(self[:3], other[:3])
        return Word(*best, max(self.vote, other.vote))


_KINDS = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Scan:
    """What a file holds: its good records, where they end, and whether something synced behind is broken."""

    records: tuple[tuple[Kind, bytes], ...]
    end: int
    damaged: bool

    @property
    def sure(self) -> int:
        """Up to where a later batch says that all was on the disk."""
        return max((number(body) for kind, body in self.records if kind is Kind.SYNCED), default=0)


def pack(kind: Kind, body: bytes) -> bytes:
    """Spell one record."""
    return _HEAD.pack(len(body), _checksum(kind, body), kind) + body


def pack_number(kind: Kind, value: int) -> bytes:
    """Spell a record that holds one number."""
    return pack(kind, _NUMBER.pack(value))


def number(body: bytes) -> int:
    """Read the body of `pack_number`."""
    value: int = _NUMBER.unpack(body)[0]
    return value


def pack_entry(entry: Entry) -> bytes:
    """Spell a log entry."""
    return pack(Kind.ENTRY, _ENTRY.pack(entry.index, entry.term) + entry.command)


def entry(body: bytes) -> Entry:
    """Read the body of `pack_entry`."""
    index, term = _ENTRY.unpack_from(body)
    return Entry(body[_ENTRY.size :], index, term)


def scan(raw: bytes) -> Scan:
    """Read a whole file up to its first broken record; raise `ValueError` if it is no journal."""
    if raw[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not begin like a log of kmgr")
    records = []
    offset = len(MAGIC)
    while (found := _record(raw, offset)) is not None:
        kind, body = found
        records.append((kind, body))
        offset += _HEAD.size + len(body)
    return Scan(tuple(records), offset, offset < len(raw) and _synced_beyond(raw, offset))


def _record(raw: bytes, offset: int) -> tuple[Kind, bytes] | None:
    if offset + _HEAD.size > len(raw):
        return None
    size, checksum, kind = _HEAD.unpack_from(raw, offset)
    body = raw[offset + _HEAD.size : offset + _HEAD.size + size]
    if len(body) < size or kind not in _KINDS or _checksum(kind, body) != checksum:
        return None
    return Kind(kind), body


def _synced_beyond(raw: bytes, broken: int) -> bool:
    for offset in _finds(raw, struct.pack("<I", _NUMBER.size), broken):
        found = _record(raw, offset)
        if found is not None and found[0] is Kind.SYNCED and number(found[1]) > broken:
            return True
    return False


def _finds(raw: bytes, pattern: bytes, start: int) -> Iterator[int]:
    offset = raw.find(pattern, start)
    while offset >= 0:
        yield offset
        offset = raw.find(pattern, offset + 1)


def _checksum(kind: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(bytes((kind,))))
