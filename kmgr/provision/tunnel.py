"""Bytes between a hypervisor's connection on this server and a stream over the grid port, both ways.

QEMU listens on no network port and speaks to none: what leaves a server goes
through the mutual TLS of the grid port.
"""

import asyncio

from kmgr.grid.port import Stream

_PIECE = 256 * 1024


async def both_ways(near: Stream, far: Stream) -> None:
    """Copy until either side closes; what was read until then has been handed on."""
    tasks = [
        asyncio.create_task(_copy(near.reader, far.writer)),
        asyncio.create_task(_copy(far.reader, near.writer)),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(_PIECE):
        target.write(data)
        await target.drain()
