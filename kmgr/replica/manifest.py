"""What a version consists of: its size and the SHA-256 of every block that is not all zeros.

* The guest-visible disk is cut into blocks of `block_bytes`; the last may be shorter.
* A block of zeros is nothing: it is in no list, takes no room, is never sent.
  The other blocks are counted from 0 in the order of the disk: their *index*.
* Blocks travel in *pieces* of consecutive indices, `PIECE_BYTES` in all: few enough to count, yet of a piece
  only those blocks are sent that are missing.
* There is one spelling in bytes for each content (`encode`), and its SHA-256 is
  the `manifest_hash` in the log. `parse` believes nothing: whatever `encode`
  would not have written is refused.

Layout, big-endian: magic, u64 size, u32 block size, u64 number of runs, u64
number of blocks; per run u64 first block and u64 length; then 32 bytes per block.

Pure: no I/O, no clock.
"""

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from kmgr.errors import Refused

# Changes inside a guest are scattered: a small grain resends little. 32 bytes per 64 KiB are 0.05 % of the disk.
BLOCK_BYTES = 64 * 1024
PIECE_BYTES = 1 << 20
LARGEST_BYTES = 16 << 40
SECTOR = 512

_MAGIC = b"kmgr manifest 1\n"
_HEAD = struct.Struct(">QIQQ")
_RUN = struct.Struct(">QQ")
_DIGEST = 32
_BLOCK_SIZES = tuple(1 << power for power in range(16, 21))


@dataclass(frozen=True, slots=True)
class Block:
    """Where a block lies in the file, and what its bytes must hash to."""

    offset: int
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of one version. `runs` are (first block, length), `starts` the index at which each run begins."""

    size_bytes: int
    block_bytes: int
    runs: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]
    digests: bytes

    @property
    def blocks(self) -> int:
        """How many blocks are not all zeros."""
        return len(self.digests) // _DIGEST

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
        if not self.runs:
            return 0
        first, length = self.runs[-1]
        beyond = (first + length) * self.block_bytes - self.size_bytes
        return self.blocks * self.block_bytes - max(0, beyond)

    def block(self, index: int) -> Block:
        """Return the block at an index."""
        run = bisect_right(self.starts, index) - 1
        number = self.runs[run][0] + index - self.starts[run]
        offset = number * self.block_bytes
        length = min(self.block_bytes, self.size_bytes - offset)
        return Block(offset, length, self.digest(index))

    def digest(self, index: int) -> bytes:
        """Return the hash of the block at an index."""
        return self.digests[index * _DIGEST : (index + 1) * _DIGEST]

    def index_at(self, offset: int) -> int | None:
        """Return the index of the block that begins at an offset, or None if that is zeros or outside."""
        number, rest = divmod(offset, self.block_bytes)
        run = bisect_right(self.runs, number, key=lambda found: found[0]) - 1
        if rest or run < 0 or number >= sum(self.runs[run]):
            return None
        return self.starts[run] + number - self.runs[run][0]

    def piece(self, piece: int) -> tuple[Block, ...]:
        """Return the blocks of one piece."""
        first = piece * self.piece_blocks
        return tuple(self.block(index) for index in range(first, min(first + self.piece_blocks, self.blocks)))

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
            number = self.runs[run][0] + first - self.starts[run]
            here = min(last, self.starts[run] + self.runs[run][1]) - first
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
        for begin, count in _groups(wanted & self.whole_piece(piece)):
            for index in range(first + begin, first + begin + count):
                # Only the last block of a disk may be shorter, and nothing comes after it.
                if digest(view[at : at + self.block_bytes]) != self.digest(index):
                    return False
                at += self.block_bytes
        return True

    def all_blocks(self) -> Iterator[Block]:
        """Yield every block in the order of the disk."""
        return (self.block(index) for index in range(self.blocks))


def build(size_bytes: int, found: Iterable[tuple[int, bytes]], *, block_bytes: int = BLOCK_BYTES) -> Manifest:
    """Make a manifest of (block number, digest) pairs in ascending order; blocks of zeros may be among them."""
    runs: list[tuple[int, int]] = []
    digests = bytearray()
    for number, digest in found:
        if digest == zero_digest(min(block_bytes, size_bytes - number * block_bytes)):
            continue
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
        digests += digest
    return Manifest(size_bytes, block_bytes, tuple(runs), _starts(runs), bytes(digests))


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the hash by which blocks are known."""
    return hashlib.sha256(data).digest()


