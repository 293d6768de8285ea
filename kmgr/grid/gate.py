"""The door of the grid port: accepts TCP connections, lets a bounded number shake hands, and forgets slow ones.

Until its TLS handshake is done a connection is a stranger's. Strangers have a
few seconds each, a few places per address and a few in all; whoever is one too
many is hung up on at once, so that no crowd of them can use up this process's
files or hold up the servers of the grid. Runs in the daemon's loop.
"""

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeAlias

logger = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
# Strangers that shake hands at the same time: in all, and from one address.
AT_ONCE = 256
AT_ONCE_FROM_ONE = 128
_BACKLOG = 128
_OUT_OF_FILES_S = 0.5

Inside: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Gate:
    """Listens and shakes hands; `inside` gets every connection that did, `turned_away` the reasons of the others."""

    def __init__(
        self, tls: ssl.SSLContext, *, limit: int, inside: Inside, turned_away: Callable[[str, str], None]
    ) -> None:
        self._tls = tls
        self._limit = limit
        self._inside = inside
        self._turned_away = turned_away
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: Counter[str] = Counter()

    async def open(self, host: str, port: int) -> None:
        """Listen; `OSError` if the port cannot be had."""
        loop = asyncio.get_running_loop()
        self._sockets = await _listening(loop, host, port)
        self._accepting = [loop.create_task(self._accept(sock)) for sock in self._sockets]

    @property
    def port(self) -> int:
        """Return the port number that it listens on."""
        return int(self._sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and wait until every connection's handler was cancelled."""
        for task in (*self._accepting, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._accepting, *self._tasks, return_exceptions=True)
        for sock in self._sockets:
            sock.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                logger.warning("the grid port cannot accept connections now", extra={"cause": str(error)})
                await asyncio.sleep(_OUT_OF_FILES_S)
                continue
            remote = str(address[0])
            if self._strangers.total() >= AT_ONCE or self._strangers[remote] >= AT_ONCE_FROM_ONE:
                sock.close()
                self._turned_away(remote, "too many connections that do not finish their handshake come from it")
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._strangers[remote] += 1
            task = loop.create_task(self._serve(sock, remote))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket, remote: str) -> None:
        try:
            connection = await self._shaken(sock, remote)
        finally:
            self._strangers[remote] -= 1
            if not self._strangers[remote]:
                del self._strangers[remote]
        if connection is not None:
            await self._inside(*connection)

    async def _shaken(
        self, sock: socket.socket, remote: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=self._limit, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_S
            )
        except (OSError, EOFError) as error:
            sock.close()
            if (why := _why_no_handshake(error)) is not None:
                self._turned_away(remote, why)
            return None
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _listening(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[socket.socket]:
    found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in sorted(set(found)):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.bind(address)
            sock.listen(_BACKLOG)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _why_no_handshake(error: Exception) -> str | None:
    """Return what a stranger did wrong; None for one that only went away, as port scans and probes do."""
    match error:
        case ssl.SSLCertVerificationError(verify_message=str(text)):
            return f"its certificate is not one of this grid: {text}"
        case ssl.SSLError():
            return f"it does not speak TLS 1.3 as servers of a grid do ({error.reason or error})"
        case ConnectionAbortedError():
            return f"it did not finish its handshake within {HANDSHAKE_S:g} s"
    return None
