"""Several servers' logs in one process, over wires that can be pulled, in folders that outlive them."""

import asyncio
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from kmgr.clock import SystemClock
from kmgr.grid.commands import APPLIERS
from kmgr.grid.envelope import Outcome
from kmgr.grid.fsm import Applier
from kmgr.grid.queries import settings
from kmgr.grid.raft.grid import RaftGrid
from kmgr.grid.raft.library import Timing
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.ids import CommandId, ServerId
from tests.lab.memory_link import MemoryWires

A, B, C, D = (ServerId(f"srv-{letter}") for letter in "abcd")
QUICK = Timing(election_min_s=0.3, election_max_s=0.6, beat_s=0.06, fallback_s=0.45, tick_s=0.02, compact_most=0)


async def eventually(what: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Return as soon as `what()` is true."""
    async with asyncio.timeout(within_s):
        while not what():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


class RaftLab:
    """Servers by name: begin them, kill them, start them again."""

    def __init__(self, folder: Path, *, timing: Timing = QUICK) -> None:
        self.folder = folder
        self.timing = timing
        self.appliers: Mapping[str, Applier] = APPLIERS
        self.wires = MemoryWires()
        self.grids: dict[ServerId, RaftGrid] = {}
        self.stores: dict[ServerId, Store] = {}
        self.fatal: list[str] = []

    async def begin(self, server: ServerId, *, founder: bool = False) -> RaftGrid:
        """Start (or start again) a server from its folder and plug it in."""
        home = self.folder / server
        home.mkdir(exist_ok=True)
        store = self.stores[server] = Store(home / "state.sqlite", (SCHEMA,))
        grid = self.grids[server] = RaftGrid(
            server,
            folder=home / "raft",
            store=store,
            appliers=self.appliers,
            link=self.wires.link(server),
            clock=SystemClock(),
            founder=founder,
            on_fatal=self.fatal.append,
            timing=self.timing,
        )
        await grid.start()
        self.wires.up(server)
        return grid

    async def grow(self, *servers: ServerId) -> None:
        """Make a grid of these servers, the first one its founder."""
        first = await self.begin(servers[0], founder=True)
        await eventually(lambda: first.status().is_leader)
        for server in servers[1:]:
            await self.begin(server)
            await eventually(lambda: first.status().majority)
            await first.add_voter(server)
        await self.level()

    async def kill(self, server: ServerId) -> None:
        """End a server as `kill -9` would: nothing more is written or sent."""
        self.wires.down(server)
        await self.grids.pop(server).abandon()
        self.stores.pop(server).close()

    async def close(self, server: ServerId) -> None:
        """End a server in order."""
        self.wires.down(server)
        await self.grids.pop(server).stop()
        self.stores.pop(server).close()

    async def close_all(self) -> None:
        """End all servers in order."""
        for server in list(self.grids):
            await self.close(server)

    def lose_state(self, server: ServerId) -> None:
        """Delete a dead server's state database, which is disposable."""
        for path in (self.folder / server).glob("state.sqlite*"):
            path.unlink()

    def copy(self, server: ServerId, to: Path) -> None:
        """Copy a dead server's folder."""
        shutil.copytree(self.folder / server, to)

    def leader(self) -> RaftGrid | None:
        """Return the leader if exactly one server says it leads with a majority."""
        leaders = [grid for grid in self.grids.values() if grid.status().is_leader and grid.status().majority]
        return leaders[0] if len(leaders) == 1 else None

    async def led(self) -> RaftGrid:
        """Wait for the leader and return it."""
        await eventually(self.leader)
        leader = self.leader()
        assert leader is not None
        return leader

    async def level(self) -> None:
        """Wait until all running servers have applied the same entries."""
        await eventually(lambda: self.leader() and len({g.status().applied for g in self.grids.values()}) == 1)

    def value(self, server: ServerId) -> int:
        """Return the setting that `put` changes, as this server sees it."""
        with self.grids[server].view() as db:
            return int(settings(db)["heartbeat_ms"])


async def put(
    grid: RaftGrid,
    value: int,
    *,
    id: str | None = None,
    timeout_s: float = 10.0,
) -> Outcome:
    """Change a setting through one server."""
    command = CommandId(id) if id else None
    body = {"name": "heartbeat_ms", "value": value}
    return await grid.propose("setting.set", body, by="test", id=command, timeout_s=timeout_s)
