"""What a version consists of: its size and the BLAKE3 hash of every block that is not all zeros.

* The guest-visible disk is cut into blocks of `block_bytes`; the last may be shorter.
* A block of zeros is nothing: it is in no list, takes no room, is never sent.
  The other blocks are counted from 0 in the order of the disk: their *index*.
* Blocks travel in *pieces* of consecutive indices, `PIECE_BYTES` in all: few enough to count, yet of a piece
  only those blocks are sent that are missing.
* There is one spelling in bytes for each content (`encode`), and its BLAKE3 hash is
  the `manifest_hash` in the log. `parse` believes nothing: whatever `encode`
  would not have written is refused.

Layout, big-endian: magic, u64 size, u32 block size, u64 number of runs, u64
number of blocks; per run u64 first block and u64 length; then 32 bytes per block.

The hashes of a large image are many (52 MB for 100 GiB), so they may stay in a file (`Digests`).

Pure: no I/O, no clock.
"""

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from blake3 import blake3

from kmgr.errors import Refused

# Changes inside a guest are scattered: a small grain resends little. 32 bytes per 64 KiB are 0.05 % of the disk.
BLOCK_BYTES = 64 * 1024
PIECE_BYTES = 1 << 20
LARGEST_BYTES = 16 << 40
SECTOR = 512

FORMAT = 2
_MAGIC = b"kmgr manifest %d\n" % FORMAT
_OTHER_FORMAT = b"kmgr manifest "
_HEAD = struct.Struct(">QIQQ")
_RUN = struct.Struct(">QQ")
_DIGEST = 32
_BLOCK_SIZES = tuple(1 << power for power in range(16, 21))
HEAD_BYTES = len(_MAGIC) + _HEAD.size
# How many hashes are looked at in one go.
_AT_ONCE = 4096


