"""This server in the grid's eyes: its first commands, its row in the servers table, and whom it may speak to.

Three loops in one agent: put a new grid's first commands into the log, announce
this server when its row is not what it is, and follow the servers table so that
the wire knows everybody's address and cuts off who was removed. Runs in the daemon's loop.
"""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import OutcomeUnknown, Unavailable
from kmgr.grid import authority, identity
from kmgr.grid.bootstrap import propose_pending
from kmgr.grid.contacts import Contacts, contacts
from kmgr.grid.envelope import Rejected
from kmgr.grid.identity import Identity
from kmgr.grid.model import Server, ServerState
from kmgr.grid.port import Grid
from kmgr.grid.queries import grid_info, server, servers
from kmgr.grid.wire import GridPort
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

RETRY_S = 1.0
# After a change of the log; a change of addresses may follow it so late.
BREATH_S = 0.1
RENEW_DAYS = 365
DAY_S = 86_400


class ContactBook:
    """Call it for the `Contacts` as last read; before the first entry arrives, those of the join."""

    def __init__(self, own: Identity) -> None:
        self._hints = own.peers
        self._contacts = contacts((), self._hints)

    def __call__(self) -> Contacts:
        """Return addresses and names of the other servers."""
        return self._contacts

    def update(self, known: tuple[Server, ...], voters: Collection[ServerId] = ()) -> bool:
        """Take over the servers table (removed ones included) and who votes; True if anything changed."""
        new = contacts(known, self._hints, voters)
        changed = new != self._contacts
        self._contacts = new
        return changed


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where this server is reached and what it runs, as its configuration says now.

    An address without a host (`:8440`) means that only the port is known: the
    host that the grid found out at the join stays.
    """

    grid_address: str
    web_address: str
    version: str


class Presence:
    """Keeps this server's row and its contacts right. `run()` goes on until it is cancelled."""

    def __init__(
        self,
        grid: Grid,
        *,
        own: Identity,
        data_dir: Path,
        where: Whereabouts,
        book: ContactBook,
        port: GridPort | None,
        clock: Clock,
    ) -> None:
        self._grid = grid
        self._own = own
        self._data_dir = data_dir
        self._where = where
        self._book = book
        self._port = port
        self._clock = clock

    async def run(self) -> None:
        """Follow and announce until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self.stay_announced())

    def look(self) -> None:
        """Read the servers table once; cut off who was removed, remember the addresses for the next start."""
        with self._grid.view() as db:
            known = servers(db, removed=True)
        if known and self._book.update(known, self._grid.status().voters):
            if self._port is not None:
                self._port.refresh()
            peers = {s.id: s.grid_address for s in known if s.state is not ServerState.REMOVED}
            try:
                self._own = identity.remember_peers(self._data_dir, self._own, peers)
            except Unavailable as error:  # a help for the next start, no more
                logger.warning("where the others are cannot be noted", extra={"cause": error.message})

    async def announce_once(self) -> bool:
        """Announce this server if its row differs from what it is; False as long as it has no row."""
        with self._grid.view() as db:
            row = server(db, self._grid.server)
        if row is None or row.state is ServerState.REMOVED:
            return False
        self._renew()
        wanted: dict[str, Any] = {
            "grid_address": _filled(self._where.grid_address, row.grid_address),
            "web_address": _filled(self._where.web_address, row.web_address),
            "version": self._where.version,
            "fingerprint": self._own.fingerprint,
        }
        if any(getattr(row, name) != value for name, value in wanted.items()):
            body = {"server": self._grid.server, **wanted}
            outcome = await self._grid.propose("server.announce", body, by=self._grid.server)
            if isinstance(outcome, Rejected):
                logger.error("the grid refused this server's announcement", extra={"cause": outcome.detail})
        return True

    def _renew(self) -> None:
        """Sign this server's certificate anew in its last year; any member can, for it holds the grid secret."""
        now_ms = self._clock.now_ms()
        if not authority.expires_within(self._own.cert_pem, RENEW_DAYS, now_ms=now_ms):
            return
        with self._grid.view() as db:
            info = grid_info(db)
        if info is not None:
            self._own = identity.renew_certificate(self._data_dir, self._own, info.ca_key_sealed, now_ms=now_ms)
            if self._port is not None:
                self._port.reload()
            logger.info("this server's certificate is renewed", extra={"fingerprint": self._own.fingerprint})

    async def _follow(self) -> None:
        applied = -1
        while True:
            applied = await self._grid.changed(applied, timeout_s=5)
            self.look()
            await self._clock.sleep(BREATH_S)

    async def stay_announced(self) -> None:
        """Announce this server, and look again every day: a certificate is renewed long before its end."""
        while True:
            try:
                await propose_pending(self._grid, self._data_dir)
                if await self.announce_once():
                    await self._clock.sleep(DAY_S)
                    continue
            except (Unavailable, OutcomeUnknown) as error:
                logger.debug("not announced yet", extra={"cause": error.message})
            await self._clock.sleep(RETRY_S)


def _filled(address: str, known: str) -> str:
    return known.rpartition(":")[0] + address if address.startswith(":") else address
