"""What is said on a stream of blocks, and the receiver's end of it.

The receiver sends questions of 8 bytes: u32 piece, u16 the wanted blocks of it (bit k: its block k), u8 flags
(1: insist, 2: it may come compressed), u8 zero. Its first words are `HELLO`; it says them again when it has asked
nothing for a while, for the place of a receiver that is silent for `SILENT_S` is given to others. The source sends
frames: u8 kind, three zeros, u32 piece, u32 length, and that many bytes:

* HAVE: the set of pieces it has now, little-endian; without bytes: all of them.
* NEWS: pieces that it got since, each u32. GIVEN: pieces that it gave to other receivers, each u32.
* BLOCKS: the wanted blocks of a piece, one after the other. SQUEEZED: the same as one frame of zstd; the question
  says how long it is when expanded, and their hashes are those of the expanded blocks.
* LACKING: it doesn't have that piece. DECLINED: it gave it to another receiver and wants to give others first.

Questions are answered in their order; HAVE, NEWS and GIVEN come between. Numbers are big-endian.

Runs in the daemon's loop.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from kmgr.errors import Unavailable
from kmgr.grid.port import Stream
from kmgr.replica import zstd
from kmgr.replica.fetch import Ask, pieces_of

HEAD = struct.Struct(">B3xII")
QUESTION = struct.Struct(">IHBx")
HELLO = QUESTION.pack(0xFFFFFFFF, 0, 0)
# A receiver that lost its power says nothing more, and nothing else would ever tell.
SILENT_S = 30.0
INSIST = 1
SQUEEZE = 2
_NUMBER = struct.Struct(">I")
# What one source may have sent ahead of what this server could write: its questions limit it, this is for liars.
_MOST_QUEUED = 16 << 20
_SPARES = 8
# How much of a piece must have arrived before the loop is woken: many small readings cost more than their bytes.
# A TLS record that is half here hides up to 16 KiB from the count.
_WORTH_WAKING = 256 * 1024
_HIDDEN = 20 * 1024


class Kind(IntEnum):
    """What a frame is about."""

    HAVE = 0
    NEWS = 1
    GIVEN = 2
    BLOCKS = 3
    LACKING = 4
    DECLINED = 5
    SQUEEZED = 6


_PIECES = (Kind.BLOCKS, Kind.SQUEEZED)


class Buffers:
    """Room for pieces, used again and again by all lanes of a copy; what was used last is warm and comes first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._spares: list[bytearray] = []

    def take(self) -> bytearray:
        """Return one, whatever may be in it."""
        return self._spares.pop() if self._spares else bytearray(self.size)

    def give_back(self, buffer: object) -> None:
        """Let it be used again, if it is one of these."""
        if isinstance(buffer, bytearray) and len(buffer) == self.size and len(self._spares) < _SPARES:
            self._spares.append(buffer)

    def give_back_unused(self, data: bytes | bytearray | memoryview) -> None:
        """Let the one with these data be used again, unless somebody (a connection) still has a view of it."""
        if not isinstance(data, memoryview):
            return
        buffer = data.obj
        try:
            data.release()
            if isinstance(buffer, bytearray):
                buffer.append(buffer.pop())  # refused as long as anybody looks at it
        except BufferError:
            return
        self.give_back(buffer)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a source; `data` may be used until it is handed back."""

    kind: Kind
    piece: int
    data: memoryview


def spelled(pieces: list[int]) -> bytes:
    """Spell piece numbers for NEWS and GIVEN."""
    return b"".join(map(_NUMBER.pack, pieces))


def numbers(data: memoryview, *, below: int) -> int:
    """Read the pieces of NEWS and GIVEN, as a set; numbers that no piece has are passed over."""
    told = (number for (number,) in _NUMBER.iter_unpack(data[: len(data) // 4 * 4]))
    return pieces_of(number for number in told if number < below)


class Inlet(asyncio.BufferedProtocol):
    """The receiver's end: bytes go from the wire into one buffer per frame, without a copy between."""

    def __init__(self, stream: Stream, *, pieces: int, buffers: Buffers) -> None:
        self._transport = cast(asyncio.Transport, stream.writer.transport)
        self._buffers = buffers
        self._largest = {
            Kind.HAVE: -(-pieces // 8),
            Kind.NEWS: 4 * pieces,
            Kind.GIVEN: 4 * pieces,
            Kind.BLOCKS: buffers.size,
            Kind.LACKING: 0,
            Kind.DECLINED: 0,
            Kind.SQUEEZED: buffers.size,
        }
        self._head = memoryview(bytearray(HEAD.size))
        self._target = self._head
        self._at = 0
        self._kind: Kind | None = None
        self._piece = 0
        self._frames: deque[Frame] = deque()
        self._queued = 0
        self._end = ""
        self._waiting: asyncio.Future[None] | None = None
        self._socket = _own_socket(stream)
        self._wakes_at = 1
        self._transport.set_protocol(self)
        self._transport.write(HELLO)

    def ask(self, ask: Ask, wanted: int) -> None:
        """Ask for some blocks of a piece."""
        if not self._transport.is_closing():
            flags = INSIST * ask.insist | SQUEEZE * zstd.available()
            self._transport.write(QUESTION.pack(ask.piece, wanted, flags))

    def stay(self) -> None:
        """Let the source know that there is still somebody here."""
        if not self._transport.is_closing():
            self._transport.write(HELLO)

    async def next(self) -> Frame:
        """Return the next frame; raise `Unavailable` if the stream ended."""
        while not self._frames:
            if self._end:
                raise Unavailable(self._end)
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        frame = self._frames.popleft()
        if self._queued >= _MOST_QUEUED > self._queued - len(frame.data):
            self._transport.resume_reading()
        self._queued -= len(frame.data)
        return frame

    def done_with(self, frame: Frame) -> None:
        """Hand back the buffer of a frame: the next one may land in it."""
        if frame.kind in _PIECES:
            self._buffers.give_back(frame.data.obj)

    def close(self, why: str) -> None:
        """Hang up; whoever waits for a frame is told why."""
        self._ended(why)
        self._abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Tell the transport where the next bytes belong."""
        return self._target[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        """Hear that bytes were put there."""
        self._at += nbytes
        if self._at == len(self._target):
            self._filled()
        self._wake_at(max(1, min(_WORTH_WAKING, len(self._target) - self._at - _HIDDEN)))

    def eof_received(self) -> None:
        """Hear that the source has hung up."""
        self._ended("it hung up")

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear that the connection is gone."""
        self._ended(f"it broke: {exc}" if exc else "it hung up")

    def _filled(self) -> None:
        if self._kind is None:
            kind, self._piece, length = HEAD.unpack(self._head)
            if kind not in self._largest or length > self._largest[Kind(kind)]:
                self._ended(f"a frame of kind {kind} and {length} bytes was announced; that cannot be")
                self._abort()
                # Whatever is still delivered goes where nobody looks.
                self._at = 0
                return
            self._kind = Kind(kind)
            self._target, self._at = self._room(length), 0
            if length:
                return
        self._frames.append(Frame(self._kind, self._piece, self._target))
        self._queued += len(self._target)
        if self._queued >= _MOST_QUEUED > self._queued - len(self._target):
            self._transport.pause_reading()
        self._target, self._at, self._kind = self._head, 0, None
        self._wake()

    def _wake_at(self, count: int) -> None:
        if count != self._wakes_at and self._socket is not None:
            self._wakes_at = count
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def _room(self, length: int) -> memoryview:
        if self._kind in _PIECES:
            return memoryview(self._buffers.take())[:length]
        return memoryview(bytearray(length))

    def _ended(self, why: str) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._end = self._end or f"the stream of blocks ended: {why}"
        self._wake()

    def _abort(self) -> None:
        # Python 3.11's TLS transport stumbles over its own missing protocol when it had ended by itself before.
        with contextlib.suppress(AttributeError):
            self._transport.abort()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def _own_socket(stream: Stream) -> socket.socket | None:
    """Return the stream's socket under a number of its own, for its options only; None where there is none."""
    found = stream.writer.get_extra_info("socket")
    return None if found is None else socket.socket(fileno=os.dup(found.fileno()))