class Digests(Protocol):
    """The hashes of all blocks, one after the other: `bytes`, or a file that answers like them."""

    def __len__(self) -> int:
        """Return how many bytes they are."""
        ...

    def __getitem__(self, where: slice, /) -> bytes | bytearray:
        """Return some of these bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """Where a block lies in the file, and what its bytes must hash to."""

    offset: int
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of one version.

    A *run* is blocks that lie side by side: `firsts` are the numbers of their first blocks, `starts` their indices,
    and last of all how many blocks there are. Arrays of whole numbers, because a large disk has many.
    """

    size_bytes: int
    block_bytes: int
    firsts: "array[int]"
    starts: "array[int]"
    digests: Digests

    @property
    def blocks(self) -> int:
        """How many blocks are not all zeros."""
        return self.starts[-1]

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Every run: its first block and its length."""
        return [(first, self.starts[run + 1] - self.starts[run]) for run, first in enumerate(self.firsts)]

    @property
    def piece_blocks(self) -> int:
        """How many blocks make a piece."""
        return PIECE_BYTES // self.block_bytes

    @property
    def pieces(self) -> int:
        """How many pieces those blocks travel in."""
        return -(-self.blocks // self.piece_blocks)

    @property
    def used_bytes(self) -> int:
        """How many bytes those blocks are: what a copy takes on disk."""
        if not self.firsts:
            return 0
        beyond = self._end(len(self.firsts) - 1) * self.block_bytes - self.size_bytes
        return self.blocks * self.block_bytes - max(0, beyond)

    def block(self, index: int) -> Block:
        """Return the block at an index."""
        return self._block(index, self.digest(index))

    def digest(self, index: int) -> bytes:
        """Return the hash of the block at an index."""
        return bytes(self.digests[index * _DIGEST : (index + 1) * _DIGEST])

    def some_digests(self, first: int, end: int) -> list[bytes]:
        """Return the hashes of the blocks at the indices from `first` to before `end`, read in one go."""
        found = bytes(self.digests[first * _DIGEST : end * _DIGEST])
        return [found[at : at + _DIGEST] for at in range(0, len(found), _DIGEST)]

    def all_digests(self) -> Iterator[bytes]:
        """Yield the hash of every block."""
        for first in range(0, self.blocks, _AT_ONCE):
            yield from self.some_digests(first, first + _AT_ONCE)

    def index_at(self, offset: int) -> int | None:
        """Return the index of the block that begins at an offset, or None if that is zeros or outside."""
        number, rest = divmod(offset, self.block_bytes)
        run = bisect_right(self.firsts, number) - 1
        if rest or run < 0 or number >= self._end(run):
            return None
        return self.starts[run] + number - self.firsts[run]

    def piece(self, piece: int) -> tuple[Block, ...]:
        """Return the blocks of one piece."""
        first = piece * self.piece_blocks
        digests = self.some_digests(first, min(first + self.piece_blocks, self.blocks))
        return tuple(self._block(first + k, digest) for k, digest in enumerate(digests))

    def whole_piece(self, piece: int) -> int:
        """Return the set of all blocks of a piece (bit k: its block k)."""
        return (1 << min(self.piece_blocks, self.blocks - piece * self.piece_blocks)) - 1

    def some(self, piece: int, wanted: int) -> tuple[Block, ...]:
        """Return those blocks of a piece that are in the set `wanted`."""
        return tuple(block for k, block in enumerate(self.piece(piece)) if wanted >> k & 1)

    def stretches(self, piece: int, wanted: int) -> list[tuple[int, int]]:
        """Return (offset, length) of those blocks of a piece that are in the set `wanted`, neighbours joined."""
        first = piece * self.piece_blocks
        last = min(first + self.piece_blocks, self.blocks)
        found = []
        run = bisect_right(self.starts, first) - 1
        while first < last:
            number = self.firsts[run] + first - self.starts[run]
            here = min(last, self.starts[run + 1]) - first
            for begin, count in _groups(wanted & (1 << here) - 1):
                offset = (number + begin) * self.block_bytes
                found.append((offset, min(count * self.block_bytes, self.size_bytes - offset)))
            first, wanted, run = first + here, wanted >> here, run + 1
        return found

    def agrees(self, piece: int, wanted: int, data: bytes | bytearray | memoryview) -> bool:
        """Tell whether these bytes are those blocks of a piece, one after the other."""
        view, at, first = memoryview(data), 0, piece * self.piece_blocks
        if len(view) != sum(length for _, length in self.stretches(piece, wanted)):
            return False
        wanted &= self.whole_piece(piece)
        told = self.some_digests(first, first + wanted.bit_length())
        for begin, count in _groups(wanted):
            for k in range(begin, begin + count):
                # Only the last block of a disk may be shorter, and nothing comes after it.
                if digest(view[at : at + self.block_bytes]) != told[k]:
                    return False
                at += self.block_bytes
        return True

    def all_blocks(self) -> Iterator[Block]:
        """Yield every block in the order of the disk."""
        return (self._block(index, digest) for index, digest in enumerate(self.all_digests()))

    def _block(self, index: int, digest: bytes) -> Block:
        run = bisect_right(self.starts, index) - 1
        offset = (self.firsts[run] + index - self.starts[run]) * self.block_bytes
        return Block(offset, min(self.block_bytes, self.size_bytes - offset), digest)

    def _end(self, run: int) -> int:
        """Return the number of the first block behind a run."""
        return self.firsts[run] + self.starts[run + 1] - self.starts[run]


def build(size_bytes: int, found: Iterable[tuple[int, bytes]], *, block_bytes: int = BLOCK_BYTES) -> Manifest:
    """Make a manifest of (block number, digest) pairs in ascending order; blocks of zeros may be among them."""
    firsts, starts, digests = array("Q"), array("Q"), bytearray()
    blocks, after = 0, -1
    for number, digest in found:
        if digest == zero_digest(min(block_bytes, size_bytes - number * block_bytes)):
            continue
        if number != after:
            firsts.append(number)
            starts.append(blocks)
        blocks, after = blocks + 1, number + 1
        digests += digest
    starts.append(blocks)
    return Manifest(size_bytes, block_bytes, firsts, starts, digests)


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the hash by which blocks are known."""
    return blake3(data).digest()


@lru_cache(maxsize=64)
def zero_digest(length: int) -> bytes:
    """Return the hash of a block of zeros."""
    return digest(bytes(length))


def encode(manifest: Manifest) -> bytes:
    """Spell a manifest; equal contents give equal bytes."""
    return b"".join(spelled(manifest))


def spelled(manifest: Manifest) -> Iterator[bytes]:
    """Yield the same in parts."""
    runs = manifest.runs
    yield _MAGIC + _HEAD.pack(manifest.size_bytes, manifest.block_bytes, len(runs), manifest.blocks)
    for first in range(0, len(runs), _AT_ONCE):
        yield b"".join(_RUN.pack(*run) for run in runs[first : first + _AT_ONCE])
    for at in range(0, len(manifest.digests), _AT_ONCE * _DIGEST):
        yield bytes(manifest.digests[at : at + _AT_ONCE * _DIGEST])


class Naming:
    """The name of an encoded manifest that comes in parts."""

    def __init__(self) -> None:
        self._hash = blake3()

    def add(self, part: bytes) -> None:
        """Go on with the next part."""
        self._hash.update(part)

    @property
    def name(self) -> str:
        """What the log would call what came so far."""
        return self._hash.hexdigest()


