"""Take from a version that is here already what a new version has in common with it.

Two versions of an image mostly differ in little, and guests write in place, so
equal blocks are found by their hash, wherever they lie. What is taken is verified
like everything that comes by wire: an older file may have rotted. Where the file system
can (XFS, btrfs), both files then share the block: it costs no room.

Runs in the daemon's loop; files are touched in threads.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kmgr.errors import KmgrError, Unavailable
from kmgr.ids import VersionId
from kmgr.replica import manifest as m
from kmgr.replica.background import background
from kmgr.replica.images import Images
from kmgr.replica.part import Part, Whole

logger = logging.getLogger(__name__)

# Pieces that are verified and taken in one go.
_AT_ONCE = 16
# Pieces whose contents are looked for elsewhere at a time: 64 Ki blocks, some 10 MiB of memory.
_SPAN = 4096


class _Lost(Exception):
    """What the older version consists of cannot be read any more."""


async def reuse(images: Images, part: Part, relative: VersionId) -> int:
    """Fill the missing blocks that `relative` has, and return how many bytes that were."""
    try:
        manifest = await background(images.manifest, relative)
        whole = await background(Whole, images, relative, manifest)
    except (KmgrError, OSError):  # it went away, is damaged or cannot be read: the wire will do
        return 0
    taken = 0
    try:
        if manifest.block_bytes == part.manifest.block_bytes:
            for span in _cut(range(part.manifest.pieces), _SPAN):
                moved = await background(_moved, part, manifest, span)
                for pieces in _cut(span, _AT_ONCE):
                    for piece, blocks, size in await background(_take, part, whole, manifest, moved, pieces):
                        part.here(piece, blocks)
                        taken += size
    except _Lost as error:
        logger.info("an older version is of no more use", extra={"version": relative, "cause": str(error)})
    finally:
        whole.close()
    return taken


def _cut(pieces: range, size: int) -> Iterator[range]:
    return (pieces[first : first + size] for first in range(0, len(pieces), size))


def _moved(part: Part, theirs: m.Manifest, pieces: range) -> dict[bytes, int]:
    """Return where they have those missing contents of some pieces that are elsewhere there."""
    wanted = {
        ours.digest
        for piece in pieces
        for ours in part.manifest.some(piece, part.missing(piece))
        if _same_place(theirs, ours) is None
    }
    if not wanted:
        return {}
    with _reading_theirs():
        return {digest: index for index, digest in enumerate(theirs.all_digests()) if digest in wanted}


def _same_place(theirs: m.Manifest, ours: m.Block) -> int | None:
    """Return the index of the same content at the same place."""
    index = theirs.index_at(ours.offset)
    if index is None:
        return None
    with _reading_theirs():
        return index if theirs.digest(index) == ours.digest else None


def _take(
    part: Part, whole: Whole, theirs: m.Manifest, moved: dict[bytes, int], pieces: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Take what can be had of some pieces; return (piece, set of its blocks, bytes)."""
    taken: list[tuple[int, int, int]] = []
    pairs: list[tuple[m.Block, m.Block]] = []
    for piece in pieces:
        blocks = size = 0
        for k, pair in _found(part, theirs, moved, piece):
            if m.digest(_bytes(whole, pair[0])) == pair[1].digest:
                pairs.append(pair)
                blocks |= 1 << k
                size += pair[1].length
        if blocks:
            taken.append((piece, blocks, size))
    if pairs:
        part.clone(whole.fileno(), pairs)
    return taken


def _found(
    part: Part, theirs: m.Manifest, moved: dict[bytes, int], piece: int
) -> Iterator[tuple[int, tuple[m.Block, m.Block]]]:
    missing = part.missing(piece)
    for k, ours in enumerate(part.manifest.piece(piece)):
        if missing >> k & 1:
            index = _same_place(theirs, ours)
            index = moved.get(ours.digest) if index is None else index
            if index is None:
                continue
            with _reading_theirs():
                block = theirs.block(index)
            if block.length == ours.length:
                yield k, (block, ours)


def _bytes(whole: Whole, block: m.Block) -> bytes:
    """Return the bytes of a block, none if the disk cannot read them any more: that one comes by wire."""
    try:
        return whole.read_blocks((block,))
    except OSError:
        return b""


@contextmanager
def _reading_theirs() -> Iterator[None]:
    try:
        yield
    except Unavailable as error:
        raise _Lost(error.message) from error
