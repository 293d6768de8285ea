"""Raft's frames over the grid port: `Link` on one TLS connection per pair of servers.

* A frame is four bytes of length, then that many bytes; length 0 only says "alive".
* Of each pair the server with the lower id dials, again and again; the other
  dials too when it has been alone for a while, because the first may not know
  its address yet. A newer connection replaces the older one.
* A connection stands for the dialler only when the other end has said its first
  word: under TLS 1.3 a refused certificate shows itself only then.
* Whoever says nothing for `DEAD_S` is cut off.

Everything runs in the daemon's loop, but `send` may be called on any thread.
"""

import asyncio
import logging
import threading
from collections import deque

from kmgr.clock import Clock
from kmgr.errors import Unavailable
from kmgr.grid.link import LinkEvents
from kmgr.grid.wire import RAFT, Connection, GridPort
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

MAX_FRAME = 8 << 20
MAX_BACKLOG = 2 * MAX_FRAME
TICK_S = 0.2
ALIVE_S = 0.6
DEAD_S = 2.5
BACK_OFF_S = (0.2, 0.4, 0.7, 1.0)
# The side that need not dial waits so long, so that two connections rarely cross.
PATIENCE_S = 2.0


class Channel:
    """One connection for frames: counts what is unsent, hears when it goes silent."""

    def __init__(self, connection: Connection, *, dialled: bool, now: float) -> None:
        self.connection = connection
        self.dialled = dialled
        self.since = now
        self.heard = now
        self._spoke = now
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._frames: deque[bytes] = deque()
        self._backlog = 0
        self._scheduled = False

    def send(self, data: bytes) -> bool:
        """Queue a frame (any thread); False if too much is unsent already."""
        with self._lock:
            if self._backlog + len(data) > MAX_BACKLOG:
                return False
            self._backlog += len(data) + 4
            self._frames.append(len(data).to_bytes(4))
            self._frames.append(data)
            if self._scheduled:
                return True
            self._scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._flush)
        except RuntimeError:  # the loop has ended: this daemon is stopping
            return False
        return True

    def tick(self, now: float) -> bool:
        """Say "alive" when nothing else was said; False if the other end has been silent too long."""
        if now - self._spoke >= ALIVE_S:
            self._spoke = now
            self.send(b"")
        with self._lock:
            if not self._scheduled:
                self._backlog = self.connection.writer.transport.get_write_buffer_size()
        return now - self.heard <= DEAD_S

    async def frame(self, clock: Clock) -> bytes:
        """Return the next frame; b"" if the other end only said that it is alive."""
        size = int.from_bytes(await self.connection.reader.readexactly(4))
        self.heard = clock.monotonic()
        if size > MAX_FRAME:
            raise ValueError(f"a Raft frame of {size} bytes was announced; {MAX_FRAME} is the most")
        parts = []
        while size:
            part = await self.connection.reader.read(size)
            if not part:
                raise EOFError("the connection ended inside a frame")
            self.heard = clock.monotonic()
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _flush(self) -> None:
        with self._lock:
            data = b"".join(self._frames)
            self._frames.clear()
            self._scheduled = False
        if not self.connection.writer.is_closing():
            self.connection.writer.write(data)
        with self._lock:
            waiting = sum(map(len, self._frames))
            self._backlog = waiting + self.connection.writer.transport.get_write_buffer_size()


