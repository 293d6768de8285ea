"""A witness: the log, the state, the grid port and a heartbeat, and nothing else. It needs no libvirt and no root.

It votes where that makes the number of votes odd (`grid.membership`), and follows
the log everywhere else. When it must lead, because the others died, it does only
what every leader does for the members, and hands over as soon as a server has
caught up. Its elections begin later than the servers' do.
"""

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import sdnotify

from kmgr import log
from kmgr.clock import Clock, SystemClock
from kmgr.config import Config, load
from kmgr.control import ControlServer
from kmgr.daemon import addresses, last_words
from kmgr.daemon.life import lived
from kmgr.daemon.local_door import operations
from kmgr.daemon.supervise import Loops
from kmgr.daemon.thrift import give_back_memory
from kmgr.daemon.trunk import Trunk
from kmgr.errors import ConfigError, Refused
from kmgr.grid import identity
from kmgr.grid.identity import Identity
from kmgr.grid.raft.library import Timing
from kmgr.grid.standpoint import fenced_words
from kmgr.grid.store import keep_little
from kmgr.grid.wire import JOIN, Connection

logger = logging.getLogger(__name__)

# The program itself takes 51 MiB, and should stay below 64 (docs/performance.md says when it does not). The log lies
# in memory: a few large entries must not take more of it than all the rest. SQLite would keep some MiB for each of a
# dozen connections.
TIMING = Timing(election_max_s=4.0, reluctance_s=1.0, compact_most=5000, compact_bytes=4 << 20)
SQLITE_BYTES = 2 << 20


def serve(data_dir: Path, *, log_level: str = "") -> None:
    """Run until SIGTERM or SIGINT; raises `ConfigError` if this witness cannot run, or was removed from its grid."""
    data_dir = data_dir.resolve()
    with lived(data_dir):
        asyncio.run(_serve(data_dir, log_level))


async def _serve(data_dir: Path, log_level: str) -> None:
    config, own = _belonging(data_dir)
    log.set_up(log_level or config.log_level)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    notifier = sdnotify.SystemdNotifier()
    clock = SystemClock()
    loops = Loops(clock)
    keep_little(SQLITE_BYTES)
    give_back_memory()
    async with AsyncExitStack() as stack:
        await Witness(config, own, clock=clock, loops=loops).start(stack)
        last_words.forget()
        notifier.notify("READY=1")
        logger.info("ready", extra={"grid": own.grid_name})
        await loops.until(stop)
    notifier.notify("STOPPING=1")
    _refuse_if_left_behind(data_dir)
    logger.info("stopped")


class Witness:
    """The parts of a witness, made in the order in which they need each other."""

    def __init__(self, config: Config, own: Identity, *, clock: Clock, loops: Loops) -> None:
        self._config = config
        self._own = own
        self._clock = clock
        address = config.grid_address or addresses.announced(config.grid_host, config.grid_port)
        # It has no pages: where the table wants an address for people, it has the one for servers.
        self._trunk = Trunk(
            config, own, grid_address=address, web_address=address, clock=clock, loops=loops, timing=TIMING
        )
        self._trunk.port.handle(JOIN, _elsewhere)

    async def start(self, stack: AsyncExitStack) -> None:
        """Start everything; `stack` stops it, in reverse."""
        await self._trunk.open(stack)
        await self._trunk.listen(stack)
        words = operations(self._trunk.grid, self._own, self._trunk.board, clock=self._clock)
        door = ControlServer(self._config.data_dir, {"status": words["status"]}, otherwise=_only_votes)
        await door.start()
        stack.push_async_callback(door.stop)


def _only_votes() -> Refused:
    return Refused("this machine is a witness, which only votes: type that on a server of the grid")


async def _elsewhere(_: Connection) -> None:
    """Hang up on a newcomer: it only tries whether this member can be reached; it joins at a server."""


def _belonging(data_dir: Path) -> tuple[Config, Identity]:
    own = identity.load(data_dir)
    if own is None:
        raise ConfigError(
            f"{data_dir} belongs to no grid yet: run kmgr witness join --data {data_dir} with the four words that "
            "kmgr invite prints on a server of the grid"
        )
    config = load(data_dir)
    if config.role != "witness":
        raise ConfigError(f"{data_dir} belongs to a server, not to a witness: start it with kmgr run")
    _refuse_if_left_behind(data_dir)
    return config, own


def _refuse_if_left_behind(data_dir: Path) -> None:
    if (words := fenced_words(data_dir)) is not None:
        raise ConfigError(words)
