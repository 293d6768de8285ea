"""The `Grid` port: the same promises in memory and with Raft."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import SystemClock
from kmgr.errors import InvariantBroken, Unavailable
from kmgr.grid.commands import APPLIERS
from kmgr.grid.envelope import Applied, Rejected
from kmgr.grid.local import LocalGrid, LocalLog
from kmgr.grid.port import Grid
from kmgr.grid.queries import settings
from kmgr.grid.schema import SCHEMA
from kmgr.ids import CommandId
from tests.lab.raft_lab import A, B, C, RaftLab

SERVERS = (A, B, C)


class InMemory:
    """Three servers on one list."""

    def __init__(self, folder: Path) -> None:
        self.log = LocalLog()
        self.grids: list[Grid] = [
            LocalGrid(s, path=folder / s, appliers=APPLIERS, schemas=(SCHEMA,), clock=SystemClock(), log=self.log)
            for s in SERVERS
        ]

    async def begin(self) -> None:
        """Nothing to wait for."""

    async def cut_last_off(self) -> None:
        self.log.cut_off.add(C)

    async def end(self) -> None:
        for grid in self.grids:
            assert isinstance(grid, LocalGrid)
            grid.close()


class WithRaft:
    """Three servers with a log each."""

    def __init__(self, folder: Path) -> None:
        self.lab = RaftLab(folder)
        self.grids: list[Grid] = []

    async def begin(self) -> None:
        await self.lab.grow(*SERVERS)
        self.grids = [self.lab.grids[server] for server in SERVERS]

    async def cut_last_off(self) -> None:
        self.lab.wires.down(C)

    async def end(self) -> None:
        await self.lab.close_all()
        assert self.lab.fatal == []


@pytest.fixture(params=[InMemory, WithRaft])
async def three(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[InMemory | WithRaft]:
    three = request.param(tmp_path)
    await three.begin()
    yield three
    await three.end()


async def put(grid: Grid, value: object, **more: Any) -> object:
    return await grid.propose("setting.set", {"name": "heartbeat_ms", "value": value}, by="test", **more)


def value(grid: Grid) -> int:
    with grid.view() as db:
        return int(settings(db)["heartbeat_ms"])


async def test_who_proposed_sees_the_change_at_once(three: InMemory | WithRaft) -> None:
    for number, grid in enumerate(three.grids, 1100):
        assert await put(grid, number) == Applied({"before": number - 1 if number > 1100 else 1000})
        assert value(grid) == number


async def test_all_servers_know_leader_voters_and_majority(three: InMemory | WithRaft) -> None:
    await put(three.grids[0], 1100)
    async with asyncio.timeout(5):
        while len({grid.status().leader for grid in three.grids}) > 1:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    for server, grid in zip(SERVERS, three.grids, strict=True):
        status = grid.status()
        assert (grid.server, status.server, status.voters, status.majority) == (server, server, SERVERS, True)
        assert status.leader in SERVERS
    assert sum(grid.status().is_leader for grid in three.grids) == 1


async def test_a_refusal_is_an_outcome_and_changes_nothing(three: InMemory | WithRaft) -> None:
    outcome = await put(three.grids[1], "fast")
    assert isinstance(outcome, Rejected)
    assert value(three.grids[1]) == 1000


async def test_the_same_id_gives_the_same_outcome_and_acts_once(three: InMemory | WithRaft) -> None:
    first = await put(three.grids[0], 1200, id=CommandId("cmd-one"))
    await put(three.grids[1], 1201)
    assert await put(three.grids[0], 1200, id=CommandId("cmd-one")) == first
    assert await put(three.grids[2], 1200, id=CommandId("cmd-one")) == first
    assert value(three.grids[1]) == 1201


async def test_other_servers_are_woken_by_a_change(three: InMemory | WithRaft) -> None:
    await put(three.grids[0], 1300)
    since = await three.grids[1].changed(0, timeout_s=5)
    waiting = asyncio.create_task(three.grids[1].changed(since, timeout_s=5))
    await put(three.grids[0], 1301)
    assert await asyncio.wait_for(waiting, 2) > since


async def test_waiting_in_vain_ends_in_time(three: InMemory | WithRaft) -> None:
    applied = three.grids[0].status().applied
    assert await three.grids[0].changed(applied + 100, timeout_s=0.05) == three.grids[0].status().applied


async def test_a_view_shows_one_state_for_its_whole_block(three: InMemory | WithRaft) -> None:
    grid = three.grids[0]
    with grid.view() as db:
        before = settings(db)["heartbeat_ms"]
        await put(grid, 1400)
        assert settings(db)["heartbeat_ms"] == before
    assert value(grid) == 1400


async def test_cut_off_a_server_can_read_but_not_change(three: InMemory | WithRaft) -> None:
    await put(three.grids[2], 1500)
    await three.cut_last_off()
    async with asyncio.timeout(5):
        while three.grids[2].status().majority:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await put(three.grids[2], 1501, timeout_s=0.3)
    with pytest.raises(Unavailable):
        await three.grids[2].barrier(0.3)
    assert value(three.grids[2]) == 1500
    await put(three.grids[0], 1502)
    assert value(three.grids[0]) == 1502


async def test_a_word_that_nobody_can_apply_never_reaches_the_log(three: InMemory | WithRaft) -> None:
    before = three.grids[0].status().applied
    with pytest.raises(InvariantBroken):
        await three.grids[0].propose("no.such", {}, by="test")
    assert three.grids[0].status().applied == before


async def test_a_current_read_shows_what_another_server_was_told_before(three: InMemory | WithRaft) -> None:
    for number in range(1100, 1110):
        await put(three.grids[number % 3], number)
        reader = three.grids[(number + 1) % 3]
        await reader.barrier()
        assert value(reader) == number
