"""A file that only grows or is replaced as a whole, and says honestly when its bytes are on the disk.

A file that grows makes the file system sync its own books as well. Therefore zeros
are written ahead, in which the next bytes find their place: a sync is a third
quicker then, and three that share a disk wait less for each other. Zeros are no record,
so whoever reads the file takes them for its end.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make new and renamed names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Return when a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(finished: Path, target: Path) -> None:
    """Sync a finished file and give it the name of `target`: after a crash the old or the new one is there, whole."""
    sync_file(finished)
    finished.rename(target)
    sync_folder(target.parent)


class LogFile:
    """The bytes of one file. Errors of the disk reach the caller as `OSError`; nothing is written through a map."""

    # So many zeros at a time: what they cost is spread over hundreds of records.
    AHEAD = 256 << 10

    def __init__(self, path: Path) -> None:
        self.path = path
        # Without the zeros; `open` of the journal finds out where they begin, and cuts them off.
        self.size = 0
        self._reserved = 0
        self._descriptor = -1
        self._new = path.with_name(path.name + ".new")
        self._new.unlink(missing_ok=True)
        if path.exists():
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self.size = self._reserved = os.fstat(self._descriptor).st_size

    def read(self) -> bytes:
        """Return everything."""
        return self.path.read_bytes()

    def append(self, data: bytes) -> None:
        """Write behind the end; survives a kill from here on, a power cut only after `sync`."""
        if self.size + len(data) > self._reserved:
            self._reserve(len(data) + self.AHEAD)
        self.size = self._put(data, self.size)

    def write_again(self, begin: int, data: bytes) -> None:
        """Write what lies at `begin` already: only what is written anew is sure to be on the disk after `sync`."""
        self._put(data, begin)

    def sync(self) -> None:
        """Return when all bytes are on the disk."""
        os.fdatasync(self._descriptor)

    def cut(self, size: int) -> None:
        """Throw away everything behind `size`, for good."""
        os.ftruncate(self._descriptor, size)
        os.fsync(self._descriptor)
        self.size = self._reserved = size

    def replace(self, parts: Iterable[bytes]) -> None:
        """Put all parts, one behind the other, in place of the whole file, at once."""
        with self._new.open("wb") as file:
            size = sum(file.write(part) for part in parts)
        self._new.chmod(0o600)
        put_in_place(self._new, self.path)
        self.close()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self.size = self._reserved = size

    def close(self) -> None:
        """Close the file, without the zeros; safe to call twice."""
        if self._descriptor >= 0:
            if self._reserved > self.size:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self.size)
            os.close(self._descriptor)
            self._descriptor = -1

    def _put(self, data: bytes, at: int) -> int:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, at)
            at += written
            view = view[written:]
        return at

    def _reserve(self, count: int) -> None:
        # A full disk has no room ahead; whether it has some for the bytes themselves shows when they come.
        with suppress(OSError):
            self._reserved = self.size + os.pwrite(self._descriptor, bytes(count), self.size)
