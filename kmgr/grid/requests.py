"""Requests between servers over the grid port: calls on pooled connections, streams on their own.

On the wire: four bytes of length and a JSON object, both ways. A request is
`{op, body, stream}`, an answer `{ok}` or `{error: {class, code, message}}`. After
the `ok` of a stream the connection carries the stream's raw bytes and nothing else.

A call whose connection broke before the answer is repeated once if the
connection was an old one from the pool: operations must bear being repeated
(they are questions, or news of which the latest counts). Runs in the daemon's loop.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import KmgrError, NotFound, Refused, Unavailable
from kmgr.grid.handlers import MAX_JSON, Handlers, bug, error_body, error_from, parse, spell
from kmgr.grid.port import CallHandler, Stream, StreamHandler
from kmgr.grid.wire import CALL, Connection, GridPort
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

# A connection lies idle this long on the asking side; the answering side waits longer and rarely hangs up first.
IDLE_S = 20.0
PATIENCE_S = 60.0
SLOW_S = 5.0
POOLED = 4
# The envelope around a body of the largest size.
_MAX_MESSAGE = MAX_JSON + 4096


class GridRequests:
    """The `Requests` port on a `GridPort`."""

    def __init__(self, port: GridPort, *, clock: Clock) -> None:
        self._port = port
        self._clock = clock
        self._handlers = Handlers(port.server)
        self._idle: dict[ServerId, list[tuple[float, Connection]]] = {}
        port.handle(CALL, self._answer_all)

    def serve(self, op: str, handler: CallHandler) -> None:
        """Answer calls of `op` with `handler`."""
        self._handlers.serve(op, handler)

    def serve_stream(self, op: str, handler: StreamHandler) -> None:
        """Hand streams of `op` to `handler`."""
        self._handlers.serve_stream(op, handler)

    async def call(
        self, server: ServerId, op: str, body: Mapping[str, Any], *, timeout_s: float = 10.0
    ) -> Mapping[str, Any]:
        """Ask one server and return its answer."""
        try:
            async with asyncio.timeout(timeout_s):
                if server == self._port.server:
                    return await self._handlers.call(server, op, body)
                return await self._ask(server, op, spell(body))
        except TimeoutError:
            raise self._silent(server, timeout_s) from None

    async def open(self, server: ServerId, op: str, body: Mapping[str, Any], *, timeout_s: float = 10.0) -> Stream:
        """Open a byte stream to the handler of `op` on another server."""
        try:
            async with asyncio.timeout(timeout_s):
                if server == self._port.server:
                    return await self._handlers.connect(server, op, body)
                return await self._open(server, op, body)
        except TimeoutError:
            raise self._silent(server, timeout_s) from None

    def close(self) -> None:
        """Close the idle connections."""
        for pool in self._idle.values():
            for _, connection in pool:
                connection.cut()
        self._idle.clear()

    async def _ask(self, server: ServerId, op: str, body: bytes) -> Mapping[str, Any]:
        pooled = self._from_pool(server)
        if pooled is not None:
            try:
                return await self._exchange(pooled, op, body)
            except (OSError, EOFError):
                pass  # it had died of age: the repetition below tells what is really the matter
        try:
            return await self._exchange(await self._port.dial(server, CALL), op, body)
        except (OSError, EOFError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise self._broken(server) from error

    async def _exchange(self, connection: Connection, op: str, body: bytes) -> Mapping[str, Any]:
        """Send one call and return its answer; the connection goes to the pool, or is cut if anything broke."""
        healthy = False
        try:
            await _write(connection, _request(op, body, stream=False))
            answer = await _read(connection)
            healthy = True
        finally:
            if not healthy:
                connection.cut()
        self._to_pool(connection)
        return _result(answer)

    async def _open(self, server: ServerId, op: str, body: Mapping[str, Any]) -> Stream:
        connection = await self._port.dial(server, CALL)
        opened = False
        try:
            await _write(connection, _request(op, spell(body), stream=True))
            _result(await _read(connection))
            opened = True
        except (OSError, EOFError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise self._broken(server) from error
        finally:
            if not opened:
                connection.cut()
        return Stream(connection.reader, connection.writer)

    def _from_pool(self, server: ServerId) -> Connection | None:
        pool = self._idle.get(server, [])
        while pool:
            since, connection = pool.pop()
            usable = not connection.writer.is_closing() and not connection.reader.at_eof()
            # A server may have moved to another address: idle connections do not outlive that by much.
            if usable and self._clock.monotonic() - since < IDLE_S:
                return connection
            connection.cut()
        return None

    def _to_pool(self, connection: Connection) -> None:
        pool = self._idle.setdefault(connection.peer, [])
        if len(pool) < POOLED:
            pool.append((self._clock.monotonic(), connection))
        else:
            connection.writer.close()

    async def _answer_all(self, connection: Connection) -> None:
        while True:
            head = await _first_bytes(connection)
            if not head:
                return
            try:
                async with asyncio.timeout(SLOW_S):
                    request = await _read(connection, head=head)
            except TimeoutError:
                raise ValueError("it stopped in the middle of a request") from None
            op, body = request.get("op"), request.get("body")
            if not isinstance(op, str) or not isinstance(body, dict):
                raise ValueError("a request without op or body")
            if request.get("stream"):
                await self._answer_stream(connection, op, body)
                return
            await _write(connection, await self._answer(connection.peer, op, body))

    async def _answer(self, peer: ServerId, op: str, body: Mapping[str, Any]) -> bytes:
        try:
            return b'{"ok":' + await self._handlers.answer(peer, op, body) + b"}"
        except KmgrError as error:
            return spell(error_body(error))

    async def _answer_stream(self, connection: Connection, op: str, body: Mapping[str, Any]) -> None:
        accepted = False

        async def accept() -> Stream:
            nonlocal accepted
            accepted = True
            await _write(connection, b'{"ok":{}}')
            return Stream(connection.reader, connection.writer)

        try:
            await self._handlers.stream_handler(op)(connection.peer, body, accept)
            if not accepted:
                raise NotFound("the other server closed the stream before it began")
        except (OSError, EOFError):
            raise
        except KmgrError as error:
            if accepted:
                logger.info("a stream ended early", extra={"op": op, "cause": error.message})
                connection.cut()
            else:
                await _write(connection, spell(error_body(error)))
        except Exception as error:  # noqa: BLE001 - the outermost of a stream: its caller must hear of it
            told = bug(op, error)
            if accepted:
                connection.cut()
            else:
                await _write(connection, spell(error_body(told)))

    def _silent(self, server: ServerId, timeout_s: float) -> Unavailable:
        who = self._port.contacts().described(server)
        return Unavailable(
            f"server {who} did not answer within {timeout_s:g} s: it may be overloaded, try again later"
        )

    def _broken(self, server: ServerId) -> Unavailable:
        who = self._port.contacts().described(server)
        return Unavailable(f"server {who} hung up before it answered: it may be restarting, try again later")


def _request(op: str, body: bytes, *, stream: bool) -> bytes:
    return b"".join((spell({"op": op, "stream": stream})[:-1], b',"body":', body, b"}"))


def _result(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    if "error" in answer:
        raise error_from(answer["error"])
    result = answer["ok"]
    if not isinstance(result, dict):
        raise Refused("the other server's answer is not a JSON object")
    return result


async def _write(connection: Connection, data: bytes) -> None:
    connection.writer.write(len(data).to_bytes(4) + data)
    await connection.writer.drain()


async def _first_bytes(connection: Connection) -> bytes:
    """Return the beginning of the next request; b"" if there will be none."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await connection.reader.read(4)
    except TimeoutError:
        return b""


async def _read(connection: Connection, *, head: bytes = b"") -> dict[str, Any]:
    head += await connection.reader.readexactly(4 - len(head))
    size = int.from_bytes(head)
    if size > _MAX_MESSAGE:
        raise ValueError(f"a message of {size} bytes was announced; {_MAX_MESSAGE} is the most")
    return parse(await connection.reader.readexactly(size))
