"""The first words on a connection between two servers, whoever reads and writes it: asyncio's streams or a `Line`."""

import asyncio
import contextlib
import ssl
from typing import Protocol

from kmgr.grid import fence
from kmgr.grid.fence import Greeting


class Ends(Protocol):
    """A connection on which two servers may introduce themselves."""

    @property
    def tls(self) -> ssl.SSLObject | ssl.SSLSocket:
        """The TLS layer, which knows the other end's certificate."""
        ...

    async def read_exactly(self, size: int) -> bytes:
        """Return so many bytes."""
        ...

    def write(self, data: bytes) -> object:
        """Send a few bytes."""
        ...

    def cut(self) -> None:
        """End it at once."""
        ...


class Streams:
    """The `Ends` of a connection that asyncio reads and writes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def tls(self) -> ssl.SSLObject:
        """The TLS layer."""
        found: ssl.SSLObject = self._writer.get_extra_info("ssl_object")
        return found

    async def read_exactly(self, size: int) -> bytes:
        """Return so many bytes."""
        return await self._reader.readexactly(size)

    def write(self, data: bytes) -> None:
        """Send a few bytes."""
        self._writer.write(data)

    def cut(self) -> None:
        """End it at once."""
        abort(self._writer)


async def greeting_of(ends: Ends) -> Greeting:
    """Return the other end's first words; raise `ValueError` if they are none."""
    size = int.from_bytes(await ends.read_exactly(4))
    if size > fence.MOST_BYTES:
        raise ValueError("its first words are no greeting: it may run another version of kmgr")
    return fence.read(await ends.read_exactly(size))


def abort(writer: asyncio.StreamWriter) -> None:
    """End a stream at once; what is still buffered is lost."""
    # Python 3.11's TLS transport stumbles over its own missing protocol when it had ended by itself before.
    with contextlib.suppress(AttributeError):
        writer.transport.abort()
