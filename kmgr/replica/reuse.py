"""Take from a version that is here already what a new version has in common with it.

Two versions of an image mostly differ in little, and guests write in place, so
equal blocks are found by their hash, wherever they lie. What is taken is verified
like everything that comes by wire: an older file may have rotted.

Runs in the daemon's loop; files are touched in threads.
"""

import asyncio

from kmgr.errors import NotFound, Refused
from kmgr.ids import VersionId
from kmgr.replica import manifest as m
from kmgr.replica.images import Images
from kmgr.replica.part import Part, Whole, WrongBytes


async def reuse(images: Images, part: Part, relative: VersionId) -> int:
    """Fill the missing pieces of which `relative` has every block, and return how many that were."""
    try:
        manifest = await asyncio.to_thread(images.manifest, relative)
        whole = await asyncio.to_thread(Whole, images, relative, manifest)
    except (NotFound, Refused):  # it went away, or is damaged: the wire will do
        return 0
    taken = 0
    try:
        for piece, blocks in await asyncio.to_thread(_common, part, manifest):
            try:
                await asyncio.to_thread(_take, part, piece, whole, blocks)
            except WrongBytes:
                continue
            part.have |= 1 << piece
            taken += 1
    finally:
        whole.close()
    return taken


def _common(part: Part, manifest: m.Manifest) -> list[tuple[int, tuple[m.Block, ...]]]:
    """Return the missing pieces that can be had here, each with the places of its blocks."""
    known = {(block.digest, block.length): block for block in manifest.all_blocks()}
    pieces = []
    for piece in range(part.manifest.pieces):
        if not part.have >> piece & 1:
            found = [known.get((block.digest, block.length)) for block in part.manifest.piece(piece)]
            blocks = tuple(block for block in found if block is not None)
            if len(blocks) == len(found):
                pieces.append((piece, blocks))
    return pieces


def _take(part: Part, piece: int, whole: Whole, blocks: tuple[m.Block, ...]) -> None:
    part.write(piece, whole.read_blocks(blocks))
