"""Bytes between a hypervisor's connection on this server and a stream over the grid port, both ways.

QEMU listens on no network port and speaks to none: what leaves a server goes
through the mutual TLS of the grid port.
"""

import asyncio
from collections.abc import Callable

from kmgr.grid.port import Stream
from kmgr.grid.waits import first_of

_PIECE = 256 * 1024


async def both_ways(near: Stream, far: Stream) -> None:
    """Copy until either side closes; what was read until then has been handed on."""
    await first_of(copied(near.reader, far.writer, piece=_PIECE), copied(far.reader, near.writer, piece=_PIECE))


async def copied(
    source: asyncio.StreamReader,
    target: asyncio.StreamWriter,
    *,
    piece: int = 64 * 1024,
    heard: Callable[[bytes], None] | None = None,
) -> None:
    """Copy until the source ends, at most `piece` bytes at a time; `heard` is given each before it is handed on."""
    while data := await source.read(piece):
        if heard is not None:
            heard(data)
        target.write(data)
        await target.drain()
