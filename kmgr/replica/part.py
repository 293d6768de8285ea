"""A version that is being copied to this server: `<version>.part` and what of it is sure, `<version>.have`.

* A piece is verified before it is written; it is flagged in `.have` only after
  the bytes it stands for were synced. A power cut can therefore cost pieces,
  never leave a flag without its bytes.
* On resume every flagged piece is read and verified again: disks lie, and
  reading is far quicker than copying.
* `.have` begins with the manifest's hash; one that belongs to another content is ignored.

Blocking: called in threads. Pieces may be written by several threads at once;
`have` itself is changed by the loop alone. A thread that outlives its cancelled
task meets a closed part, never somebody else's file under the same number.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kmgr.errors import NotFound, Unavailable
from kmgr.ids import VersionId
from kmgr.replica import manifest as m
from kmgr.replica.images import Images, disk_error, seal


class WrongBytes(Exception):
    """Another server sent bytes that are not what the manifest says."""


class Part:
    """An unfinished copy of one version. `have` is the set of pieces that are here (bit k: piece k)."""

    def __init__(self, images: Images, version: VersionId, manifest: m.Manifest) -> None:
        self._images = images
        self._version = version
        self._path = images.side(version, "part")
        self._have_path = images.side(version, "have")
        self._manifest = manifest
        self._hash = bytes.fromhex(m.manifest_hash(m.encode(manifest)))
        self.have = 0
        self._lock = threading.Lock()
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._file, manifest.size_bytes)
        except OSError as error:
            raise disk_error(error, doing=f"copying version {version}") from error

    @property
    def manifest(self) -> m.Manifest:
        """What the version consists of."""
        return self._manifest

    def resume(self) -> None:
        """Find out what an earlier, interrupted copy left here that is right."""
        for piece in self._flagged():
            data = self._read(piece)
            if _right(self._manifest.piece(piece), data):
                self.have |= 1 << piece

    def allocated_bytes(self) -> int:
        """Return what the file takes on disk already."""
        with self._open() as opened:
            return os.fstat(opened).st_blocks * 512

    def write(self, piece: int, data: bytes) -> None:
        """Keep a piece if it is right; raise `WrongBytes` if it is not, `Unavailable` if the disk refuses."""
        blocks = self._manifest.piece(piece)
        if not _right(blocks, data):
            raise WrongBytes(f"piece {piece} of version {self._version} is not what its manifest says")
        view = memoryview(data)
        try:
            with self._open() as opened:
                for offset, length in _together(blocks):
                    _write_all(opened, view[:length], offset)
                    view = view[length:]
        except OSError as error:
            raise disk_error(error, doing=f"copying version {self._version}") from error

    def read(self, piece: int) -> bytes:
        """Return a piece for another server, or nothing if it is not here yet."""
        return self._read(piece) if self.have >> piece & 1 else b""

    def flush(self, have: int) -> None:
        """Sync what was written, then flag `have` (as it was before this call)."""
        flags = have.to_bytes(-(-self._manifest.pieces // 8), "little")
        try:
            self._sync()
            opened = os.open(self._have_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _write_all(opened, memoryview(self._hash + flags), 0)
                os.fdatasync(opened)
            finally:
                os.close(opened)
        except OSError as error:
            raise disk_error(error, doing=f"copying version {self._version}") from error

    def finish(self) -> None:
        """Make the whole copy the version's raw file."""
        if self.have != (1 << self._manifest.pieces) - 1:
            raise Unavailable(f"version {self._version} is not complete")
        try:
            seal(self._path, self._images.path(self._version))
            self._have_path.unlink(missing_ok=True)
            self._images.side(self._version, "damaged").unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, doing=f"keeping version {self._version}") from error

    def discard(self) -> None:
        """Give up the copy and the room it took."""
        self.close()
        self._path.unlink(missing_ok=True)
        self._have_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; what was not flagged is copied again next time. Safe to call twice."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _read(self, piece: int) -> bytes:
        with self._open() as opened:
            return _read_blocks(opened, self._manifest.piece(piece))

    @contextmanager
    def _open(self) -> Iterator[int]:
        with self._lock:
            if self._file < 0:
                raise Unavailable(f"copying version {self._version} was stopped")
            yield self._file

    def _sync(self) -> None:
        with self._open() as opened:
            own = os.dup(opened)
        try:
            os.fdatasync(own)
        finally:
            os.close(own)

    def _flagged(self) -> list[int]:
        try:
            data = self._have_path.read_bytes()
        except FileNotFoundError:
            return []
        if data[:32] != self._hash:
            return []
        flags = int.from_bytes(data[32:], "little")
        return [piece for piece in range(self._manifest.pieces) if flags >> piece & 1]


class Whole:
    """A complete version opened for reading by other servers; usable by threads, closed once."""

    def __init__(self, images: Images, version: VersionId, manifest: m.Manifest) -> None:
        self._manifest = manifest
        self._lock = threading.Lock()
        try:
            self._file = os.open(images.path(version), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"version {version} is not on this server") from None

    def read(self, piece: int) -> bytes:
        """Return the bytes of a piece, unverified: the receiver does that."""
        return self.read_blocks(self._manifest.piece(piece))

    def read_blocks(self, blocks: tuple[m.Block, ...]) -> bytes:
        """Return the bytes of some blocks of this version, in the given order."""
        with self._lock:
            return _read_blocks(self._file, blocks) if self._file >= 0 else b""

    def close(self) -> None:
        """Close the file; a read that comes later finds nothing."""
        with self._lock:
            os.close(self._file)
            self._file = -1


def _read_blocks(opened: int, blocks: tuple[m.Block, ...]) -> bytes:
    return b"".join(os.pread(opened, length, offset) for offset, length in _together(blocks))


def _right(blocks: tuple[m.Block, ...], data: bytes) -> bool:
    if len(data) != sum(block.length for block in blocks):
        return False
    view, at = memoryview(data), 0
    for block in blocks:
        if m.digest(view[at : at + block.length]) != block.digest:
            return False
        at += block.length
    return True


def _together(blocks: tuple[m.Block, ...]) -> list[tuple[int, int]]:
    """Return (offset, length) with neighbouring blocks joined: fewer, larger reads and writes."""
    joined: list[tuple[int, int]] = []
    for block in blocks:
        if joined and sum(joined[-1]) == block.offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + block.length)
        else:
            joined.append((block.offset, block.length))
    return joined


def _write_all(opened: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(opened, data, offset)
        data, offset = data[written:], offset + written