@lru_cache(maxsize=64)
def zero_digest(length: int) -> bytes:
    """Return the hash of a block of zeros."""
    return digest(bytes(length))


def encode(manifest: Manifest) -> bytes:
    """Spell a manifest; equal contents give equal bytes."""
    head = _HEAD.pack(manifest.size_bytes, manifest.block_bytes, len(manifest.runs), manifest.blocks)
    return b"".join((_MAGIC, head, *(_RUN.pack(*run) for run in manifest.runs), manifest.digests))


def manifest_hash(data: bytes) -> str:
    """Return the name of an encoded manifest: what the log remembers of it."""
    return hashlib.sha256(data).hexdigest()


def most_bytes(used_bytes: int, block_bytes: int) -> int:
    """Return how long the encoded manifest of a version can be at most, so that no server is sent more than that."""
    blocks = used_bytes // block_bytes + 1
    return len(_MAGIC) + _HEAD.size + blocks * (_RUN.size + _DIGEST)


def parse(data: bytes) -> Manifest:
    """Read a manifest; raise `Refused` with the first lie found."""
    prefix = len(_MAGIC) + _HEAD.size
    if len(data) < prefix or not data.startswith(_MAGIC):
        raise Refused("this is not a manifest of an image version")
    size, block_bytes, run_count, blocks = _HEAD.unpack_from(data, len(_MAGIC))
    if not 0 < size <= LARGEST_BYTES or size % SECTOR:
        raise Refused(f"the manifest is wrong: a disk of {size} bytes cannot be")
    if block_bytes not in _BLOCK_SIZES:
        raise Refused(f"the manifest is wrong: blocks of {block_bytes} bytes are not used")
    # Compared before anything is read: the counts must fit the bytes that are really here.
    if len(data) != prefix + run_count * _RUN.size + blocks * _DIGEST:
        raise Refused("the manifest is wrong: its length does not fit its counts")
    middle = prefix + run_count * _RUN.size
    runs = tuple(_RUN.iter_unpack(data[prefix:middle]))
    _check_runs(runs, blocks=blocks, last=-(-size // block_bytes))
    manifest = Manifest(size, block_bytes, runs, _starts(runs), data[middle:])
    if _lists_zeros(manifest):
        raise Refused("the manifest is wrong: it lists a block of zeros")
    return manifest


def _check_runs(runs: tuple[tuple[int, int], ...], *, blocks: int, last: int) -> None:
    end = -1
    for first, length in runs:
        if first <= end or length < 1 or first + length > last:
            raise Refused("the manifest is wrong: its runs overlap, touch, or lie outside of the disk")
        end = first + length
    if sum(length for _, length in runs) != blocks:
        raise Refused("the manifest is wrong: its runs do not add up to its blocks")


def _lists_zeros(manifest: Manifest) -> bool:
    """Tell whether a block is listed that is all zeros; only the last one can be shorter than the others."""
    if not manifest.blocks:
        return False
    last = manifest.block(manifest.blocks - 1)
    zeros, at = zero_digest(manifest.block_bytes), -1
    while (at := manifest.digests.find(zeros, at + 1)) >= 0:
        if not at % _DIGEST and (at // _DIGEST < manifest.blocks - 1 or last.length == manifest.block_bytes):
            return True
    return last.digest == zero_digest(last.length)


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


def _starts(runs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    starts, index = [], 0
    for _, length in runs:
        starts.append(index)
        index += length
    return tuple(starts)
