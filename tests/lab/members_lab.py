"""Real logs with the duties that watch over members, whose time runs eight times as fast: who is up, who votes."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from kmgr.errors import KmgrError
from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.leadership import Leadership, Voting, Watch
from kmgr.grid.membership import settled
from kmgr.grid.model import Server, ServerRole, ServerState, Vitals
from kmgr.grid.queries import servers
from kmgr.grid.raft.grid import RaftGrid
from kmgr.grid.vitals import Board
from kmgr.ids import ServerId
from tests.lab.raft_lab import QUICK, RaftLab, eventually

SPEED = 8.0
BEAT_S = 0.04


class FastClock:
    """A clock for the duties, so that ten minutes' patience can be tested."""

    def now_ms(self) -> int:
        """Return the wall clock."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return seconds that pass faster than real ones."""
        return time.monotonic() * SPEED

    async def sleep(self, seconds: float) -> None:
        """Sleep a fraction of it."""
        await asyncio.sleep(seconds / SPEED)


class MembersLab:
    """A grid of logs whose servers hear each other's heartbeats as long as they are alive."""

    def __init__(self, folder: Path) -> None:
        self.raft = RaftLab(folder)
        self.clock = FastClock()
        self.boards: dict[ServerId, Board] = {}
        self._witnesses: set[ServerId] = set()
        self._tasks: dict[ServerId, list[asyncio.Task[None]]] = {}

    # What a test does.

    async def found(self, server: ServerId) -> None:
        """Make a grid of one server, with short patience."""
        await self.start(server, founder=True)
        await eventually(self.raft.leader)
        await self.do("server.add", **_newcomer(server, ServerRole.SERVER))
        await self.do("setting.set", name="heartbeat_ms", value=200)
        await self.do("setting.set", name="lost_after_ms", value=2_000)
        await self.do("setting.set", name="replace_voter_after_s", value=10)
        await self.all_up(server)

    async def grow(self, *names: ServerId, witness: ServerId | None = None) -> None:
        """Make a grid of these servers and perhaps a witness."""
        await self.found(names[0])
        for server in names[1:]:
            await self.join(server)
            await self.all_up(server)
        if witness is not None:
            await self.join(witness, ServerRole.WITNESS)
            await self.all_up(witness)
        alive = [*names, *([witness] if witness is not None else [])]
        await self.votes(*settled(list(self.known().values()), [names[0]], alive, leader=names[0]))

    async def join(self, server: ServerId, role: ServerRole = ServerRole.SERVER) -> None:
        """Let a server join, as the desk does, and start it."""
        await self.do("server.add", **_newcomer(server, role))
        if role is ServerRole.WITNESS:
            self._witnesses.add(server)
        await self.start(server)

    async def start(self, server: ServerId, *, founder: bool = False) -> None:
        """Start a server (again)."""
        reluctance_s = 0.5 if server in self._witnesses else 0.0
        self.raft.timing = replace(QUICK, reluctance_s=reluctance_s)
        grid = await self.raft.begin(server, founder=founder)
        board = self.boards[server] = Board()
        leadership = Leadership(grid, clock=self.clock)
        leadership.duty("watch", Watch(grid, board, clock=self.clock).run)
        leadership.duty("voting", Voting(grid, grid, board, clock=self.clock).run)
        self._tasks[server] = [asyncio.create_task(leadership.run()), asyncio.create_task(self._beat(server))]

    async def kill(self, *names: ServerId) -> None:
        """Kill servers."""
        for server in names:
            await self._silence(server)
            await self.raft.kill(server)

    async def close(self) -> None:
        """Stop everything."""
        for server in list(self._tasks):
            await self._silence(server)
        await self.raft.close_all()

    async def do(self, type: str, **body: object) -> None:
        """Make a change that must succeed, through whichever server can, within some seconds."""
        async with asyncio.timeout(15):
            while True:
                for grid in list(self.raft.grids.values()):
                    if (found := await self._try(grid, type, body)) is not None:
                        assert isinstance(found, Applied), found
                        return
                await asyncio.sleep(0.05)

    async def _try(self, grid: RaftGrid, type: str, body: dict[str, object]) -> Outcome | None:
        try:
            return await grid.propose(type, body, by="test", timeout_s=2)
        except KmgrError:
            return None

    # What a test asks.

    def known(self) -> dict[ServerId, Server]:
        """Return the servers table as the leader (or anybody) sees it."""
        grid = self.raft.leader() or next(iter(self.raft.grids.values()))
        with grid.view() as db:
            return {server.id: server for server in servers(db, removed=True)}

    def voters(self) -> set[ServerId]:
        """Return who votes as the leader sees it."""
        leader = self.raft.leader()
        return set(leader.status().voters) if leader is not None else set()

    async def all_up(self, *names: ServerId) -> None:
        """Wait until these are up in the grid's eyes."""
        await eventually(lambda: all(self.known()[s].state is ServerState.UP for s in names))

    async def votes(self, *names: ServerId) -> None:
        """Wait until exactly these vote."""
        try:
            await eventually(lambda: self.voters() == set(names))
        except TimeoutError:
            raise AssertionError(f"voters are {sorted(self.voters())}, not {sorted(names)}") from None

    async def keep_on(self, *names: ServerId, rounds: int = 10) -> None:
        """See that exactly these go on voting for a while."""
        for _ in range(rounds):
            await asyncio.sleep(0.1)
            assert self.voters() in (set(names), set()), self.voters()

    async def _beat(self, server: ServerId) -> None:
        while True:
            applied = self.raft.grids[server].status().applied
            for board in self._hearing():
                board.put(Vitals(server, self.clock.monotonic(), extra={"applied": applied}))
            await asyncio.sleep(BEAT_S)

    def _hearing(self) -> Iterable[Board]:
        return [self.boards[other] for other in self.raft.grids if other in self.boards]

    async def _silence(self, server: ServerId) -> None:
        tasks = self._tasks.pop(server, [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _newcomer(server: ServerId, role: ServerRole) -> dict[str, object]:
    addresses = {"grid_address": f"{server}:8440", "web_address": f"{server}:443"}
    return {"server": server, "name": server, **addresses, "version": "0", "fingerprint": "", "role": role}
