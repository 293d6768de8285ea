"""Large bodies: asked for when they are wanted, and refused so that the sender hears why.

A program that waits for `100 Continue` is told to go on only by whoever reads the
body. One that just sends is answered at once, and what it still sends is read
and dropped for a while: if the connection were closed under it, it would see a
broken pipe and never look for the answer.
"""

import asyncio
from contextlib import suppress

from aiohttp import hdrs, web

# What is dropped at most after a refusal, in bytes and in time.
MOST_DROPPED = 64 << 20
_DROPPING_S = 30.0
# Shorter bodies are here before anybody could break off, and the connection is kept.
_SHORT = 64 << 10
_GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"


async def not_yet(_: web.Request) -> None:
    """Let the sender wait; the handler asks for the body with `go_on`. An `expect_handler`."""


async def go_on(request: web.Request) -> None:
    """Ask for the body, if its sender waits for that."""
    if _waits(request) and request.transport is not None:
        request.transport.write(_GO_ON)


async def refuse(request: web.Request, answer: web.Response) -> web.Response:
    """Send a refusal; where much of a body is still to come, drop some of it, then close the connection."""
    whole = request.content_length
    if request.content.is_eof() or (whole is not None and whole <= _SHORT):
        return answer
    answer.force_close()
    await answer.prepare(request)
    await answer.write_eof()
    if not _waits(request):
        with suppress(TimeoutError, OSError, web.RequestPayloadError):
            await _drop(request)
    return answer


async def _drop(request: web.Request) -> None:
    dropped = 0
    async with asyncio.timeout(_DROPPING_S):
        while dropped < MOST_DROPPED and not request.content.at_eof():
            dropped += len(await request.content.readany())


def _waits(request: web.Request) -> bool:
    return request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
