"""One server's real pages without a grid behind them, for what a browser does on them."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from playwright.sync_api import BrowserContext, Page

from kmgr.clock import SystemClock
from kmgr.grid.identity import ensure_web_certificate
from kmgr.web import auth
from kmgr.web.app import make_app
from kmgr.web.server import WebServer
from tests.lab.sockets import all_gone
from tests.lab.web_lab import ADMIN, WebLab, opened

HERE = "127.0.0.1"
HANG_UP_S = 1.0

T = TypeVar("T")


class Office:
    """One server's pages in a thread of their own, whose listener can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.port = 0
        self._opened = opened(folder)
        self.lab: WebLab = self.do(self._opened.__aenter__())
        self.services = self.do(self._call(self.lab.services))
        self.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _hung_up(self) -> None:
        """Wait until a busy browser has said goodbye as TLS wants it; cut off what it has not even opened yet."""
        for transport in await all_gone(HANG_UP_S):
            transport.abort()
        await asyncio.sleep(0)

    async def _call(self, work: Callable[[], T]) -> T:
        return work()

    def start(self) -> None:
        cert, key = ensure_web_certificate(self._folder, frozenset({HERE}), now_ms=SystemClock().now_ms())

        async def made() -> WebServer:
            server = WebServer(make_app(self.services), host=HERE, port=self.port, cert=cert, key=key)
            await server.start()
            return server

        self.server = self.do(made())
        self.port = self.server.port

    def stop(self) -> None:
        self.do(self.server.stop())

    def end(self) -> None:
        self.stop()
        self.do(self._hung_up())
        self.do(self._opened.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def show(self, context: BrowserContext, page: Page, path: str) -> None:
        """Open a page as the administrator."""
        url = f"https://{HERE}:{self.port}"
        token = self.do(self.lab.token(ADMIN))
        context.add_cookies([{"name": auth.COOKIE, "value": token, "url": url, "secure": True}])
        page.goto(f"{url}{path}")
