"""Duties begin with the leadership and end with it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Unavailable
from kmgr.grid.commands import APPLIERS
from kmgr.grid.leadership import Leadership, Leading, Voting, Watch
from kmgr.grid.local import LocalGrid, LocalLog
from kmgr.grid.model import Vitals
from kmgr.grid.queries import servers
from kmgr.grid.schema import SCHEMA
from kmgr.grid.vitals import Board
from kmgr.ids import ServerId

IDS = [ServerId(f"srv-{letter}") for letter in "abc"]


class Lab:
    """Three servers on one log; what the second one does as a leader is noted."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.log = LocalLog()
        self.grids = [
            LocalGrid(name, path=folder / name, appliers=APPLIERS, schemas=(SCHEMA,), clock=self.clock, log=self.log)
            for name in IDS
        ]
        self.said: list[str] = []
        self.leadership = Leadership(self.grids[1], clock=self.clock)

    def leads(self) -> bool:
        return self.leadership.leading is not None

    async def duty(self, leading: Leading) -> None:
        self.said.append(f"begin {leading.term} at {leading.since:.0f}")
        try:
            await asyncio.Event().wait()
        finally:
            self.said.append("end")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    for grid in lab.grids:
        grid.close()


async def test_a_duty_runs_only_while_this_server_leads(lab: Lab) -> None:
    lab.leadership.duty("one", lab.duty)
    task = asyncio.create_task(lab.leadership.run())
    await lab.clock.advance(0)
    await lab.clock.advance(5)
    assert lab.said == []
    lab.log.cut_off.add(IDS[0])
    await lab.clock.advance(1)
    assert lab.said == ["begin 1 at 5"]
    assert lab.leads()
    lab.log.cut_off.clear()
    await lab.clock.advance(1)
    assert lab.said == ["begin 1 at 5", "end"]
    assert not lab.leads()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_new_term_begins_the_duty_anew(lab: Lab) -> None:
    lab.log.cut_off.add(IDS[0])
    lab.leadership.duty("one", lab.duty)
    await lab.leadership.look()
    await asyncio.sleep(0)
    lab.log.term = 2
    await lab.leadership.look()
    await asyncio.sleep(0)
    assert lab.said == ["begin 1 at 0", "end", "begin 2 at 0"]
    lab.log.cut_off.update(IDS)
    await lab.leadership.look()
    assert lab.said[-1] == "end"


@pytest.mark.parametrize("error", [Unavailable("no majority"), KeyError("a bug")])
async def test_a_duty_that_fails_is_begun_again(lab: Lab, error: Exception) -> None:
    tries: list[float] = []

    async def failing(leading: Leading) -> None:
        tries.append(lab.clock.monotonic())
        if len(tries) < 3:
            raise error
        await asyncio.Event().wait()

    lab.log.cut_off.add(IDS[0])
    lab.leadership.duty("one", failing)
    await lab.leadership.look()
    await lab.clock.advance(0)
    await lab.clock.advance(5)
    assert tries == [0, 1, 2]
    lab.log.cut_off.update(IDS)
    await lab.leadership.look()


class Balky:
    """Voters of which one cannot be had although it is heard."""

    def __init__(self, grid: LocalGrid, unreachable: ServerId) -> None:
        self.grid = grid
        self.unreachable = unreachable
        self.asked: list[str] = []

    def feed(self, servers: frozenset[ServerId]) -> None:
        self.asked.append(f"feed {len(servers)}")

    def progress(self) -> dict[ServerId, int]:
        return {server: self.grid.status().applied for server in IDS}

    async def add_voter(self, server: ServerId) -> None:
        self.asked.append(f"add {server}")
        if server == self.unreachable:
            raise Unavailable("not connected")

    async def remove_voter(self, server: ServerId) -> None:
        self.asked.append(f"remove {server}")

    async def hand_over(self, server: ServerId) -> None:
        self.asked.append(f"hand over to {server}")


async def test_a_member_that_cannot_be_made_a_voter_does_not_keep_others_from_it(lab: Lab) -> None:
    grid, board = lab.grids[0], Board()
    for server in IDS:
        where = {"grid_address": f"{server}:1", "web_address": f"{server}:2", "version": "", "fingerprint": ""}
        await grid.propose("server.add", {"server": server, "name": server, **where}, by="test")
        board.put(Vitals(server, lab.clock.monotonic(), extra={"applied": 9}))
    lab.log.voteless.update(IDS[1:])
    voters = Balky(grid, IDS[1])
    voting = Voting(grid, voters, board, clock=lab.clock)
    leading = Leading(1, lab.clock.monotonic())
    with pytest.raises(Unavailable):
        await voting.run_once(leading)
    await voting.run_once(leading)
    assert voters.asked == ["feed 3", f"add {IDS[1]}", "feed 3", f"add {IDS[2]}"]
    await lab.clock.advance(20)
    for server in IDS:
        board.put(Vitals(server, lab.clock.monotonic()))
    with pytest.raises(Unavailable):
        await voting.run_once(leading)


async def test_a_leader_that_was_stopped_blames_nobody_for_the_silence_that_it_slept_through(lab: Lab) -> None:
    leader, board = lab.grids[0], Board()
    for name in IDS:
        body = {"server": name, "name": name[4:], "grid_address": f"{name}:1", "web_address": f"{name}:2"}
        await leader.propose("server.add", {**body, "version": "1", "fingerprint": ""}, by="test")
        await leader.propose("server.up", {"server": name}, by="test")
        board.put(Vitals(name, lab.clock.monotonic()))
    watch = asyncio.create_task(Watch(leader, board, clock=lab.clock).run(Leading(1, lab.clock.monotonic())))
    await lab.clock.advance(1)

    def states() -> list[str]:
        with leader.view() as db:
            return [server.state.value for server in servers(db)]

    # The whole process stands still: when it goes on, what was due in between is done once, and late.
    lab.clock.skip(60)
    await lab.clock.advance(0)
    assert states() == ["up", "up", "up"]
    board.put(Vitals(IDS[1], lab.clock.monotonic()))
    await lab.clock.advance(6)
    assert states() == ["up", "up", "lost"], "who is silent while it listens is lost as ever"
    watch.cancel()
