"""Waiting until this process has really let go of its connections."""

import asyncio
from collections.abc import Mapping


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
