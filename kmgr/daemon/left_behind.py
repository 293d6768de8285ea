"""A server that its grid went on without: it says so, on its pages and to `kmgr status`, and does nothing else.

Its desktops are not touched: whoever works on one goes on until an administrator
has looked. `kmgr reset` makes it a newcomer again; its golden images stay.
"""

import asyncio
import logging
from collections.abc import Callable

from kmgr.clock import Clock
from kmgr.config import Config
from kmgr.control import ControlServer
from kmgr.daemon import addresses
from kmgr.errors import Refused
from kmgr.grid import identity
from kmgr.web.app import make_idle_app
from kmgr.web.server import WebServer

logger = logging.getLogger(__name__)


async def run_left_behind(
    config: Config, words: str, *, clock: Clock, stop: asyncio.Event, ready: Callable[[str], None]
) -> None:
    """Say `words` to everybody who asks, until `stop` is set."""
    cert, key = identity.ensure_web_certificate(config.data_dir, addresses.web_names(config), now_ms=clock.now_ms())
    web = WebServer(make_idle_app(words), host=config.web_host, port=config.web_port, cert=cert, key=key)
    await web.start()
    door = ControlServer(config.data_dir, {}, otherwise=lambda: Refused(words, code="fenced"))
    await door.start()
    try:
        ready(addresses.web_address(config))
        logger.error("this server does not act", extra={"cause": words})
        await stop.wait()
    finally:
        await door.stop()
        await web.stop()
