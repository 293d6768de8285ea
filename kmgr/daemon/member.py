"""A running server of a grid: all parts, put together, started in order and stopped in reverse.

The order matters twice: the grid port opens before anybody may call, and the
web opens last, so that whoever sees a page can use it.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from kmgr import __version__
from kmgr.balancer.agent import Balancer
from kmgr.balancer.canaries import Canaries
from kmgr.balancer.collector import Collector
from kmgr.balancer.farewell_agent import FarewellAgent
from kmgr.clock import Clock
from kmgr.config import Config
from kmgr.control import ControlServer
from kmgr.daemon import addresses, comparing_door, images_door, maintenance_door, standing_door
from kmgr.daemon.desktops import Desktops
from kmgr.daemon.local_door import operations
from kmgr.daemon.supervise import Loops, every_day
from kmgr.daemon.trunk import Trunk
from kmgr.grid import arp, identity, join
from kmgr.grid.discovery import Announcement, Announcer
from kmgr.grid.floating import FloatingAddress
from kmgr.grid.identity import Identity
from kmgr.grid.island import IslandGrid
from kmgr.grid.join import Invitation
from kmgr.grid.joindesk import JoinDesk
from kmgr.grid.leadership import Leadership
from kmgr.grid.queries import settings
from kmgr.provision.disk_watch import DiskWatch
from kmgr.provision.uses import uses
from kmgr.registry import APPLIERS, ISLAND, SCHEMAS
from kmgr.replica import queries as replica_queries
from kmgr.replica.agent import ReplicaAgent
from kmgr.replica.images import Images
from kmgr.templates.arrivals import Arrivals
from kmgr.templates.download import Downloader
from kmgr.templates.folder import Folder
from kmgr.templates.importer import Importer, clean_tmp
from kmgr.templates.reception import Reception
from kmgr.users.broker import Broker
from kmgr.users.directories import directories_of
from kmgr.users.ldap_directory import try_directory
from kmgr.users.over_agent import TakingBack
from kmgr.users.sessions import Sessions
from kmgr.web.app import make_app
from kmgr.web.outgoing import WebOutgoing
from kmgr.web.server import WebServer
from kmgr.web.services import Services

logger = logging.getLogger(__name__)

Ready = Callable[[str], None]


async def run_member(config: Config, own: Identity, *, clock: Clock, stop: asyncio.Event, ready: Ready) -> None:
    """Run this server until `stop` is set; `ConfigError` if a port cannot be had, `InvariantBroken` for a bug."""
    loops = Loops(clock)
    async with AsyncExitStack() as stack:
        member = Member(config, own, clock=clock, loops=loops)
        await member.start(stack)
        ready(addresses.web_address(config))
        await loops.until(stop)


class Member:
    """The parts of one server, made in the order in which they need each other."""

    def __init__(self, config: Config, own: Identity, *, clock: Clock, loops: Loops) -> None:
        self._config = config
        self._own = own
        self._clock = clock
        self._loops = loops
        self._trunk = trunk = Trunk(
            config,
            own,
            grid_address=config.grid_address or addresses.announced(config.grid_host, config.grid_port),
            web_address=config.web_address or addresses.announced(config.web_host, config.web_port),
            clock=clock,
            loops=loops,
        )
        # The log, or this server's own word while it reaches no majority: what people and desktops work with.
        self._island = IslandGrid(
            trunk.grid,
            folder=config.data_dir / "island",
            schemas=SCHEMAS,
            appliers=APPLIERS,
            rules=ISLAND,
            clock=clock,
        )
        self._images = Images(config.data_dir)
        self._replica = self._made_replica()
        self._importer = Importer(self._island, self._images, clock)
        self._desktops = Desktops(
            config,
            own,
            self._island,
            trunk.requests,
            self._images,
            self._importer,
            log=trunk.grid,
            clock=clock,
            slow=self._replica.slow,
        )
        self._island.attend(self._desktops.attendance.watched)
        self._sessions = Sessions(self._island, directories_of(self._island), clock=clock)
        self._download = Downloader(WebOutgoing(), clock, own_allowed=lambda: bool(self._set("import_own_addresses")))
        arrivals = Arrivals(self._images, clock, keep_hours=lambda: self._set("upload_hours"))
        self._reception = Reception(self._importer, arrivals, clock, download=self._download)
        self._keeping = self._made_keeping()
        self._web: WebServer | None = None
        self._floating = FloatingAddress(
            self._island, arp, clock=clock, interface=config.address_interface, named=self._named
        )
        trunk.heart.contribute("grid address", self._floating.vitals)
        trunk.heart.contribute("island", self._island.vitals)
        trunk.heart.contribute("desktops", self._desktops.vitals)
        trunk.heart.contribute("moves", self._desktops.moves.vitals)
        trunk.heart.contribute("copies", self._desktops.personal.vitals)
        trunk.heart.contribute("log-ons", self._desktops.log_ons.vitals)
        # After the desktops: without the disk of images none can be made, whatever the hypervisor says.
        trunk.heart.contribute("images", self._replica.vitals)
        self._disks = DiskWatch(config.data_dir, self._images, clock)
        trunk.heart.contribute("disks", self._disks.vitals)
        JoinDesk(
            trunk.port, trunk.grid, own=own, version=__version__, clock=clock, images_mib=replica_queries.ready_mib
        )

    async def start(self, stack: AsyncExitStack) -> None:
        """Start everything; `stack` stops it, in reverse."""
        config, loops = self._config, self._loops
        await self._trunk.open(stack)
        stack.push_async_callback(self._desktops.close)
        await asyncio.to_thread(clean_tmp, config.data_dir)
        await self._island.start()
        stack.push_async_callback(self._island.stop)
        await self._trunk.listen(stack)
        loops.begin("island", self._island.run)
        loops.begin("keeping", self._keeping.run)
        loops.begin("grid address", self._floating.run)
        loops.begin("replica", self._replica.run)
        loops.begin("reception", self._reception.run)
        loops.begin("scrub", self._replica.scrub.run)
        loops.begin("disks", self._disks.run)
        loops.begin("desktops", self._desktops.run)
        loops.begin("attendance", self._desktops.attendance.run)
        loops.begin("log-ons", self._desktops.log_ons.run)
        for name, loop in self._desktops.personal.loops.items():
            loops.begin(name, loop)
        if config.mdns:
            await self._announce(stack)
        await self._open_doors(stack)

    async def _open_doors(self, stack: AsyncExitStack) -> None:
        config, clock = self._config, self._clock
        cert, key = identity.ensure_web_certificate(
            config.data_dir, addresses.web_names(config), now_ms=clock.now_ms()
        )
        web = WebServer(make_app(self._services()), host=config.web_host, port=config.web_port, cert=cert, key=key)
        await web.start()
        self._web = web
        self._loops.begin("web certificate", lambda: every_day(self._renew_web_certificate, clock=clock))
        await self._named(self._floating.address)
        stack.push_async_callback(web.stop)
        words = {
            **operations(self._island, self._own, self._trunk.board, clock=clock),
            **maintenance_door.operations(self._trunk.grid, self._trunk.board, clock=clock),
            **standing_door.operations(self._island, self._trunk.grid, config.data_dir, clock=clock),
            **comparing_door.operations(self._trunk.verifier),
            **images_door.operations(self._island, self._importer, self._reception, self._download.checksum),
        }
        door = ControlServer(config.data_dir, words, taking=images_door.taking(self._reception))
        await door.start()
        stack.push_async_callback(door.stop)

    async def _named(self, address: str) -> None:
        """Make the HTTPS certificate good for the grid address as well."""
        if self._web is None:
            return
        names = addresses.web_names(self._config) | ({address.partition("/")[0]} if address else set())
        await asyncio.to_thread(
            identity.ensure_web_certificate, self._config.data_dir, names, now_ms=self._clock.now_ms()
        )
        self._web.reload()

    async def _renew_web_certificate(self) -> None:
        await self._named(self._floating.address)

    async def _announce(self, stack: AsyncExitStack) -> None:
        announcer, own = Announcer(), self._own

        def what() -> Announcement:
            address = addresses.grid_address(self._config)
            return Announcement(own.grid, own.grid_name, own.server, own.name, address, __version__)

        stack.push_async_callback(announcer.stop)
        self._trunk.heart.contribute("mdns", lambda: {"problems": [announcer.problem] if announcer.problem else []})
        self._loops.begin("mdns", lambda: announcer.run(what, clock=self._clock, addresses=addresses.own_addresses))

    def _made_replica(self) -> ReplicaAgent:
        trunk = self._trunk
        return ReplicaAgent(
            trunk.grid,
            trunk.requests,
            self._clock,
            self._images,
            uses=uses,
            board=trunk.board.all,
            own_mbit_s=self._config.image_mbit_s,
        )

    def _made_keeping(self) -> Leadership:
        """What the leader does for people and desktops; on an island this server leads itself."""
        keeping = Leadership(self._island, clock=self._clock)
        keeping.duty("balancer", Balancer(self._island, self._trunk.board, clock=self._clock).run)
        keeping.duty("canaries", Canaries(self._island, clock=self._clock).run)
        keeping.duty("farewells", FarewellAgent(self._island, self._trunk.board, clock=self._clock).run)
        keeping.duty("collector", Collector(self._island, clock=self._clock).run)
        keeping.duty("sessions", self._sessions.housekeeping)
        keeping.duty("taking back", TakingBack(self._island, clock=self._clock).run)
        return keeping

    def _set(self, name: str) -> int:
        with self._island.view() as db:
            return settings(db)[name]

    def _services(self) -> Services:
        async def invite(by: str) -> Invitation:
            return await join.invite(self._island, secret=self._own.secret, by=by, clock=self._clock)

        return Services(
            config=self._config,
            own=self._own,
            version=__version__,
            clock=self._clock,
            grid=self._island,
            requests=self._trunk.requests,
            board=self._trunk.board,
            sessions=self._sessions,
            broker=Broker(self._island, clock=self._clock),
            importer=self._importer,
            reception=self._reception,
            fetch_sum=self._download.checksum,
            folder=Folder.of(self._config),
            images=self._images,
            invite=invite,
            try_directory=try_directory,
            waiting=self._desktops.waiting,
        )
