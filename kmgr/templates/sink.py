"""A file that grows at its end: large writes, zeros left out, and an offset that holds after a power cut."""

import os
from collections.abc import Callable
from pathlib import Path

from kmgr.replica.background import at_length, to_the_end
from kmgr.replica.images import disk_error

_WRITE = 1 << 20
_GRAIN = 1 << 16
_ZEROS = bytes(_GRAIN)


class Sink:
    """An open file from `at` on; what lies behind is cut off. After `sync` the first `written` bytes are on the disk.

    Made and closed in a thread, the rest in the loop. Who is cancelled waits until the disk has done what it was
    told: else the end could be cut off while another thread still writes there.
    """

    def __init__(self, path: Path, at: int) -> None:
        path.chmod(0o600)
        self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(self._file, at)
        self.at = at
        self.written = at
        self._waiting = bytearray()
        self.unsynced = 0

    @classmethod
    def fresh(cls, path: Path) -> "Sink":
        """Make a new file, ours alone."""
        path.touch(0o600)
        return cls(path, 0)

    async def add(self, data: bytes) -> None:
        """Take more; most of the time it only goes to memory."""
        self._waiting += data
        self.at += len(data)
        self.unsynced += len(data)
        if len(self._waiting) >= _WRITE:
            await self._flush()

    async def sync(self) -> None:
        """Return when all of it is on the disk."""
        await self._flush()
        await self._do(self._sync)
        self.unsynced = 0

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    async def _flush(self) -> None:
        data, self._waiting = bytes(self._waiting), bytearray()
        if data:
            await self._do(self._write, data)

    async def _do(self, work: Callable[..., None], *arguments: bytes) -> None:
        try:
            await to_the_end(at_length(work, *arguments))
        except OSError as error:
            raise disk_error(error, doing="the import") from error

    def _write(self, data: bytes) -> None:
        for start in range(0, len(data), _GRAIN):
            piece = data[start : start + _GRAIN]
            if not _ZEROS.startswith(piece):
                done = 0
                while done < len(piece):
                    done += os.pwrite(self._file, piece[done:], self.written + done)
            self.written += len(piece)

    def _sync(self) -> None:
        os.ftruncate(self._file, self.written)
        os.fdatasync(self._file)
