"""Finding grids on the local network by mDNS: the only file that knows zeroconf.

Each server announces `_kmgr._tcp.local.` with its grid and itself; a new server
browses for a moment and shows what it found. This is a convenience: whatever
goes wrong becomes a sentence for people (`problem`), never an exception, and a
typed address always works as well. Nothing announced is trusted: the join's
exchange proves the grid. Runs in the daemon's loop.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from zeroconf import Error, InterfaceChoice, IPVersion, ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from kmgr.clock import Clock
from kmgr.grid.contacts import split_address

logger = logging.getLogger(__name__)

SERVICE = "_kmgr._tcp.local."
HINT = (
    "Servers find each other by multicast DNS (UDP port 5353). It is usually blocked by a firewall on one of the "
    "servers, by multicast (IGMP) snooping on a switch or bridge without a querier, or because the servers are in "
    "different VLANs. Typing the address of a server always works."
)
_INFO_MS = 1500
# So often it is looked whether this server must be announced again.
LOOK_S = 10.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a server tells about itself. The address is its grid port as `host:port`."""

    grid: str
    grid_name: str
    server: str
    server_name: str
    grid_address: str
    version: str


@dataclass(frozen=True, slots=True)
class FoundGrid:
    """A grid that was heard, with the servers that spoke, by name."""

    grid: str
    name: str
    servers: tuple[Announcement, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What browsing brought: grids by name, and if there are none, what may be the cause and the way out."""

    grids: tuple[FoundGrid, ...]
    problem: str = ""


class Announcer:
    """Announces this server until stopped. `interfaces` are own addresses; none given means all.

    `run` keeps it announced: a machine may get its network, or another address, long after it started.
    """

    def __init__(self, *, interfaces: Sequence[str] = ()) -> None:
        self._interfaces = interfaces
        self._zeroconf: AsyncZeroconf | None = None
        self._info: AsyncServiceInfo | None = None
        self.problem = ""

    async def announce(self, what: Announcement) -> None:
        """Begin to announce, or announce something new; failing sets `problem`."""
        try:
            info = _service(what)
            if self._zeroconf is None:
                self._zeroconf = _open(self._interfaces)
            if self._info is None:
                await self._zeroconf.async_register_service(info, allow_name_change=True)
            elif info.properties != self._info.properties or info.port != self._info.port:
                await self._zeroconf.async_update_service(info)
            self._info, self.problem = info, ""
        except (OSError, ValueError, Error) as error:
            before, self.problem = self.problem, _problem(error)
            if self.problem != before:
                logger.warning("mdns does not work", extra={"cause": str(error)})

    async def run(
        self,
        what: Callable[[], Announcement],
        *,
        clock: Clock,
        addresses: Callable[[], object],
        interfaces: Callable[[Announcement], Sequence[str]] | None = None,
    ) -> None:
        """Announce until cancelled: again if it failed, or `what` or the `addresses` of this machine changed."""
        announced: tuple[Announcement, object] | None = None
        while True:
            now = what(), addresses()
            if now != announced or self.problem:
                if announced is not None:
                    await self.stop()  # its sockets are those of the addresses of before
                self._interfaces = (interfaces or _interfaces)(now[0])
                await self.announce(now[0])
                announced = now
            await clock.sleep(LOOK_S)

    async def stop(self) -> None:
        """Say goodbye and stop."""
        zeroconf, self._zeroconf, self._info = self._zeroconf, None, None
        if zeroconf is not None:
            with suppress(OSError, Error):  # perhaps there is no network any more to say goodbye to
                await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()


async def browse(seconds: float, *, interfaces: Sequence[str] = ()) -> Found:
    """Listen for announced grids for so long; under two seconds may miss some (answers are sent once a second)."""
    names: set[str] = set()

    def changed(**news: Any) -> None:
        if news["state_change"] is ServiceStateChange.Removed:
            names.discard(news["name"])
        else:
            names.add(news["name"])

    try:
        zeroconf = _open(interfaces)
    except (OSError, ValueError, Error) as error:
        return Found((), _problem(error))
    try:
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[changed])
        await asyncio.sleep(seconds)
        found = await asyncio.gather(*(_resolved(zeroconf, name) for name in sorted(names)))
        await browser.async_cancel()
    except (OSError, Error) as error:
        return Found((), _problem(error))
    finally:
        await zeroconf.async_close()
    grids = group([announcement for announcement in found if announcement is not None])
    return Found(grids, "" if grids else HINT)


def group(announcements: Sequence[Announcement]) -> tuple[FoundGrid, ...]:
    """Put servers of the same grid together, all in the order of names."""
    grids: dict[str, list[Announcement]] = {}
    for announcement in sorted(announcements, key=lambda a: (a.grid_name, a.grid, a.server_name, a.server)):
        grids.setdefault(announcement.grid, []).append(announcement)
    return tuple(FoundGrid(grid, servers[0].grid_name, tuple(servers)) for grid, servers in grids.items())


async def _resolved(zeroconf: AsyncZeroconf, name: str) -> Announcement | None:
    info = AsyncServiceInfo(SERVICE, name)
    if not await info.async_request(zeroconf.zeroconf, _INFO_MS):
        return None
    told = {key: value or "" for key, value in info.decoded_properties.items()}
    if not all(told.get(key) for key in ("grid", "server", "address")):
        return None
    return Announcement(
        grid=told["grid"],
        grid_name=told.get("grid_name", ""),
        server=told["server"],
        server_name=told.get("name", ""),
        grid_address=told["address"],
        version=told.get("version", ""),
    )


def _service(what: Announcement) -> AsyncServiceInfo:
    host, port = split_address(what.grid_address)
    try:
        addresses = [ip_address(host).packed]
    except ValueError:
        addresses = []  # a name: whoever finds us resolves it from the address in the properties
    return AsyncServiceInfo(
        SERVICE,
        f"{what.server}.{SERVICE}",
        port=port,
        addresses=addresses or [socket.inet_aton("127.0.0.1")],
        server=f"{what.server}.local.",
        properties={
            "grid": what.grid,
            "grid_name": what.grid_name,
            "server": what.server,
            "name": what.server_name,
            "address": what.grid_address,
            "version": what.version,
        },
    )


def interfaces_for(grid_address: str) -> tuple[str, ...]:
    """Return where to announce an address: a grid on loopback is nobody else's business; () means everywhere."""
    try:
        return ("127.0.0.1",) if ip_address(split_address(grid_address)[0]).is_loopback else ()
    except ValueError:
        return ()


def _interfaces(what: Announcement) -> Sequence[str]:
    return interfaces_for(what.grid_address)


def _open(interfaces: Sequence[str]) -> AsyncZeroconf:
    # zeroconf leaves its socket open when an interface fails, so that is found out before.
    for address in interfaces:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            group_and_interface = socket.inet_aton("224.0.0.251") + socket.inet_aton(address)
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group_and_interface)
    return AsyncZeroconf(interfaces=list(interfaces) or InterfaceChoice.All, ip_version=IPVersion.V4Only)


def _problem(error: Exception) -> str:
    return f"This server cannot look for others by itself: {error}. {HINT}"
