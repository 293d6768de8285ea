"""Frames on one line: queued and cut into bytes on the way out, put together on the way in, silence noticed.

A frame is four bytes of length, then that many bytes; length 0 only says "alive".
Belongs to the thread that turns the link, but for its making and its end.
"""

from collections import deque
from collections.abc import Iterator

from kmgr.grid.line import Line
from kmgr.ids import ServerId

MAX_FRAME = 8 << 20
MAX_BACKLOG = 2 * MAX_FRAME
ALIVE = b"\0\0\0\0"
ALIVE_S = 0.6
DEAD_S = 2.5
# So much is read from one server before the others have their turn.
_AT_ONCE = 1 << 20
# A TLS record; less than that means that nothing more is there.
_FULL = 1 << 14


class Channel:
    """One connection for frames: counts what is unsent, hears when it goes silent."""

    def __init__(self, server: ServerId, line: Line, *, dialled: bool, now: float) -> None:
        self.server = server
        self.line = line
        self.dialled = dialled
        self.since = now
        self.heard = now
        # Whether the socket had no room at the last flush.
        self.waiting = False
        self.ended = False
        self._spoke = now
        self._queue: deque[bytes] = deque()
        self._going = memoryview(b"")
        self._backlog = 0
        self._arrived = bytearray()

    def send(self, data: bytes) -> bool:
        """Queue a frame; False if too much is unsent already."""
        if self.ended or self._backlog + len(data) > MAX_BACKLOG:
            return False
        self._backlog += len(data) + 4
        self._queue.append(len(data).to_bytes(4))
        self._queue.append(data)
        return True

    def flush(self) -> bool:
        """Write what is queued; False if there is no room for the rest now."""
        while self._going or self._queue:
            if not self._going:
                self._going = memoryview(b"".join(self._queue))
                self._queue.clear()
            count = self.line.write(self._going)
            if not count:
                return False
            self._backlog -= count
            self._going = self._going[count:]
        return True

    def receive(self, now: float) -> Iterator[bytes]:
        """Yield the frames that have arrived, without the signs of life; raise if there will be no more."""
        room = _AT_ONCE
        while room > 0:
            data = self.line.read()
            if data is None:
                return
            if not data:
                raise EOFError("the connection ended")
            self.heard = now
            self._arrived += data
            yield from self._whole()
            if len(data) < _FULL:
                return
            room -= len(data)

    def tick(self, now: float) -> bool:
        """Say "alive" when nothing else was said; False if the other end has been silent too long."""
        if now - self._spoke >= ALIVE_S:
            self._spoke = now
            self.send(b"")
        return now - self.heard <= DEAD_S

    def _whole(self) -> Iterator[bytes]:
        arrived = self._arrived
        while len(arrived) >= 4:
            size = int.from_bytes(arrived[:4])
            if size > MAX_FRAME:
                raise ValueError(f"a Raft frame of {size} bytes was announced; {MAX_FRAME} is the most")
            if len(arrived) < 4 + size:
                return
            data = bytes(arrived[4 : 4 + size])
            del arrived[: 4 + size]
            if data:
                yield data
