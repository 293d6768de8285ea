"""What `kmgr run` runs: the wizard while this server has no grid, then the grid, until it is told to stop."""

import asyncio
import logging
import resource
import signal
from pathlib import Path

import sdnotify
import uvloop

from kmgr import log
from kmgr.clock import SystemClock
from kmgr.config import FILE_NAME, Config, load, parse
from kmgr.daemon import last_words
from kmgr.daemon.left_behind import run_left_behind
from kmgr.daemon.life import lived
from kmgr.daemon.member import run_member
from kmgr.daemon.newcomer import run_newcomer
from kmgr.errors import ConfigError
from kmgr.grid import identity
from kmgr.grid.standpoint import fenced_words

logger = logging.getLogger(__name__)

# Settings of a server nobody has configured yet: an appliance lays its own beside the program.
_FIRST_SETTINGS = Path("/opt/kmgr/kmgr.toml")


def serve(data_dir: Path, *, log_level: str = "") -> None:
    """Run until SIGTERM or SIGINT; raises `ConfigError` if this server cannot run as it is configured."""
    data_dir = data_dir.resolve()
    _allow_many_files()
    with lived(data_dir):
        uvloop.run(_serve(data_dir, log_level))


def _allow_many_files() -> None:
    """Take all the open files that the system grants: each display and each copy needs a few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(data_dir: Path, log_level: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    notifier = sdnotify.SystemdNotifier()
    clock = SystemClock()
    while not stop.is_set():
        config = configuration(data_dir)
        if config.role != "server":
            raise ConfigError(f"{data_dir} belongs to a witness: start it with kmgr witness run --data {data_dir}")
        log.set_up(log_level or config.log_level)
        own = identity.load(data_dir)

        def ready(address: str) -> None:
            last_words.forget()
            notifier.notify("READY=1")
            logger.info("ready", extra={"portal": f"https://{address}/"})

        words = fenced_words(data_dir)
        if own is None:
            await run_newcomer(config, clock=clock, stop=stop, ready=ready)
        elif words is not None:
            await run_left_behind(config, words, clock=clock, stop=stop, ready=ready)
        else:
            await run_member(config, own, clock=clock, stop=stop, ready=ready)
    notifier.notify("STOPPING=1")
    logger.info("stopped")


def configuration(data_dir: Path) -> Config:
    """Return the configuration of a data folder; without a `kmgr.toml` the appliance's or the built-in one."""
    if (data_dir / FILE_NAME).exists():
        return load(data_dir)
    if _FIRST_SETTINGS.exists():
        identity.atomic_write(data_dir / FILE_NAME, _FIRST_SETTINGS.read_bytes())
        return load(data_dir)
    return parse({"name": "kmgr"}, data_dir=data_dir)
