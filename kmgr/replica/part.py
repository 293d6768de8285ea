"""A version that is being copied to this server: `<version>.part`.

* Blocks are verified before they are written in place.
* On resume every block of which the file system has something is read and verified: what a kill left is kept to
  the last block, what a power cut lost shows, and nothing is believed. Reading is far quicker than copying.
* It is synced now and then, so that a power cut costs little, and once more before it gets the version's name.

Blocking: called in threads. Blocks may be written by several threads at once; which
are `here` is changed by the loop alone. A thread that outlives its cancelled
task meets a closed part, never somebody else's file under the same number.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kmgr.errors import NotFound, Unavailable
from kmgr.ids import VersionId
from kmgr.replica import manifest as m
from kmgr.replica.at_hand import at_hand
from kmgr.replica.blocks import Data, Stretch, read_blocks, read_stretches, right, share, side_by_side, write_all
from kmgr.replica.images import Images, disk_error, seal


class WrongBytes(Exception):
    """Another server sent bytes that are not what the manifest says."""


class Part:
    """An unfinished copy of one version. `have` is the set of pieces that are here (bit k: piece k)."""

    def __init__(self, images: Images, version: VersionId, manifest: m.Manifest) -> None:
        self._images = images
        self._version = version
        self._path = images.side(version, "part")
        self._manifest = manifest
        self._partly: dict[int, int] = {}
        self.have = 0
        self.listeners: set[Callable[[int], None]] = set()
        self._lock = threading.Lock()
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_error(error, doing=f"copying version {version}") from error
        try:
            os.ftruncate(self._file, manifest.size_bytes)
        except OSError as error:
            self.close()
            raise disk_error(error, doing=f"copying version {version}") from error

    @property
    def manifest(self) -> m.Manifest:
        """What the version consists of."""
        return self._manifest

    def resume(self) -> None:
        """Find out what an earlier, interrupted copy left here that is right."""
        with self._open() as opened:
            data = Stretch(opened)
            for piece in range(self._manifest.pieces):
                if self._file < 0:  # nobody waits for this any more, and the disk has better to do
                    return
                found = 0
                for k, block in enumerate(self._manifest.piece(piece)):
                    if data.reaches(block.offset, block.length) and _is_right(opened, block):
                        found |= 1 << k
                if found:
                    self.here(piece, found)

    def allocated_bytes(self) -> int:
        """Return what the file takes on disk already."""
        with self._open() as opened:
            return os.fstat(opened).st_blocks * 512

    def missing(self, piece: int) -> int:
        """Return the set of blocks that a piece lacks (bit k: its block k)."""
        return 0 if self.have >> piece & 1 else self._manifest.whole_piece(piece) & ~self._partly.get(piece, 0)

    def here(self, piece: int, blocks: int) -> None:
        """Note that some blocks of a piece are here and right; whoever listens hears of each piece that is complete.

        Only in the loop, like every change of `have`.
        """
        left = self.missing(piece) & ~blocks
        if left:
            self._partly[piece] = self._manifest.whole_piece(piece) & ~left
        elif not self.have >> piece & 1:
            self._partly.pop(piece, None)
            self.have |= 1 << piece
            for listener in tuple(self.listeners):
                listener(piece)

    def missing_bytes(self) -> int:
        """Return how many bytes are still to come."""
        whole = self._manifest.used_bytes - self.have.bit_count() * m.PIECE_BYTES
        return max(
            0, whole - sum(blocks.bit_count() for blocks in self._partly.values()) * self._manifest.block_bytes
        )

    def write(self, piece: int, wanted: int, data: Data) -> None:
        """Write blocks of a piece if they are right; raise `WrongBytes` if not, `Unavailable` if the disk refuses."""
        if not self._manifest.agrees(piece, wanted, data):
            raise WrongBytes(f"piece {piece} of version {self._version} is not what its manifest says")
        view = memoryview(data)
        with self._writing() as opened:
            for offset, length in self._manifest.stretches(piece, wanted):
                write_all(opened, view[:length], offset)
                view = view[length:]

    def clone(self, source: int, blocks: Sequence[tuple[m.Block, m.Block]]) -> None:
        """Take blocks (theirs, ours) of another file, already verified; share them where the file system can."""
        with self._writing() as opened:
            for theirs, ours, length in side_by_side(blocks):
                share(source, opened, theirs, ours, length)

    def read(self, piece: int, wanted: int) -> bytes:
        """Return some blocks of a piece for another server, or nothing if the piece is not here yet."""
        if not self.have >> piece & 1:
            return b""
        with self._open() as opened:
            return read_stretches(opened, self._manifest.stretches(piece, wanted))

    def at_hand(self, piece: int, wanted: int, room: memoryview) -> bool:
        """Fill `room` with some blocks of a piece if they are here and in memory; never waits for the disk."""
        if not self.have >> piece & 1:
            return False
        with self._open() as opened:
            return at_hand(opened, self._manifest.stretches(piece, wanted), room)

    def flush(self) -> None:
        """Sync what was written."""
        self._check_not_removed()
        with self._writing() as opened:
            os.fdatasync(opened)

    def finish(self) -> None:
        """Make the whole copy the version's raw file."""
        if self.have != (1 << self._manifest.pieces) - 1:
            raise Unavailable(f"version {self._version} is not complete")
        self._check_not_removed()
        try:
            seal(self._path, self._images.path(self._version))
            self._images.side(self._version, "damaged").unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, doing=f"keeping version {self._version}") from error

    def discard(self) -> None:
        """Give up the copy and the room it took."""
        self.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; what is in it is found again next time. Safe to call twice."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    @contextmanager
    def _open(self) -> Iterator[int]:
        """Lend the file under a number of its own: it stays this file, whoever closes the part meanwhile."""
        with self._lock:
            if self._file < 0:
                raise Unavailable(f"copying version {self._version} was stopped")
            own = os.dup(self._file)
        try:
            yield own
        finally:
            os.close(own)

    @contextmanager
    def _writing(self) -> Iterator[int]:
        try:
            with self._open() as opened:
                yield opened
        except OSError as error:
            raise disk_error(error, doing=f"copying version {self._version}") from error

    def _check_not_removed(self) -> None:
        with self._open() as opened:
            own = os.fstat(opened)
        try:
            kept = os.path.samestat(own, self._path.stat())
        except FileNotFoundError:
            kept = False
        if not kept:
            raise Unavailable(
                f"the unfinished copy {self._path} was removed while it was written: it is begun anew", code="removed"
            )


