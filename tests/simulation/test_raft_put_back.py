"""Copies that are only moments older, put back when nobody has noted anything newer: what the others have must do."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pysyncobj import syncobj

from kmgr.grid.envelope import Applied, Command, encode
from kmgr.grid.raft import library, opening, trust
from kmgr.grid.raft.core import Core
from kmgr.grid.raft.proposals import Proposal
from kmgr.ids import CommandId, ServerId
from tests.lab.raft_sim import Sim
from tests.lab.sim_parts import Faults, SimFile


def now() -> float:
    """Return the time of the simulation that runs."""
    return SimFile.sim.tick()


class Moment:
    """Three voters at rest; from here on only what a test says happens."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.sim = Sim(folder, seed, Faults())
        self.sim.calm(lambda: self.sim.leader() is not None)
        for server in list(self.sim.servers)[1:]:
            self.sim.ask_for_voter(server)
        self.sim.calm(self.sim.level)
        leader = self.sim.leader()
        assert leader is not None
        self.a = leader.id
        self.b, self.c = sorted(set(self.sim.servers) - {leader.id})
        self.copies: dict[ServerId, Path] = {}

    def core(self, one: ServerId) -> Core:
        """Return a living server."""
        core = self.sim.servers[one].core
        assert core is not None
        return core

    def copy(self, one: ServerId) -> None:
        """Copy a server's folder."""
        self.copies[one] = self.sim.folder / f"copy of {one}"
        shutil.copytree(self.sim.folder / one, self.copies[one])

    def say(self, a: ServerId, b: ServerId) -> None:
        """Let all that a said reach b."""
        self.sim.hear_out(a, b)

    def round(self, one: ServerId) -> None:
        """Let a server do a round."""
        self.sim.round(self.sim.servers[one])

    def propose(self, at: ServerId) -> int:
        """Propose a change."""
        self.sim.said += 1
        number = self.sim.said

        def answer(found: object) -> None:
            if isinstance(found, Applied):
                self.sim.acknowledged.add(number)

        command = Command("note.add", CommandId(f"cmd-{number}"), 0, "sim", {"n": number})
        self.core(at).proposals.add(Proposal(command.id, encode(command), answer, self.sim.now))
        return number

    def kill(self, one: ServerId) -> None:
        """End a server; whatever it said and was not heard is lost."""
        for other in self.sim.servers:
            self.sim.disconnect(one, other)
        server = self.sim.servers[one]
        assert server.core is not None
        assert server.store is not None
        server.core.abandon()
        server.core = None
        server.store.close()

    def begin(self, one: ServerId) -> None:
        """Start it; it hears the first words of all that live."""
        self.sim.begin(one)
        for other in self.sim.servers:
            self.say(other, one)

    def put_back(self, one: ServerId) -> None:
        """Start it from the copy."""
        home = self.sim.folder / one
        shutil.rmtree(home)
        shutil.copytree(self.copies[one], home)
        self.sim.files.pop(home / "raft" / "journal", None)
        server = self.sim.servers[one]
        server.checked, server.seen = 0, ()
        self.sim.promises.pop(one, None)
        self.sim.votes.pop(one, None)
        self.begin(one)

    def acknowledged(self, *ways: tuple[ServerId, ServerId]) -> int:
        """Have a change acknowledged while only these ways are used."""
        number = self.propose(ways[0][0])
        for _ in range(40):
            if number in self.sim.acknowledged:
                return number
            self.round(ways[0][0])
            if number in self.sim.acknowledged:
                return number
            for source, target in ways:
                self.say(source, target)
                self.round(target)
        raise AssertionError("it was not acknowledged")

    def pass_time(self, seconds: float, *alive: ServerId) -> None:
        """Let some servers talk to each other."""
        until = self.sim.now + seconds
        dice = random.Random(1)  # noqa: S311 - an order, protects nothing
        while self.sim.now < until:
            self.sim.now += 0.002
            self.round(dice.choice(alive))
            for source in alive:
                for target in alive:
                    if source != target and dice.random() < 0.5:
                        self.say(source, target)
            self.sim.check()

    def all_agree(self) -> None:
        """Heal everything, let it come to rest and compare."""
        self.sim.calm(self.sim.level)
        self.sim.judge()


@pytest.fixture
def moment(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moment]:
    monkeypatch.setattr(syncobj, "monotonicTime", now)
    monkeypatch.setattr(opening, "LogFile", SimFile)
    monkeypatch.setattr(trust, "HOLD", 0.3)
    monkeypatch.setattr(library, "BATCH_BYTES", 300)
    moment = Moment(tmp_path, 3)
    yield moment
    moment.sim.close()


def test_a_leader_that_forgot_what_one_other_has(moment: Moment) -> None:
    a, b, c = moment.a, moment.b, moment.c
    moment.copy(a)
    moment.acknowledged((a, b), (b, a))
    # What it said then, that this is committed, is lost with it.
    moment.kill(a)
    moment.put_back(a)
    moment.kill(b)
    moment.pass_time(5, a, c)
    moment.all_agree()


def test_a_follower_that_forgot_what_a_leader_had_no_time_to_note(moment: Moment) -> None:
    a, b, c = moment.a, moment.b, moment.c
    moment.copy(b)
    moment.acknowledged((a, b), (b, a))
    moment.kill(a)
    moment.kill(b)
    moment.begin(a)
    moment.put_back(b)
    moment.kill(a)
    moment.pass_time(5, b, c)
    moment.all_agree()


def test_a_server_that_is_killed_again_before_it_has_what_it_forgot(moment: Moment) -> None:
    a, b, c = moment.a, moment.b, moment.c
    moment.copy(b)
    moment.acknowledged((a, b), (b, a))
    moment.kill(a)
    moment.kill(b)
    moment.begin(a)
    moment.put_back(b)
    moment.kill(b)
    moment.kill(a)
    # Nobody who could tell it lives when it starts.
    moment.begin(b)
    moment.pass_time(5, b, c)
    moment.all_agree()


def test_a_server_is_made_whole_although_logs_are_compacted_faster_than_it_asks(moment: Moment) -> None:
    a, b, c = moment.a, moment.b, moment.c
    moment.copy(b)
    moment.acknowledged((a, b), (b, a))
    moment.kill(b)
    moment.put_back(b)
    moment.round(b)
    assert moment.core(b).shown.doubt
    until = moment.sim.now + 10
    while moment.core(b).shown.doubt and moment.sim.now < until:
        # More entries between two of its questions than a compacted log keeps.
        for _ in range(8):
            moment.propose(a)
        moment.pass_time(0.05, a, b, c)
    assert not moment.core(b).shown.doubt
    moment.all_agree()
