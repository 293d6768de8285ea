"""One block of a version's raw file: read from the disk itself, and written in place.

A block is read around the page cache where the file system allows it (`O_DIRECT`):
what is to be checked is the disk, and what running guests have in the cache stays there.

It is written in place, never by way of a new file: the raw file is the backing
file of running overlays, and QEMU keeps the old file open whatever its name shows.
That is safe because only a block is touched that is wrong on the disk, only bytes
are written that have the hash of the manifest, and those are what every guest has
expected there all along. A power cut in the middle leaves a block that is wrong, as
it was before. Where two versions share the block on disk (reflink), the file system
gives the written one room of its own.

Blocking: called in threads.
"""

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kmgr.errors import Unavailable
from kmgr.replica import manifest as m
from kmgr.replica.images import UNREADABLE, disk_error

# What every disk's sectors fit into.
_SECTOR = 4096
_NO_DIRECT = {errno.EINVAL, errno.ENOTSUP}


class Shorter(Exception):
    """The file ends before the block does."""


class Reader:
    """A raw file opened for checking; use it in one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.direct = True
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno not in _NO_DIRECT:
                raise
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.direct = False
        self._buffer = mmap.mmap(-1, _SECTOR)

    def right(self, block: m.Block) -> bool:
        """Tell whether the disk still has what the manifest says; raise `Shorter` if the file ended."""
        data = self.read(block)
        return data is not None and m.digest(data) == block.digest

    def read(self, block: m.Block) -> memoryview | None:
        """Return the block's bytes, valid until the next call, or None if the disk cannot read them."""
        room = -(-block.length // _SECTOR) * _SECTOR
        if len(self._buffer) < room:
            self._buffer = mmap.mmap(-1, room)
        view = memoryview(self._buffer)
        filled = 0
        while filled < block.length:
            try:
                got = self._read(view[filled:room], block.offset + filled)
            except OSError as error:
                if error.errno in UNREADABLE:
                    return None
                raise
            if not got:
                raise Shorter
            filled += got
        return view[: block.length]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _read(self, into: memoryview, offset: int) -> int:
        if not self.direct:
            os.posix_fadvise(self._file, offset, len(into), os.POSIX_FADV_DONTNEED)
        try:
            return os.preadv(self._file, [into], offset)
        except OSError as error:
            if not self.direct or error.errno not in _NO_DIRECT:
                raise
        # Some file systems refuse only now.
        again = os.open(f"/proc/self/fd/{self._file}", os.O_RDONLY | os.O_CLOEXEC)
        os.close(self._file)
        self._file, self.direct = again, False
        return self._read(into, offset)


def rewrite(path: Path, block: m.Block, data: bytes) -> bool:
    """Put the right bytes in place of a wrong block and tell whether the disk has kept them."""
    if len(data) != block.length or m.digest(data) != block.digest:
        raise ValueError("these are not the bytes of this block")
    try:
        with _writable(path) as opened:
            view, offset = memoryview(data), block.offset
            while view:
                written = os.pwrite(opened, view, offset)
                view, offset = view[written:], offset + written
            os.fdatasync(opened)
        reader = Reader(path)
    except OSError as error:
        if error.errno in UNREADABLE:
            return False
        raise disk_error(error, doing=f"repairing {path.name}") from error
    try:
        return reader.right(block)
    except Shorter:
        raise Unavailable(f"{path} became shorter while it was repaired") from None
    finally:
        reader.close()


@contextmanager
def _writable(path: Path) -> Iterator[int]:
    """Open a sealed file for writing; its mode says again afterwards that nobody should."""
    mode = path.stat().st_mode & 0o777
    try:
        opened = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except PermissionError:
        path.chmod(mode | 0o200)
        try:
            opened = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        finally:
            path.chmod(mode)
    try:
        yield opened
    finally:
        os.close(opened)
