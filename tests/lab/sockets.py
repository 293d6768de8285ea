"""Waiting until this process has really let go of a port's connections."""

import asyncio

import psutil


async def let_go(port: int) -> None:
    """Return when no connection at this port of loopback is open in this process any more; fail after 10 s.

    A TLS connection that was closed ends only when the loop has seen the other side's last word, a few turns later.
    A test that ends before leaves it to the garbage collector, whose complaint then hits another test.
    """
    async with asyncio.timeout(10):
        while any(c.laddr[1:] == (port,) for c in psutil.Process().net_connections("tcp")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
