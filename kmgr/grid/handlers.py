"""Who answers which request on this server, and the spelling of requests, answers and errors.

Shared by the real requests (`grid.requests`) and those in memory (`grid.local`),
so that both refuse, limit and report alike. Runs in the daemon's loop.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Mapping
from typing import Any

from kmgr import errors
from kmgr.errors import KmgrError, NotFound, Refused
from kmgr.grid.port import CallHandler, Stream, StreamHandler
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

MAX_JSON = 1 << 20
# Buffered per stream: a few image blocks, or reading and writing take turns instead of overlapping.
STREAM_BUFFER = 1 << 20


class Handlers:
    """The operations that one server offers to the others (and to itself)."""

    def __init__(self, server: ServerId) -> None:
        self._server = server
        self._calls: dict[str, CallHandler] = {}
        self._streams: dict[str, StreamHandler] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, op: str, handler: CallHandler) -> None:
        """Register a call handler."""
        self._calls[op] = handler

    def serve_stream(self, op: str, handler: StreamHandler) -> None:
        """Register a stream handler."""
        self._streams[op] = handler

    def stream_handler(self, op: str) -> StreamHandler:
        """Return who takes streams of `op`; raise `NotFound` if nobody does."""
        handler = self._streams.get(op)
        if handler is None:
            raise self._unknown(op)
        return handler

    async def answer(self, peer: ServerId, op: str, body: Mapping[str, Any]) -> bytes:
        """Return the answer to a call, spelled; every failure is a `KmgrError`."""
        handler = self._calls.get(op)
        if handler is None:
            raise self._unknown(op)
        try:
            return spell(await handler(peer, body))
        except KmgrError:
            raise
        except Exception as error:
            raise bug(op, error) from error

    async def call(self, peer: ServerId, op: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a call in this process; body and answer pass through JSON as they would on the wire."""
        return parse(await self.answer(peer, op, parse(spell(body))))

    async def connect(self, peer: ServerId, op: str, body: Mapping[str, Any]) -> Stream:
        """Connect a socket pair to the handler of `op`; what it raises before it accepts is raised here."""
        handler = self.stream_handler(op)
        opened: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(_serve(handler, peer, parse(spell(body)), opened))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await opened
        except asyncio.CancelledError:
            if not opened.cancelled() and opened.exception() is None:
                # It opened in the very moment in which the caller was stopped: nobody else would hang up.
                opened.result().writer.close()
            raise

    def _unknown(self, op: str) -> NotFound:
        return NotFound(f"server {self._server} does not answer {op!r}: is it an older version?")


def spell(value: Mapping[str, Any]) -> bytes:
    """Return a body as JSON; raise `Refused` if it is larger than requests may be."""
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    if len(data) > MAX_JSON:
        raise Refused(f"a request of {len(data)} bytes is larger than {MAX_JSON}: large things go through a stream")
    return data


def parse(data: bytes) -> dict[str, Any]:
    """Read a body back; raise ValueError if it is not a JSON object."""
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def error_body(error: KmgrError) -> dict[str, Any]:
    """Spell an error for the other server."""
    return {"error": {"class": type(error).__name__, "code": error.code, "message": error.message}}


def error_from(raw: Mapping[str, Any]) -> KmgrError:
    """Return the error that the other server raised, in the same class if this version knows it."""
    kind = getattr(errors, str(raw.get("class")), KmgrError)
    if not (isinstance(kind, type) and issubclass(kind, KmgrError)):
        kind = KmgrError
    return kind(str(raw.get("message", "the other server refused")), code=raw.get("code"))


def bug(op: str, error: Exception) -> KmgrError:
    """Log what a handler should never have raised, and return what its caller is told."""
    logger.error("a request failed by a bug", extra={"op": op}, exc_info=error)
    return KmgrError(f"the other server could not answer {op!r}: {error!r}. Its log says more", code="bug")


async def _serve(
    handler: StreamHandler, peer: ServerId, body: Mapping[str, Any], opened: asyncio.Future[Stream]
) -> None:
    far: Stream | None = None

    async def accept() -> Stream:
        nonlocal far
        near, far = await _stream_pair()
        if opened.done():  # the caller stopped waiting
            near.writer.close()
        else:
            opened.set_result(near)
        return far

    try:
        await handler(peer, body, accept)
        if far is None:
            raise NotFound("the other server closed the stream before it began")
    except KmgrError as error:
        if not opened.done():
            opened.set_exception(error)
    except (OSError, EOFError):
        pass  # the caller hung up: nothing to tell anybody
    except Exception as error:  # noqa: BLE001 - the outermost of a stream: its caller must hear of it
        told = bug("stream", error)
        if not opened.done():
            opened.set_exception(told)
    finally:
        if far is not None:
            far.writer.close()
        if not opened.done():
            opened.cancel()


async def _stream_pair() -> tuple[Stream, Stream]:
    left, right = socket.socketpair()
    near = Stream(*await asyncio.open_connection(sock=left, limit=STREAM_BUFFER))
    far = Stream(*await asyncio.open_connection(sock=right, limit=STREAM_BUFFER))
    return near, far
