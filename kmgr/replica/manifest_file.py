"""Manifests as files: opened without reading their hashes into memory, and taken in as they come.

For 100 GiB of contents the hashes are 52 MB: they stay in the file, and what is asked for is read.

Blocking: called in threads (a single reading is 512 bytes of a file that was just read).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kmgr.errors import Unavailable
from kmgr.replica import manifest as m

_PART = 1 << 20


class KeptDigests:
    """The hashes of a manifest, as long as its file is the one that was looked at.

    It is opened for each reading: a disk of images must be one that can be unmounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path) as file:
            self._known = os.fstat(file)
        self._begin = 0

    def front(self) -> bytes:
        """Return what comes before the hashes; raise `Refused` if this cannot be a manifest."""
        self._begin = 0
        begin = m.digests_begin(self[: m.HEAD_BYTES], self._known.st_size)
        front = self[:begin]
        self._begin = begin
        return front

    def __len__(self) -> int:
        """Return how many bytes they are."""
        return self._known.st_size - self._begin

    def __getitem__(self, where: slice, /) -> bytes:
        """Return some of them; raise `Unavailable` if the file was changed or removed."""
        first, end, _ = where.indices(len(self))
        wanted = max(0, end - first)
        try:
            with _reading(self.path) as file:
                same = os.path.samestat(os.fstat(file), self._known)
                found = os.pread(file, wanted, self._begin + first)
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be read: {error.strerror or error}", code="disk") from error
        if not same or len(found) != wanted:
            raise Unavailable(f"{self.path} was changed while it was used", code="disk")
        return found


class Incoming:
    """A manifest that comes in stretches, in a file of its own; `close` removes what nobody took over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.length = 0
        self._naming = m.Naming()
        self._file = path.open("wb", buffering=0)

    @property
    def name(self) -> str:
        """What it is called so far: its hash."""
        return self._naming.name

    def add(self, stretch: bytes) -> None:
        """Write the next stretch."""
        view = memoryview(stretch)
        while view:
            view = view[self._file.write(view) or 0 :]
        self._naming.add(stretch)
        self.length += len(stretch)

    def sync(self) -> None:
        """Wait until the disk has it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """End it; safe to call twice, and after the file was given its name."""
        if not self._file.closed:
            self._file.close()
            self.path.unlink(missing_ok=True)


def opened(path: Path, *, then: Path | None = None) -> m.Manifest:
    """Return the manifest in a file (which is moved `then`); raise `Refused` with the first lie found in it."""
    digests = KeptDigests(path)
    manifest = m.parse_with(digests.front(), digests)
    digests.path = then or path
    return manifest


def stretch(path: Path, offset: int, length: int) -> tuple[bytes, int]:
    """Return some bytes of the file, and how many there are in all."""
    with path.open("rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        return os.pread(file.fileno(), length, min(offset, total)), total


def name_of(path: Path) -> str:
    """Return the hash by which the log knows what is in the file."""
    naming = m.Naming()
    for part in _parts(path):
        naming.add(part)
    return naming.name


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while part := file.read(_PART):
            yield part


@contextmanager
def _reading(path: Path) -> Iterator[int]:
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield opened
    finally:
        os.close(opened)
