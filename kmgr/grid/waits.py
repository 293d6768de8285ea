"""Ways of waiting that pages, wires and islands share."""

import asyncio
from collections.abc import Awaitable


async def first_of(*ways: Awaitable[object]) -> None:
    """Return as soon as one of them ends, and end the others."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
