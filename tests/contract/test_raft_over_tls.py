"""Three servers' logs over their real grid ports on loopback: certificates, TCP, one loop for all."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.clock import SystemClock
from kmgr.grid.commands import APPLIERS
from kmgr.grid.queries import settings
from kmgr.grid.raft.grid import RaftGrid
from kmgr.grid.raftlink import RaftLink
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.grid.wire import GridPort
from kmgr.ids import ServerId
from tests.lab.raft_lab import QUICK, A, B, C, eventually, put
from tests.lab.wires import Wires


class Wired:
    """One server: port, link, log."""

    def __init__(self, wires: Wires, server: ServerId, fatal: list[str]) -> None:
        self.port: GridPort = wires.port(server)
        self.link = RaftLink(self.port, clock=SystemClock())
        self.store = Store(wires.folder / f"{server}.sqlite", (SCHEMA,))
        self.grid = RaftGrid(
            server,
            folder=wires.folder / f"{server}.raft",
            store=self.store,
            appliers=APPLIERS,
            link=self.link,
            clock=SystemClock(),
            founder=server == A,
            on_fatal=fatal.append,
            timing=QUICK,
        )
        self.dialling: asyncio.Task[None] | None = None

    async def begin(self, wires: Wires) -> None:
        await wires.start(self.port)
        await self.grid.start()
        self.dialling = asyncio.create_task(self.link.run())

    async def end(self) -> None:
        if self.dialling is not None:
            self.dialling.cancel()
            await asyncio.gather(self.dialling, return_exceptions=True)
            self.dialling = None
            await self.port.stop()
            await self.grid.stop()
            self.store.close()


class Grids:
    """All servers by name."""

    def __init__(self, folder: Path) -> None:
        self.wires = Wires(folder)
        self.fatal: list[str] = []
        self.servers = {server: Wired(self.wires, server, self.fatal) for server in (A, B, C)}

    async def begin(self) -> None:
        for wired in self.servers.values():
            await wired.begin(self.wires)
        first = self.servers[A].grid
        await eventually(lambda: first.status().is_leader)
        for server in (B, C):
            await self.connected(server)
            await first.add_voter(server)

    async def connected(self, server: ServerId) -> None:
        await eventually(lambda: server in self.servers[A].link.connected())

    def value(self, server: ServerId) -> int:
        with self.servers[server].grid.view() as db:
            return int(settings(db)["heartbeat_ms"])


@pytest.fixture
async def grids(tmp_path: Path) -> AsyncIterator[Grids]:
    grids = Grids(tmp_path)
    await grids.begin()
    yield grids
    for wired in grids.servers.values():
        await wired.end()
    await grids.wires.stop()
    assert grids.fatal == []


async def test_changes_travel_over_tls_and_outlive_the_leader(grids: Grids) -> None:
    for number, server in enumerate((A, B, C), 1100):
        await put(grids.servers[server].grid, number)
        assert grids.value(server) == number
    assert grids.servers[B].grid.status().voters == (A, B, C)
    await grids.servers[A].end()
    await put(grids.servers[B].grid, 1200)
    await put(grids.servers[C].grid, 1201)
    await eventually(lambda: grids.value(B) == grids.value(C) == 1201)


async def test_many_changes_at_once_from_all_servers_are_all_made(grids: Grids) -> None:
    await asyncio.gather(
        *(put(grids.servers[(A, B, C)[n % 3]].grid, 1300 + n, id=f"cmd-{n}", timeout_s=30) for n in range(150))
    )
    await eventually(lambda: len({wired.grid.status().applied for wired in grids.servers.values()}) == 1)
    assert len({grids.value(server) for server in (A, B, C)}) == 1
