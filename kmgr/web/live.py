"""Server-sent events: an open page is told when to look again.

`state` (`{"applied": n}`) says that the log moved, `vitals` (`{}`) that a server
reported or an import went on. One hub waits for both, however many pages listen. A listener
keeps at most one pending event of each kind, and one that does not read is cut off.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from aiohttp import web

from kmgr.web import auth
from kmgr.web.services import SERVICES, Services

logger = logging.getLogger(__name__)

LEAST_GAP_S = 0.25
VITALS_S = 0.5
COMMENT_S = 15.0
WAIT_S = 30.0
WRITE_S = 10.0
_RETRY_MS = 2000


class Listener:
    """What one open page has not been told yet. `take()` empties it."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.over = False
        self._pending: dict[str, str] = {}

    def tell(self, event: str, data: str) -> None:
        """Note an event; a newer one of the same kind replaces it."""
        self._pending[event] = data
        self.woken.set()

    def end(self) -> None:
        """Say that nothing follows."""
        self.over = True
        self.woken.set()

    def take(self) -> str:
        """Return what is pending, as it goes over the wire."""
        self.woken.clear()
        told, self._pending = self._pending, {}
        return "".join(_wire(event, data) for event, data in told.items())


class Hub:
    """Watches the log and the vitals for all open pages of this server."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._listeners: set[Listener] = set()
        self._stopped = False

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Lend a listener; it ends with the block."""
        listener = Listener()
        if self._stopped:
            listener.end()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    async def run(self) -> None:
        """Watch until cancelled."""
        await asyncio.gather(self._watch_log(), self._watch_vitals())

    def stop(self) -> None:
        """End all listeners, those to come included."""
        self._stopped = True
        for listener in self._listeners:
            listener.end()

    async def _watch_log(self) -> None:
        grid, clock = self._services.grid, self._services.clock
        known = grid.status().applied
        while True:
            now = await grid.changed(known, timeout_s=WAIT_S)
            if now != known:  # after an island it is smaller than before
                known = now
                self._tell("state", state_data(known))
                await clock.sleep(LEAST_GAP_S)

    async def _watch_vitals(self) -> None:
        known: object = None
        beats = 0
        while True:
            await self._services.clock.sleep(VITALS_S)
            beats += 1
            seen = self._seen()
            if seen != known:
                known = seen
                self._tell("vitals", "{}")
            if beats * VITALS_S % COMMENT_S == 0:
                self._tell("", "")

    def _seen(self) -> object:
        heard = {server: vitals.heard_at for server, vitals in self._services.board.all().items()}
        importer = self._services.importer
        return heard, importer.running(), importer.failed(), self._services.reception.progress()

    def _tell(self, event: str, data: str) -> None:
        for listener in self._listeners:
            listener.tell(event, data)


HUB: web.AppKey[Hub] = web.AppKey("hub", Hub)


def set_up(app: web.Application) -> None:
    """Give an application its hub, which runs as long as the application."""
    app[HUB] = Hub(app[SERVICES])
    app.cleanup_ctx.append(_running)
    app.on_shutdown.append(_stop)


async def live(request: web.Request) -> web.StreamResponse:
    """Tell a page what happens until it goes away, the session ends or the server stops."""
    services, token = request.app[SERVICES], auth.token_of(request)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    with request.app[HUB].listening() as listener, suppress(ConnectionError, TimeoutError):
        # What happened between the page's making and now: it looks once more.
        begin = f"retry: {_RETRY_MS}\n\n" + _wire("state", state_data(services.grid.status().applied))
        await _write(response, begin)
        while not listener.over:
            await listener.woken.wait()
            session = services.sessions.session_of(token)
            if session is None:
                break
            await services.sessions.keep(session)
            await _write(response, listener.take())
    return response


def state_data(applied: int) -> str:
    """Spell the data of a `state` event."""
    return json.dumps({"applied": applied})


async def _write(response: web.StreamResponse, text: str) -> None:
    if text:
        async with asyncio.timeout(WRITE_S):
            await response.write(text.encode())


def _wire(event: str, data: str) -> str:
    return f"event: {event}\ndata: {data}\n\n" if event else ": still here\n\n"


async def _running(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(app[HUB].run())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _stop(app: web.Application) -> None:
    app[HUB].stop()
