"""The door of the grid port: accepts TCP connections, lets a bounded number shake hands, and forgets slow ones.

Until its TLS handshake is done a connection is a stranger's. Strangers have a
few seconds each, a few places per address and a few in all; whoever is one too
many is hung up on at once, so that no crowd of them can use up this process's
files or hold up the servers of the grid. Addresses of members have their places apart: while strangers
elsewhere take all of theirs, a member that lost its connections still gets in.

Whoever offers the word for lines gets a `Line` of its own, everybody else asyncio's
streams; the first bytes are looked at for that, and left where they are. Runs in
the daemon's loop.
"""

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from kmgr.grid import hello
from kmgr.grid.line import Line, ready, shaken

logger = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
# Connections that shake hands at the same time: from all addresses that are no member's, and from any one address.
AT_ONCE = 256
AT_ONCE_FROM_ONE = 128
_BACKLOG = 128
_OUT_OF_FILES_S = 0.5

Inside: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
InsideLine: TypeAlias = Callable[[Line, str], Awaitable[None]]


class Gate:
    """Listens and shakes hands; `inside` gets every connection that did, `turned_away` the reasons of the others.

    `inside_line` gets those that offered `line_word`, with the address that they came from.
    """

    def __init__(
        self,
        tls: ssl.SSLContext,
        *,
        limit: int,
        line_word: str,
        inside: Inside,
        inside_line: InsideLine,
        turned_away: Callable[[str, str], None],
        is_members: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._tls = tls
        self._limit = limit
        self._line_word = line_word.encode()
        self._inside = inside
        self._inside_line = inside_line
        self._turned_away = turned_away
        self._is_members = is_members
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: Counter[str] = Counter()
        # How many of these come from addresses that were no member's when they came.
        self._crowd = 0

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
            apart = self._is_members(remote)
            if self._strangers[remote] >= AT_ONCE_FROM_ONE or (self._crowd >= AT_ONCE and not apart):
                sock.close()
                self._turned_away(remote, "too many connections that do not finish their handshake come from it")
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._strangers[remote] += 1
            self._crowd += not apart
            task = loop.create_task(self._serve(sock, remote, apart=apart))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket, remote: str, *, apart: bool) -> None:
        streams, line = None, None
        try:
            began = asyncio.get_running_loop().time()
            words = await _offered(sock, HANDSHAKE_S)
            left = max(0.1, began + HANDSHAKE_S - asyncio.get_running_loop().time())
            if self._line_word in words:
                async with asyncio.timeout(left):
                    line = await shaken(sock, self._tls, server_side=True)
            else:
                streams = await self._streams(sock, left)
        except (OSError, EOFError) as error:
            sock.close()
            if (why := _why_no_handshake(error)) is not None:
                self._turned_away(remote, why)
        except BaseException:
            sock.close()
            raise
        finally:
            self._crowd -= not apart
            self._strangers[remote] -= 1
            if not self._strangers[remote]:
                del self._strangers[remote]
        if streams is not None:
            await self._inside(*streams)
        if line is not None:
            await self._inside_line(line, remote)

    async def _streams(
        self, sock: socket.socket, patience_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=self._limit, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, sock, ssl=self._tls, ssl_handshake_timeout=patience_s
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _offered(sock: socket.socket, patience_s: float) -> frozenset[bytes]:
    """Return what a stranger offers to speak as soon as its hello is there; it stays in the socket."""
    loop = asyncio.get_running_loop()
    data, wanted = b"", hello.RECORD
    async with asyncio.timeout(patience_s):
        while 0 < len(data) < wanted or not data:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            await ready(sock.fileno(), loop.add_reader, loop.remove_reader)
            before, data = data, sock.recv(wanted, socket.MSG_PEEK)
            if len(data) <= len(before):  # it has hung up
                break
            wanted = hello.needed(data)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return hello.offered(data)


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
        case ConnectionAbortedError() | TimeoutError():
            return f"it did not finish its handshake within {HANDSHAKE_S:g} s"
    return None