def manifest_hash(data: bytes) -> str:
    """Return the name of an encoded manifest: what the log remembers of it."""
    return blake3(data).hexdigest()


def most_bytes(used_bytes: int, block_bytes: int) -> int:
    """Return how long the encoded manifest of a version can be at most, so that no server is sent more than that."""
    blocks = used_bytes // block_bytes + 1
    return HEAD_BYTES + blocks * (_RUN.size + _DIGEST)


def other_format(head: bytes) -> str:
    """Return what a person is told of a manifest in another format, nothing of one in ours or of rubbish."""
    if head.startswith(_MAGIC) or not head.startswith(_OTHER_FORMAT):
        return ""
    number = head[len(_OTHER_FORMAT) :].partition(b"\n")[0][:10].decode(errors="replace")
    return (
        f"the manifest has format {number}, of another release of kmgr; this one reads format {FORMAT}."
        " Bring the disk in again"
    )


def parse(data: bytes) -> Manifest:
    """Read a manifest; raise `Refused` with the first lie found."""
    begin = digests_begin(data[:HEAD_BYTES], len(data))
    return parse_with(data[:begin], data[begin:])


def digests_begin(head: bytes, total: int) -> int:
    """Return where in a manifest of `total` bytes the hashes begin, by its first `HEAD_BYTES`; believe nothing."""
    if other := other_format(head):
        raise Refused(other, code="manifest_format")
    if len(head) < HEAD_BYTES or not head.startswith(_MAGIC):
        raise Refused("this is not a manifest of an image version")
    size, block_bytes, run_count, blocks = _HEAD.unpack_from(head, len(_MAGIC))
    if not 0 < size <= LARGEST_BYTES or size % SECTOR:
        raise Refused(f"the manifest is wrong: a disk of {size} bytes cannot be")
    if block_bytes not in _BLOCK_SIZES:
        raise Refused(f"the manifest is wrong: blocks of {block_bytes} bytes are not used")
    # Compared before anything is read: the counts must fit the bytes that are really here.
    begin = HEAD_BYTES + int(run_count) * _RUN.size
    if total != begin + blocks * _DIGEST:
        raise Refused("the manifest is wrong: its length does not fit its counts")
    return begin


def parse_with(front: bytes, digests: Digests) -> Manifest:
    """Read a manifest of which the hashes lie elsewhere; `front` is what `digests_begin` has measured."""
    size, block_bytes, _, blocks = _HEAD.unpack_from(front, len(_MAGIC))
    firsts, starts = _runs(memoryview(front)[HEAD_BYTES:], blocks=blocks, last=-(-size // block_bytes))
    manifest = Manifest(size, block_bytes, firsts, starts, digests)
    if _lists_zeros(manifest):
        raise Refused("the manifest is wrong: it lists a block of zeros")
    return manifest


def _runs(spelled: memoryview, *, blocks: int, last: int) -> tuple["array[int]", "array[int]"]:
    firsts, starts, end, index = array("Q"), array("Q"), -1, 0
    for first, length in _RUN.iter_unpack(spelled):
        if first <= end or length < 1 or first + length > last:
            raise Refused("the manifest is wrong: its runs overlap, touch, or lie outside of the disk")
        firsts.append(first)
        starts.append(index)
        end, index = first + length, index + length
    if index != blocks:
        raise Refused("the manifest is wrong: its runs do not add up to its blocks")
    starts.append(index)
    return firsts, starts


def _lists_zeros(manifest: Manifest) -> bool:
    """Tell whether a block is listed that is all zeros; only the last one can be shorter than the others."""
    if not manifest.blocks:
        return False
    last = manifest.block(manifest.blocks - 1)
    if last.digest == zero_digest(last.length):
        return True
    zeros = zero_digest(manifest.block_bytes)
    for first in range(0, manifest.blocks, _AT_ONCE):
        some, at = manifest.digests[first * _DIGEST : (first + _AT_ONCE) * _DIGEST], -1
        while (at := some.find(zeros, at + 1)) >= 0:
            if not at % _DIGEST:
                # The hash of a full block of zeros in the place of a shorter one is only wrong, which its bytes show.
                index = first + at // _DIGEST
                return index < manifest.blocks - 1 or last.length == manifest.block_bytes
    return False


def _groups(members: int) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of the members of a set that follow each other."""
    at = 0
    while members:
        gap = (members & -members).bit_length() - 1
        members >>= gap
        count = (~members & members + 1).bit_length() - 1
        yield at + gap, count
        members >>= count
        at += gap + count
