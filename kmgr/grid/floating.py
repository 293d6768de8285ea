"""Holds the grid address on this server while it is this server's to hold.

Looks four times a second at who leads. The kernel is told to answer for the
address for two seconds at a time, so a killed or frozen daemon loses it by itself
before another server has been elected and has found it free. `run()` goes on
until it is cancelled, and lets go of the address then.
"""

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kmgr.clock import Clock
from kmgr.grid.address import Card, interface_for, should_hold
from kmgr.grid.model import GridStatus
from kmgr.grid.port import Grid
from kmgr.grid.standing import floating_address

logger = logging.getLogger(__name__)

LOOK_S = 0.25
HOLD_S = 2
RENEW_S = 0.5
PROBE_S = 0.3
ANNOUNCE_S = 5.0
# On an island the others may hold it too as soon as the wire is whole again.
DOUBT_S = 2.0
# A former holder that died may still answer for the address for so long; that is nobody's mistake.
PATIENCE_S = 2.0 * HOLD_S


class Network(Protocol):
    """What this machine can do to its network: `kmgr.grid.arp`."""

    def cards(self) -> tuple[Card, ...]:
        """Return the IPv4 addresses of the interfaces that are up."""
        ...

    def take(self, address: ipaddress.IPv4Interface, interface: str, *, for_s: int) -> None:
        """Answer for an address for so long."""
        ...

    def drop(self, address: ipaddress.IPv4Interface, interface: str) -> None:
        """Answer for an address no longer."""
        ...

    def probe(self, ip: ipaddress.IPv4Address, card: Card, *, wait_s: float) -> str | None:
        """Return the hardware address of who answers."""
        ...

    def announce(self, ip: ipaddress.IPv4Address, card: Card) -> None:
        """Tell everybody that this machine has the address now."""
        ...


@dataclass(slots=True)
class _Held:
    address: ipaddress.IPv4Interface
    card: Card
    renewed: float
    announced: float
    doubted: float


class FloatingAddress:
    """This server's part in the grid address. `named` is told the address whenever it is another one."""

    def __init__(
        self,
        grid: Grid,
        network: Network,
        *,
        clock: Clock,
        interface: str,
        named: Callable[[str], Awaitable[None]],
    ) -> None:
        self._grid = grid
        self._network = network
        self._clock = clock
        self._interface = interface
        self._named = named
        self._address = ""
        self._applied = -1
        self._held: _Held | None = None
        self._answered_since: float | None = None
        self._problem = ""

    @property
    def address(self) -> str:
        """Return the grid address as last read, empty if the grid has none."""
        return self._address

    def vitals(self) -> Mapping[str, Any]:
        """Return for the heartbeat whether this server holds the address, and what keeps it from that."""
        held = self._held is not None
        return {"problems": [self._problem] if self._problem else [], "extra": {"holds_grid_address": held}}

    async def run(self) -> None:
        """Take, renew and drop until cancelled."""
        try:
            while True:
                await self.step()
                await self._clock.sleep(LOOK_S)
        finally:
            if self._held is not None:
                self._drop("this server stops")

    async def step(self) -> None:
        """Look once and do what is due."""
        await self._read()
        try:
            if not self._mine():
                self._answered_since, self._problem = None, ""
                if self._held is not None:
                    await asyncio.to_thread(self._drop, "it is another server's to hold")
            elif self._held is None:
                await self._take()
            else:
                await self._keep(self._held)
        except PermissionError:
            self._failed(
                f"this server may not hold the grid address {self._address}: kmgr lacks the right to change network "
                "addresses. Let its systemd unit have CAP_NET_ADMIN and CAP_NET_RAW, or run it as root"
            )
        except OSError as error:
            self._failed(f"the grid address {self._address} cannot be held: {error.strerror or error}")

    async def _read(self) -> None:
        status = self._grid.status()
        if status.applied == self._applied:
            return
        self._applied = status.applied
        with self._grid.view() as db:
            address = floating_address(db)
        if address != self._address:
            if self._held is not None:
                await asyncio.to_thread(self._drop, "the grid has another address now")
            self._address = address
            await self._named(address)

    def _mine(self) -> bool:
        status: GridStatus = self._grid.status()
        return should_hold(self._address, leads=status.is_leader, majority=status.majority, island=status.island)

    async def _take(self) -> None:
        address = ipaddress.IPv4Interface(self._address)
        card = interface_for(self._address, await asyncio.to_thread(self._network.cards), wanted=self._interface)
        if card is None:
            where = (
                f"there is no interface {self._interface} that is up"
                if self._interface
                else ("no interface of this server that is up has an address of its network")
            )
            self._failed(
                f"the grid address {self._address} cannot be held by this server: {where}. Set "
                "address_interface in kmgr.toml, or choose an address of the servers' network"
            )
            return
        other = await asyncio.to_thread(self._network.probe, address.ip, card, wait_s=PROBE_S)
        now = self._clock.monotonic()
        if other is not None:
            self._answered_since = now if self._answered_since is None else self._answered_since
            if now - self._answered_since > PATIENCE_S:
                self._failed(
                    f"the grid address {address.ip} is in use: the machine with hardware address {other} answers for "
                    "it. Free it there, or choose another grid address"
                )
            return
        if not self._mine():
            return
        await asyncio.to_thread(self._network.take, address, card.interface, for_s=HOLD_S)
        self._held = _Held(address, card, now, now, now)
        self._answered_since, self._problem = None, ""
        await asyncio.to_thread(self._network.announce, address.ip, card)
        logger.info("this server holds the grid address", extra={"address": str(address), "on": card.interface})

    async def _keep(self, held: _Held) -> None:
        now = self._clock.monotonic()
        if now - held.renewed < RENEW_S:
            return
        if all(card.interface != held.card.interface for card in await asyncio.to_thread(self._network.cards)):
            await asyncio.to_thread(self._drop, "its interface is down")
            return
        if self._grid.status().island and now - held.doubted > DOUBT_S:
            held.doubted = now
            if await asyncio.to_thread(self._network.probe, held.address.ip, held.card, wait_s=PROBE_S) is not None:
                await asyncio.to_thread(self._drop, "another server holds it")
                return
        if not self._mine():
            return
        await asyncio.to_thread(self._network.take, held.address, held.card.interface, for_s=HOLD_S)
        late, held.renewed = now - held.renewed > HOLD_S, now
        if late or now - held.announced > ANNOUNCE_S:
            held.announced = now
            await asyncio.to_thread(self._network.announce, held.address.ip, held.card)

    def _drop(self, why: str) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        try:
            self._network.drop(held.address, held.card.interface)
        except OSError as error:
            # The kernel forgets it by itself within HOLD_S.
            logger.warning("the grid address could not be dropped", extra={"cause": str(error)})
        logger.info("this server holds the grid address no longer", extra={"address": str(held.address), "why": why})

    def _failed(self, problem: str) -> None:
        if problem != self._problem:
            logger.warning("the grid address is not held", extra={"cause": problem})
        self._problem = problem
