"""A server without a grid: it serves the wizard until its two questions are answered."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from kmgr import __version__
from kmgr.clock import Clock
from kmgr.config import Config
from kmgr.control import ControlServer
from kmgr.daemon import addresses
from kmgr.daemon.founding import NewGrid, found, join_at, settle
from kmgr.daemon.supervise import either
from kmgr.errors import KmgrError, Refused
from kmgr.grid import authority, identity
from kmgr.grid.discovery import Found, browse, interfaces_for
from kmgr.grid.join import finish_joining
from kmgr.grid.preflight import Finding
from kmgr.web.app import make_setup_app
from kmgr.web.server import WebServer
from kmgr.web.services import JoinAnswers, NewGridAnswers, SetupServices

logger = logging.getLogger(__name__)

BROWSE_S = 2.5
# The page that shows the success fetches its last things before the listener changes hands.
LINGER_S = 0.5
# How often a join that was cut off after the grid may have taken this server in is looked after.
FINISH_S = 5.0


async def run_newcomer(config: Config, *, clock: Clock, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    """Serve the wizard until this server has an identity or `stop` is set."""
    answered, turn = asyncio.Event(), asyncio.Lock()
    cert, key = identity.ensure_web_certificate(config.data_dir, addresses.web_names(config), now_ms=clock.now_ms())
    fingerprint = authority.fingerprint(await asyncio.to_thread(cert.read_bytes))
    app = make_setup_app(_services(config, fingerprint, answered, turn, clock=clock))
    web = WebServer(app, host=config.web_host, port=config.web_port, cert=cert, key=key)
    door = ControlServer(config.data_dir, {}, otherwise=lambda: _no_grid(config))
    await web.start()
    await door.start()
    finishing = asyncio.create_task(_finish(config, answered, turn, clock=clock))
    try:
        ready(addresses.web_address(config))
        logger.info("this server belongs to no grid yet: the wizard waits", extra={"fingerprint": fingerprint})
        await either(answered, stop)
        if answered.is_set():
            await clock.sleep(LINGER_S)
    finally:
        finishing.cancel()
        await asyncio.gather(finishing, return_exceptions=True)
        await door.stop()
        await web.stop()


async def _finish(config: Config, answered: asyncio.Event, turn: asyncio.Lock, *, clock: Clock) -> None:
    """Notice a grid that was made or joined from a terminal; finish a join that was cut off when its grid answers."""
    told = ""
    while not answered.is_set():
        try:
            async with turn:
                if identity.load(config.data_dir) is not None:
                    answered.set()
                elif await finish_joining(config.data_dir) is not None:
                    logger.info("the join that was cut off is finished")
                    answered.set()
        except KmgrError as error:
            if error.message != told:
                logger.warning("a join that was cut off is not finished yet", extra={"cause": error.message})
            told = error.message
        await clock.sleep(FINISH_S)


def _no_grid(config: Config) -> Refused:
    return Refused(
        f"this server belongs to no grid yet: open https://{addresses.web_address(config)}/ in a browser, or type "
        f"kmgr init or kmgr join --data {config.data_dir}"
    )


def _services(
    config: Config, fingerprint: str, answered: asyncio.Event, turn: asyncio.Lock, *, clock: Clock
) -> SetupServices:
    async def look() -> Found:
        if not config.mdns:
            return Found((), "Looking for grids is switched off on this server (mdns in kmgr.toml): type an address.")
        return await browse(BROWSE_S, interfaces=interfaces_for(addresses.grid_address(config)))

    async def create(answers: NewGridAnswers) -> None:
        settled = settle(config.data_dir, answers.server, {})
        await found(settled, NewGrid(answers.grid, answers.server, answers.admin, answers.password), clock=clock)
        answered.set()

    async def join(answers: JoinAnswers) -> Sequence[Finding]:
        async with turn:
            settled = settle(config.data_dir, answers.server, {})
            joined = await join_at(settled, address=answers.address, phrase=answers.phrase, clock=clock)
        answered.set()
        return joined.warnings

    return SetupServices(
        config=config,
        version=__version__,
        fingerprint=fingerprint,
        browse=look,
        create=create,
        join=join,
    )