class RaftLink:
    """The `Link` port on a `GridPort`. `run()` dials and watches until it is cancelled."""

    def __init__(self, port: GridPort, *, clock: Clock) -> None:
        self._port = port
        self._clock = clock
        self._events: LinkEvents | None = None
        self._channels: dict[ServerId, Channel] = {}
        self._tries: dict[ServerId, tuple[int, float]] = {}
        self._dialling: dict[ServerId, asyncio.Task[None]] = {}
        self._alone_since: dict[ServerId, float] = {}
        port.handle(RAFT, self._accepted)

    def attach(self, events: LinkEvents) -> None:
        """Report to `events` from now on."""
        self._events = events

    def send(self, server: ServerId, data: bytes) -> bool:
        """Queue a frame; False if there is no connection or its queue is full."""
        channel = self._channels.get(server)
        return channel is not None and channel.send(data)

    def connected(self) -> frozenset[ServerId]:
        """Return the servers that a connection stands to."""
        return frozenset(self._channels)

    async def run(self) -> None:
        """Keep connections to all other servers until cancelled."""
        last = self._clock.monotonic()
        try:
            while True:
                now = self._clock.monotonic()
                # After a pause of this process itself its peers' words still wait in the sockets: judge nobody by it.
                self._watch(now, judge=now - last < 1.0)
                last = now
                self._dial_missing(now)
                await self._clock.sleep(TICK_S)
        finally:
            for task in self._dialling.values():
                task.cancel()
            await asyncio.gather(*self._dialling.values(), return_exceptions=True)

    def _watch(self, now: float, *, judge: bool) -> None:
        for server, channel in list(self._channels.items()):
            if not channel.tick(now) and judge:
                logger.warning("a server went silent, its connection is cut", extra={"server": server})
                channel.connection.cut()

    def _dial_missing(self, now: float) -> None:
        known = self._port.contacts()
        for server in sorted(known.addresses):
            if server == self._port.server or server in self._channels or server in self._dialling:
                continue
            alone = now - self._alone_since.setdefault(server, now)
            if not known.admits(server) or (self._port.server > server and alone < PATIENCE_S):
                continue
            if self._tries.get(server, (0, 0.0))[1] <= now:
                self._dialling[server] = asyncio.create_task(self._dial(server))

    async def _dial(self, server: ServerId) -> None:
        try:
            connection = await self._port.dial(server, RAFT, timeout_s=2.0)
            try:
                await self._converse(connection, dialled=True)
            finally:
                connection.cut()
        except (Unavailable, OSError, EOFError, ValueError) as error:
            logger.debug("no connection to a server", extra={"server": server, "cause": str(error)})
        finally:
            count = self._tries.get(server, (0, 0.0))[0]
            pause = BACK_OFF_S[min(count, len(BACK_OFF_S) - 1)]
            self._tries[server] = (count + 1, self._clock.monotonic() + pause)
            self._dialling.pop(server, None)

    async def _accepted(self, connection: Connection) -> None:
        await self._converse(connection, dialled=False)

    async def _converse(self, connection: Connection, *, dialled: bool) -> None:
        server = connection.peer
        channel = Channel(connection, dialled=dialled, now=self._clock.monotonic())
        if dialled:
            async with asyncio.timeout(3):
                first = await channel.frame(self._clock)
            if first:
                raise ValueError("the other end began with a frame instead of its greeting")
        else:
            channel.send(b"")
        if not self._install(server, channel):
            connection.cut()
            return
        try:
            while True:
                data = await channel.frame(self._clock)
                if data and self._events is not None and self._channels.get(server) is channel:
                    self._events.frame(server, data)
        finally:
            self._uninstall(server, channel)

    def _install(self, server: ServerId, channel: Channel) -> bool:
        older = self._channels.get(server)
        if older is not None:
            # Two that crossed: both ends keep the one dialled by the lower id.
            ours_by_rule = (self._port.server < server) == older.dialled
            crossed = channel.since - older.since < 1.0 and older.dialled != channel.dialled
            if crossed and ours_by_rule:
                return False
            older.connection.cut()
        self._channels[server] = channel
        self._tries.pop(server, None)
        if self._events is not None:
            self._events.peer_up(server)
        logger.info("connected to a server", extra={"server": server, "dialled": channel.dialled})
        return True

    def _uninstall(self, server: ServerId, channel: Channel) -> None:
        if self._channels.get(server) is not channel:
            return
        del self._channels[server]
        self._alone_since[server] = self._clock.monotonic()
        if self._events is not None:
            self._events.peer_down(server)
        logger.info("disconnected from a server", extra={"server": server})
