"""Reading a disk that QEMU lends over a unix socket (the NBD protocol, structured replies, one dirty bitmap).

Only what a copy needs: attach to an export, which extents the bitmap calls
dirty, read. Blocks, with a time limit on every step; belongs to one thread at a time.
"""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from kmgr.errors import Unavailable

_SILENCE_S = 20.0
_OPTION = struct.Struct(">QII")
_ANSWER = struct.Struct(">QIII")
_COMMAND = struct.Struct(">IHHQQI")
_CHUNK = struct.Struct(">IHHQI")
_OPTION_MAGIC = 0x49484156454F5054
_ANSWER_MAGIC = 0x3E889045565A9
_COMMAND_MAGIC = 0x25609513
_CHUNK_MAGIC = 0x668E33EF
_GO, _STRUCTURED, _META = 7, 8, 10
_READ, _CLOSE, _STATUS = 0, 2, 7
_ACK, _INFO, _CONTEXT = 1, 3, 4
_LAST = 1
_CHUNK_DATA, _CHUNK_HOLE, _CHUNK_STATUS = 1, 2, 5
_ERROR_REPLY = 1 << 31
_ERROR_CHUNK = 1 << 15
_DIRTY = 1
_LONGEST_LOOK = 1 << 31
MOST_READ = 32 << 20


class Lent:
    """One export. `bitmap` is the name under which its dirty bitmap is told, empty if there is none."""

    def __init__(self, path: Path, export: str, *, bitmap: str = "") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_SILENCE_S)
        self._handle = 0
        self.size_bytes = 0
        self._has_bitmap = False
        try:
            self._socket.connect(str(path))
            self._attach(export.encode(), f"qemu:dirty-bitmap:{bitmap}".encode() if bitmap else b"")
            if bitmap and not self._has_bitmap:
                raise Unavailable("QEMU lends the disk without the bitmap of what changed")
        except BaseException as error:
            self._socket.close()
            if isinstance(error, OSError):
                raise Unavailable(f"QEMU does not lend the desktop's disk: {error}") from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        try:
            self._socket.sendall(_COMMAND.pack(_COMMAND_MAGIC, 0, _CLOSE, 0, 0, 0))
        except OSError:
            pass  # it had gone already
        finally:
            self._socket.close()

    def dirty(self) -> Iterator[tuple[int, int]]:
        """Return the extents (offset, length) that the bitmap calls dirty, in order."""
        at = 0
        while at < self.size_bytes:
            before = at
            for length, flags in self._status(at, min(_LONGEST_LOOK, self.size_bytes - at)):
                if flags & _DIRTY:
                    yield at, length
                at += length
            if at == before:
                raise Unavailable("QEMU told nothing about what changed on the disk")

    def read(self, offset: int, length: int) -> bytearray:
        """Return bytes of the disk."""
        result = bytearray(length)
        for kind, payload in self._asked(_READ, offset, length):
            if kind not in (_CHUNK_DATA, _CHUNK_HOLE):
                continue
            at = int.from_bytes(payload[:8]) - offset
            if kind == _CHUNK_DATA:
                end = at + len(payload) - 8
                if at < 0 or end > length:
                    raise Unavailable("QEMU sent other bytes of the disk than were asked for")
                result[at:end] = memoryview(payload)[8:]
        return result

    def _status(self, offset: int, length: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for kind, payload in self._asked(_STATUS, offset, length):
            if kind == _CHUNK_STATUS:
                found += list(struct.iter_unpack(">II", payload[4:]))
        return found

    def _asked(self, command: int, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
        try:
            self._handle += 1
            self._socket.sendall(_COMMAND.pack(_COMMAND_MAGIC, 0, command, self._handle, offset, length))
            while True:
                magic, flags, kind, handle, size = _CHUNK.unpack(self._exactly(_CHUNK.size))
                if magic != _CHUNK_MAGIC or handle != self._handle or size > MOST_READ + 64:
                    raise Unavailable("QEMU's answer about the desktop's disk makes no sense")
                payload = self._exactly(size)
                if kind & _ERROR_CHUNK:
                    number = int.from_bytes(payload[:4])
                    raise Unavailable(f"the desktop's disk cannot be read at {offset}: error {number} of QEMU")
                yield kind, payload
                if flags & _LAST:
                    return
        except OSError as error:
            raise Unavailable(f"QEMU stopped lending the desktop's disk: {error}") from error

    def _attach(self, export: bytes, context: bytes) -> None:
        if self._exactly(16) != b"NBDMAGICIHAVEOPT":
            raise Unavailable("what answers on the socket of the backup is not QEMU")
        self._exactly(2)
        self._socket.sendall((3).to_bytes(4))
        self._option(_STRUCTURED, b"")
        named = len(export).to_bytes(4) + export
        if context:
            query = named + (1).to_bytes(4) + len(context).to_bytes(4) + context
            self._has_bitmap = any(kind == _CONTEXT for kind, _ in self._option(_META, query))
        for kind, payload in self._option(_GO, named + bytes(2)):
            if kind == _INFO and payload[:2] == b"\0\0":
                self.size_bytes = int.from_bytes(payload[2:10])

    def _option(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        self._socket.sendall(_OPTION.pack(_OPTION_MAGIC, option, len(data)) + data)
        answers: list[tuple[int, bytes]] = []
        while True:
            magic, _, kind, length = _ANSWER.unpack(self._exactly(_ANSWER.size))
            if magic != _ANSWER_MAGIC or length > 1 << 16:
                raise Unavailable("what answers on the socket of the backup is not QEMU")
            payload = self._exactly(length)
            if kind & _ERROR_REPLY:
                raise Unavailable(f"QEMU refuses to lend the disk: {payload.decode(errors='replace') or hex(kind)}")
            if kind == _ACK:
                return answers
            answers.append((kind, payload))

    def _exactly(self, count: int) -> bytes:
        got = bytearray(count)
        view, filled = memoryview(got), 0
        while filled < count:
            read = self._socket.recv_into(view[filled:])
            if not read:
                raise Unavailable("QEMU stopped lending the desktop's disk: it hung up")
            filled += read
        return bytes(got)