def _is_right(opened: int, block: m.Block) -> bool:
    try:
        return right((block,), read_blocks(opened, (block,)))
    except OSError:  # the disk cannot read it any more: it comes anew, and is written anew
        return False


class Whole:
    """A complete version opened for reading by other servers; usable by threads, closed once."""

    def __init__(self, images: Images, version: VersionId, manifest: m.Manifest) -> None:
        self._manifest = manifest
        self._lock = threading.Lock()
        try:
            self._file = os.open(images.path(version), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"version {version} is not on this server") from None

    def read(self, piece: int, wanted: int) -> bytes:
        """Return some blocks of a piece, unverified: the receiver does that."""
        stretches = self._manifest.stretches(piece, wanted)
        with self._lock:
            return read_stretches(self._file, stretches) if self._file >= 0 else b""

    def at_hand(self, piece: int, wanted: int, room: memoryview) -> bool:
        """Fill `room` with some blocks of a piece if they are in memory; waits for neither disk nor others."""
        stretches = self._manifest.stretches(piece, wanted)
        if not self._lock.acquire(blocking=False):  # somebody reads, and may wait for the disk
            return False
        try:
            return self._file >= 0 and at_hand(self._file, stretches, room)
        finally:
            self._lock.release()

    def read_blocks(self, blocks: tuple[m.Block, ...]) -> bytes:
        """Return the bytes of some blocks of this version, in the given order."""
        with self._lock:
            return read_blocks(self._file, blocks) if self._file >= 0 else b""

    def fileno(self) -> int:
        """Return the open file's number, for sharing its blocks."""
        return self._file

    def close(self) -> None:
        """Close the file; a read that comes later finds nothing."""
        with self._lock:
            os.close(self._file)
            self._file = -1
