"""A desktop's screen in the browser: a WebSocket here, a byte stream to the desktop's server.

RFB bytes pass unread and uncompressed (QEMU encodes them already), in pieces as
large as they come; whoever is slower slows the other down. Refusals come as a close code
(4000 + the HTTP status) with the reason in words, which a failed handshake could not carry.
"""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from contextlib import suppress

from aiohttp import WSCloseCode, WSMsgType, web

from kmgr.errors import Conflict, KmgrError, NotAllowed, Refused
from kmgr.grid.port import Stream
from kmgr.web import auth
from kmgr.web.live import HUB
from kmgr.web.services import SERVICES
from kmgr.web.tickets import TICKETS, Ticket

logger = logging.getLogger(__name__)

PROTOCOL = "binary"
OPERATION = "display"
_PIECE = 256 * 1024
_WRITER_LIMIT = 1 << 20
_HEARTBEAT_S = 20.0
_CLOSE_S = 2.0
# A close frame carries 125 bytes, two of them the code.
_LONGEST_REASON = 123

SOCKETS: web.AppKey[set[web.WebSocketResponse]] = web.AppKey("display_sockets", set)


def add_routes(app: web.Application) -> None:
    """Add the address of screens."""
    app[SOCKETS] = set()
    app.router.add_get("/display/{ticket}", display)
    app.on_shutdown.append(_close_all)


async def display(request: web.Request) -> web.StreamResponse:
    """Connect a browser with its desktop until either side ends."""
    socket = web.WebSocketResponse(
        protocols=(PROTOCOL,),
        compress=False,
        heartbeat=_HEARTBEAT_S,
        writer_limit=_WRITER_LIMIT,
        timeout=_CLOSE_S,
    )
    if not socket.can_prepare(request):
        raise Refused("This address is for the screen of a desktop: open it from the portal.")
    await socket.prepare(request)
    request.app[SOCKETS].add(socket)
    try:
        code, reason = await _served(request, socket)
        await _close(socket, code, reason)
    finally:
        request.app[SOCKETS].discard(socket)
    return socket


async def _served(request: web.Request, socket: web.WebSocketResponse) -> tuple[int, str]:
    try:
        ticket = request.app[TICKETS].redeem(request.match_info["ticket"])
        stream = await _opened(request, ticket)
    except KmgrError as error:
        return 4000 + error.http_status, error.message
    logger.info("a screen was opened", extra={"desktop": ticket.desktop, "user": ticket.person.name})
    try:
        reason = await _first(
            (_to_browser(stream, socket), _to_desktop(socket, stream), _session_end(request, ticket))
        )
    finally:
        stream.writer.close()
    logger.info("a screen was closed", extra={"desktop": ticket.desktop, "user": ticket.person.name})
    return (4401, reason) if reason else (WSCloseCode.OK, "the desktop's screen ended")


async def _opened(request: web.Request, ticket: Ticket) -> Stream:
    services, session = request.app[SERVICES], auth.maybe_session(request)
    if session is not None and session.person.name != ticket.person.name:
        raise NotAllowed("This link to the desktop was given to somebody else.")
    found = services.broker.see(ticket.person, ticket.desktop)
    if found.generation != ticket.generation or found.user not in (None, ticket.person.name):
        raise Conflict("The desktop was made anew in the meantime: open it again.")
    # Its own server knows best whose it is: while it was cut off it may have given it to somebody else.
    body = {"desktop": found.id, "generation": found.generation, "user": found.user}
    return await services.requests.open(found.server, OPERATION, body)


async def _to_browser(stream: Stream, socket: web.WebSocketResponse) -> str:
    with suppress(ConnectionError):
        while data := await stream.reader.read(_PIECE):
            await socket.send_bytes(data)
    return ""


async def _to_desktop(socket: web.WebSocketResponse, stream: Stream) -> str:
    with suppress(ConnectionError):
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                break
            stream.writer.write(message.data)
            await stream.writer.drain()
    return ""


async def _session_end(request: web.Request, ticket: Ticket) -> str:
    services = request.app[SERVICES]
    with request.app[HUB].listening() as listener:
        while (session := services.sessions.session_of(ticket.session)) is not None:
            await services.sessions.keep(session)
            await listener.woken.wait()
            if listener.over:
                return "this server is being stopped: open the desktop again at another one"
            listener.take()
    return "you are logged out"


async def _first(ways: Sequence[Awaitable[str]]) -> str:
    """Wait for the first that ends, stop the others, and return what the first says."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return next((reason for task in done if (reason := task.result())), "")


async def _close(socket: web.WebSocketResponse, code: int, reason: str) -> None:
    short = reason.encode()[:_LONGEST_REASON].decode(errors="ignore")
    with suppress(ConnectionError):
        await socket.close(code=code, message=short.encode())


async def _close_all(app: web.Application) -> None:
    reason = "this server is being stopped: open the desktop again at another one"
    closing = [_close(socket, WSCloseCode.GOING_AWAY, reason) for socket in app[SOCKETS].copy()]
    await asyncio.gather(*closing)
