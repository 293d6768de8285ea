"""A TLS connection over a socket of its own, for what asyncio's streams are too slow for: the log's frames.

Handshake and first words run on the daemon's loop (`shake`, `read_exactly`). From
then on any one thread reads and writes without ever waiting, and learns from its
own poll when to try again. `cut` may be called on any thread; whoever made the
line closes it.
"""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

# More than a TLS record holds: after such a read nothing is left behind in the TLS layer that a poll cannot see.
RECORD = 1 << 16
_PART_S = 1.0

T = TypeVar("T")


class Line:
    """One end. Belongs to the loop that runs when it is made."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext, *, server_side: bool) -> None:
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tls = tls.wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)
        self.descriptor = self.tls.fileno()
        # Held while anything is done with the socket, so that its number cannot be another one's meanwhile.
        self.lock = threading.RLock()
        self.closed = False
        self.over: asyncio.Future[Exception | None] = self._loop.create_future()

    # The loop's part.

    async def shake(self) -> None:
        """Do the TLS handshake."""
        await self._patiently(self.tls.do_handshake)

    async def read_exactly(self, size: int) -> bytes:
        """Return so many bytes and leave the next ones alone."""
        data = b""
        while size:
            part = await self._patiently(partial(self.tls.recv, size))
            if not part:
                raise EOFError("the connection ended")
            data += part
            size -= len(part)
        return data

    async def part(self) -> None:
        """End in order: what was written arrives; what the other end still says is not looked at."""
        with contextlib.suppress(OSError, EOFError):
            async with asyncio.timeout(_PART_S):
                with contextlib.suppress(ssl.SSLWantReadError):
                    self.tls.unwrap()
                while await self._patiently(lambda: self.tls.recv(RECORD)):
                    pass

    async def _patiently(self, action: Callable[[], T]) -> T:
        while True:
            with self.lock:
                if self.closed:
                    raise EOFError("the connection was cut")
                try:
                    return action()
                except ssl.SSLWantReadError:
                    begin, end = self._loop.add_reader, self._loop.remove_reader
                except ssl.SSLWantWriteError:
                    begin, end = self._loop.add_writer, self._loop.remove_writer
            await ready(self.descriptor, begin, end)

    # Any thread's part.

    def read(self) -> bytes | None:
        """Return what is there, None if nothing is, b"" at the end."""
        with self.lock:
            if self.closed:
                return b""
            try:
                return self.tls.recv(RECORD)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return None

    def write(self, data: bytes | memoryview) -> int:
        """Write some of it and return how much; after a 0 the same bytes must come again, once there is room."""
        with self.lock:
            if self.closed:
                raise EOFError("the connection was cut")
            try:
                return self.tls.send(data)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return 0

    def cut(self, why: Exception | None = None) -> None:
        """End the connection at once, both ways; whoever waits for `over` is told why."""
        with self.lock:
            if self.closed:
                return
            with contextlib.suppress(OSError):
                # Not the TLS socket's own: that would go on in plain text.
                socket.socket.shutdown(self.tls, socket.SHUT_RDWR)
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(self._end, why)

    def close(self) -> None:
        """Give the socket back; safe to call twice."""
        with self.lock:
            self.closed = True
            self.tls.close()
        self._end(None)

    def _end(self, why: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(why)


async def dial(host: str, port: int, tls: ssl.SSLContext) -> Line:
    """Connect and shake hands."""
    loop = asyncio.get_running_loop()
    failed: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failed = error
            continue
        except BaseException:
            sock.close()
            raise
        return await shaken(sock, tls, server_side=False)
    raise failed or OSError(f"{host} has no address")


async def shaken(sock: socket.socket, tls: ssl.SSLContext, *, server_side: bool) -> Line:
    """Return the line over a socket once the TLS handshake is done; if it is not, the socket is closed."""
    line = Line(sock, tls, server_side=server_side)
    try:
        await line.shake()
    except BaseException:
        line.close()
        raise
    return line


async def ready(descriptor: int, begin: Callable[..., object], end: Callable[[int], object]) -> None:
    """Wait for a socket with the running loop's `add_reader` and `remove_reader`, or those for writing."""
    found: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    begin(descriptor, _mark, found)
    try:
        await found
    finally:
        end(descriptor)


def _mark(found: asyncio.Future[None]) -> None:
    if not found.done():
        found.set_result(None)
