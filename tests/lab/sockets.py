"""Waiting until this process has really let go of its connections."""

import asyncio
from collections.abc import Mapping

import psutil


def open_transports(loop: asyncio.AbstractEventLoop) -> list[asyncio.Transport]:
    """Return the connections of a loop that have their socket; asyncio lists closed ones until they are freed."""
    held: Mapping[int, asyncio.Transport] = getattr(loop, "_transports", {})
    return [one for one in tuple(held.values()) if getattr(one, "_sock", None) is not None]


async def all_gone(within_s: float) -> list[asyncio.Transport]:
    """Wait until this loop's connections have ended, or so long; return those that have not."""
    loop = asyncio.get_running_loop()
    for _ in range(round(within_s / 0.01)):
        if not open_transports(loop):
            break
        await asyncio.sleep(0.01)
    return open_transports(loop)


async def let_go(port: int) -> None:
    """Return when no connection at this port of loopback is open in this process any more; fail after 10 s.

    A TLS connection that was closed ends only when the loop has seen the other side's last word, a few turns later.
    A test that ends before leaves it to the garbage collector, whose complaint then hits another test.
    """
    async with asyncio.timeout(10):
        while any(c.laddr[1:] == (port,) for c in psutil.Process().net_connections("tcp")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
