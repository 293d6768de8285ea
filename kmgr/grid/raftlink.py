"""Raft's frames over the grid port: `Link` on one TLS connection per pair of servers.

* Of each pair the server with the lower id dials, again and again; the other
  dials too when it has been alone for a while, because the first may not know
  its address yet. A newer connection replaces the older one.
* A connection stands for the dialler only when the other end has said its first
  word: under TLS 1.3 a refused certificate shows itself only then.
* Whoever says nothing for `DEAD_S` is cut off.

Connections are made and ended in the daemon's loop. In between the raft thread
reads and writes them itself (`turn`): a frame that had to pass through the loop
would wait for it twice.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from kmgr.clock import Clock
from kmgr.errors import Unavailable
from kmgr.grid.channel import ALIVE, Channel
from kmgr.grid.link import LinkEvents
from kmgr.grid.pump import WRITE, Pump
from kmgr.grid.wire import GridPort, RaftConnection
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

TICK_S = 0.2
BACK_OFF_S = (0.2, 0.4, 0.7, 1.0)
# The side that need not dial waits so long, so that two connections rarely cross.
PATIENCE_S = 2.0


class RaftLink:
    """The `Link` port on a `GridPort`. `run()` dials until it is cancelled."""

    def __init__(self, port: GridPort, *, clock: Clock) -> None:
        self._port = port
        self._clock = clock
        self._events: LinkEvents | None = None
        self._pump = Pump()
        self._channels: dict[ServerId, Channel] = {}
        self._by_descriptor: dict[int, Channel] = {}
        self._unflushed: set[Channel] = set()
        self._looked = 0.0
        self._closed = False
        self._tries: dict[ServerId, tuple[int, float]] = {}
        self._dialling: dict[ServerId, asyncio.Task[None]] = {}
        self._alone_since: dict[ServerId, float] = {}
        port.handle_raft(self._accepted)

    def attach(self, events: LinkEvents) -> None:
        """Report to `events` from now on."""
        self._events = events

    # The raft thread.

    def send(self, server: ServerId, data: bytes) -> bool:
        """Queue a frame; False if there is no connection or its queue is full."""
        channel = self._channels.get(server)
        if channel is None or not channel.send(data):
            return False
        self._unflushed.add(channel)
        return True

    def flush(self) -> None:
        """Write what is queued, as far as the sockets take it."""
        while self._unflushed:
            channel = self._unflushed.pop()
            if not channel.waiting:
                self._flush(channel)

    def turn(self, timeout_s: float) -> None:
        """Flush, wait for frames or a wake, and report what arrived."""
        self.flush()
        for descriptor, events in self._pump.wait(timeout_s):
            channel = self._by_descriptor.get(descriptor)
            if channel is None:
                continue
            if events & WRITE:
                self._flush(channel)
            if events & ~WRITE:
                self._receive(channel)
        now = self._clock.monotonic()
        if now - self._looked >= TICK_S:
            # After a pause of this thread itself its peers' words still wait in the sockets: judge nobody by it.
            self._watch(now, judge=now - self._looked < 1.0)
            self._looked = now

    def _flush(self, channel: Channel) -> None:
        with self._ending(channel), channel.line.lock:
            waiting = not channel.flush()
            if waiting != channel.waiting and not channel.line.closed:
                channel.waiting = waiting
                self._pump.await_room(channel.line.descriptor, wanted=waiting)

    def _receive(self, channel: Channel) -> None:
        # Under its lock: nothing of an older connection is reported once a newer one is.
        with self._ending(channel), channel.line.lock:
            for data in channel.receive(self._clock.monotonic()):
                if self._events is not None and self._channels.get(channel.server) is channel:
                    self._events.frame(channel.server, data)

    @contextlib.contextmanager
    def _ending(self, channel: Channel) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError) as error:
            self._end(channel, error)

    def _watch(self, now: float, *, judge: bool) -> None:
        for server, channel in list(self._channels.items()):
            if not channel.tick(now) and judge and not channel.ended:
                logger.warning("a server went silent, its connection is cut", extra={"server": server})
                self._end(channel, None)
            self._unflushed.add(channel)
        self.flush()

    def _end(self, channel: Channel, why: Exception | None) -> None:
        if channel.ended:
            return
        channel.ended = True
        with channel.line.lock:
            if not channel.line.closed:
                self._pump.forget(channel.line.descriptor)
            channel.line.cut(why)

    # Any thread.

    def wake(self) -> None:
        """End the present or the next turn now."""
        self._pump.ring()

    def connected(self) -> frozenset[ServerId]:
        """Return the servers that a connection stands to."""
        return frozenset(self._channels)

    def close(self) -> None:
        """Cut all connections, for nobody turns any more."""
        self._closed = True
        for channel in list(self._channels.values()):
            channel.line.cut()

    # The loop.

    async def run(self) -> None:
        """Dial all other servers that there is no connection to, until cancelled."""
        try:
            while True:
                if not self._closed:
                    self._dial_missing(self._clock.monotonic())
                await self._clock.sleep(TICK_S)
        finally:
            for task in self._dialling.values():
                task.cancel()
            await asyncio.gather(*self._dialling.values(), return_exceptions=True)

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
            connection = await self._port.dial_raft(server, timeout_s=2.0)
            try:
                async with asyncio.timeout(3):
                    if await connection.line.read_exactly(len(ALIVE)) != ALIVE:
                        raise ValueError("the other end began with a frame instead of its greeting")
                await self._converse(connection, dialled=True)
            finally:
                connection.line.close()
        except (Unavailable, OSError, EOFError, ValueError) as error:
            logger.debug("no connection to a server", extra={"server": server, "cause": str(error)})
        finally:
            count = self._tries.get(server, (0, 0.0))[0]
            pause = BACK_OFF_S[min(count, len(BACK_OFF_S) - 1)]
            self._tries[server] = (count + 1, self._clock.monotonic() + pause)
            self._dialling.pop(server, None)

    async def _accepted(self, connection: RaftConnection) -> None:
        connection.line.write(ALIVE)
        await self._converse(connection, dialled=False)

    async def _converse(self, connection: RaftConnection, *, dialled: bool) -> None:
        """Let the raft thread have the connection until it ends; raise what ended it."""
        server, line = connection.server, connection.line
        channel = Channel(server, line, dialled=dialled, now=self._clock.monotonic())
        if not self._install(server, channel):
            return
        try:
            why = await line.over
        finally:
            self._uninstall(server, channel)
        if why is not None:
            raise why

    def _install(self, server: ServerId, channel: Channel) -> bool:
        if self._closed or channel.line.over.done():
            return False
        older = self._channels.get(server)
        if older is not None:
            # Two that crossed: both ends keep the one dialled by the lower id.
            ours_by_rule = (self._port.server < server) == older.dialled
            crossed = channel.since - older.since < 1.0 and older.dialled != channel.dialled
            if crossed and ours_by_rule:
                return False
            older.line.close()
        # As one step for the thread that turns: it may want to await room before the socket is watched.
        with channel.line.lock:
            self._channels[server] = channel
            self._tries.pop(server, None)
            if self._events is not None:
                self._events.peer_up(server)
            self._by_descriptor[channel.line.descriptor] = channel
            self._pump.watch(channel.line.descriptor)
        logger.info("connected to a server", extra={"server": server, "dialled": channel.dialled})
        return True

    def _uninstall(self, server: ServerId, channel: Channel) -> None:
        channel.line.close()
        if self._by_descriptor.get(channel.line.descriptor) is channel:
            del self._by_descriptor[channel.line.descriptor]
        if self._channels.get(server) is not channel:
            return
        del self._channels[server]
        self._alone_since[server] = self._clock.monotonic()
        if self._events is not None:
            self._events.peer_down(server)
        logger.info("disconnected from a server", extra={"server": server})
