"""Three servers in one process: heartbeats, loss and return, join and removal, by a clock moved by hand."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import ManualClock
from kmgr.grid import authority
from kmgr.grid.commands import APPLIERS
from kmgr.grid.identity import Identity
from kmgr.grid.leadership import Leadership, Voting, Watch
from kmgr.grid.local import LocalGrid, LocalLog, LocalNetwork
from kmgr.grid.presence import ContactBook, Presence, Whereabouts
from kmgr.grid.queries import events, servers
from kmgr.grid.schema import SCHEMA
from kmgr.grid.vitals import Board, Heart
from kmgr.ids import ServerId

IDS = [ServerId(f"srv-{letter}") for letter in "abc"]


async def measured() -> Mapping[str, Any]:
    return {"cpus": 1}


class NoVoters:
    """The local log has no voters of its own: every connected server counts."""

    def __init__(self, log: LocalLog) -> None:
        self.log = log
        self.steps: list[str] = []

    def feed(self, servers: frozenset[ServerId]) -> None:
        """Every server of the local log learns it anyway."""

    def progress(self) -> Mapping[ServerId, int]:
        return {}

    async def add_voter(self, server: ServerId) -> None:
        self.steps.append(f"add {server}")

    async def remove_voter(self, server: ServerId) -> None:
        self.steps.append(f"remove {server}")
        self.log.voteless.add(server)

    async def hand_over(self, server: ServerId) -> None:
        self.steps.append(f"hand over to {server}")


class Simulated:
    """One server: its agents run as tasks."""

    def __init__(self, lab: "Lab", id: ServerId) -> None:
        folder = lab.folder / id
        (folder / "identity").mkdir(parents=True)
        self.grid = LocalGrid(
            id, path=folder / "s", appliers=APPLIERS, schemas=(SCHEMA,), clock=lab.clock, log=lab.log
        )
        peers = {other: f"{other}:1" for other in IDS if other != id}
        self.own = Identity(id, id[4:], "grid-1", "lab", b"", lab.cert, b"", b"", peers)
        self.book = ContactBook(self.own)
        self.board = Board()
        self.heart = Heart(
            self.grid,
            lab.network.port(id),
            board=self.board,
            contacts=self.book,
            clock=lab.clock,
            measure=measured,
        )
        self.leadership = Leadership(self.grid, clock=lab.clock)
        self.leadership.duty("watch", Watch(self.grid, self.board, clock=lab.clock).run)
        self.leadership.duty("voting", Voting(self.grid, lab.voters, self.board, clock=lab.clock).run)
        self.presence = Presence(
            self.grid,
            own=self.own,
            data_dir=folder,
            where=Whereabouts(f"{id}:1", f"{id}:2", "2"),
            book=self.book,
            port=None,
            clock=lab.clock,
        )
        self.tasks = [asyncio.create_task(agent.run()) for agent in (self.heart, self.leadership, self.presence)]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.grid.close()


class Lab:
    """The whole grid and the ways to disturb it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.log = LocalLog()
        self.network = LocalNetwork()
        self.voters = NoVoters(self.log)
        self.cert = authority.create_ca("lab", now_ms=0).cert_pem
        self.servers = [Simulated(self, server) for server in IDS]

    async def create(self) -> None:
        for server in IDS:
            body = {"server": server, "name": server[4:], "grid_address": f"{server}:1", "web_address": f"{server}:2"}
            await self.servers[0].grid.propose("server.add", {**body, "version": "1", "fingerprint": ""}, by="test")
        await self.wait(3)

    async def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            await self.clock.advance(0.1)

    def cut(self, id: ServerId) -> None:
        self.log.cut_off.add(id)
        self.network.down.add(id)

    def mend(self, id: ServerId) -> None:
        self.log.cut_off.discard(id)
        self.network.down.discard(id)
        self.log.deliver()

    def states(self, at: int) -> list[str]:
        with self.servers[at].grid.view() as db:
            return [server.state.value for server in servers(db, removed=True)]


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await lab.create()
    yield lab
    for server in lab.servers:
        await server.stop()


async def test_servers_that_joined_come_up_and_announce_what_they_are(lab: Lab) -> None:
    assert lab.states(0) == lab.states(2) == ["up", "up", "up"]
    with lab.servers[1].grid.view() as db:
        assert {server.version for server in servers(db)} == {"2"}
    assert set(lab.servers[2].board.all()) == set(IDS)


async def test_a_silent_server_is_lost_within_eight_seconds_and_up_when_it_returns(lab: Lab) -> None:
    lab.cut(IDS[2])
    await lab.wait(5)
    assert lab.states(0) == ["up", "up", "up"]
    await lab.wait(3)
    assert lab.states(0) == lab.states(1) == ["up", "up", "lost"]
    lab.mend(IDS[2])
    await lab.wait(3)
    assert lab.states(2) == ["up", "up", "up"]


async def test_when_the_leader_dies_the_next_one_gives_it_a_full_term(lab: Lab) -> None:
    lab.cut(IDS[0])
    await lab.wait(6)
    assert lab.states(1) == ["up", "up", "up"]
    await lab.wait(3)
    assert lab.states(1) == ["lost", "up", "up"]
    lab.mend(IDS[0])
    await lab.wait(3)
    assert lab.states(1) == ["up", "up", "up"]
    with lab.servers[0].grid.view() as db:
        assert [event.text for event in events(db, subject=IDS[0], limit=1)] == ["a is back"]


@pytest.mark.parametrize("election_s", [0.2, 1.0, 2.0, 3.0])
async def test_a_lost_leader_is_declared_lost_within_eight_seconds_however_long_the_election_takes(
    lab: Lab, election_s: float
) -> None:
    lab.cut(IDS[0])
    lab.log.cut_off.update(IDS)
    await lab.wait(election_s)
    lab.log.cut_off.difference_update(IDS[1:])
    await lab.wait(5.5 - election_s)
    assert lab.states(1) == ["up", "up", "up"]
    await lab.wait(2.5)
    assert lab.states(1) == ["lost", "up", "up"]


async def test_a_new_leader_that_was_cut_off_from_all_declares_nobody_lost_for_that(lab: Lab) -> None:
    for server in IDS[1:]:
        lab.cut(server)
    await lab.wait(30)
    # Now the second one leads, and hears the others again a moment later.
    for server in IDS[1:]:
        lab.mend(server)
    lab.log.cut_off.add(IDS[0])
    lab.network.down.add(IDS[2])
    await lab.wait(3.5)
    lab.network.down.discard(IDS[2])
    lab.log.cut_off.discard(IDS[0])
    await lab.wait(3)
    with lab.servers[1].grid.view() as db:
        assert not [event for event in events(db, limit=50) if "lost" in event.text]
    assert lab.states(1) == ["up", "up", "up"]


async def test_a_leader_without_a_majority_declares_nobody_lost(lab: Lab) -> None:
    lab.cut(IDS[1])
    lab.cut(IDS[2])
    await lab.wait(20)
    assert lab.states(0) == ["up", "up", "up"]


async def test_a_removed_server_stops_voting_and_is_forgotten_by_the_others(lab: Lab) -> None:
    await lab.servers[1].grid.propose("server.remove", {"server": IDS[2]}, by="test")
    await lab.wait(6)
    assert f"remove {IDS[2]}" in lab.voters.steps
    assert lab.servers[0].book().removed == {IDS[2]}
    assert IDS[2] not in lab.servers[0].book().addresses
    await lab.wait(10)
    assert lab.states(0) == ["up", "up", "removed"]
