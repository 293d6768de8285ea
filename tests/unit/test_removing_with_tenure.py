"""A server that may run its personal desktops without the others is not removed before it has given that up."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmgr.balancer.maintenance import GIVES_BACK_S, carry_out
from kmgr.balancer.redundancy import Remove
from kmgr.clock import ManualClock
from kmgr.errors import Unavailable
from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.local import LocalGrid, LocalLog
from kmgr.grid.queries import events, server
from kmgr.grid.vitals import Board
from kmgr.ids import ServerId
from kmgr.provision.queries import tenures
from kmgr.provision.tenure import Tenure
from kmgr.registry import APPLIERS, SCHEMAS
from tests.lab.outcomes import rejected
from tests.lab.state import State

A, B = ServerId("srv-a"), ServerId("srv-b")
DRAINS = "b drains: it is given no new desktops"


def refused(outcome: Outcome) -> str:
    return rejected(outcome, "tenure")


def tenured() -> State:
    state = State()
    for name in "ab":
        state.server(name)
    assert isinstance(state.do("tenure.begin", server=B, tenure="t-1"), Applied)
    return state


def test_the_log_removes_no_server_that_has_a_tenure() -> None:
    state = tenured()
    assert "drain it first" in refused(state.do("server.remove", server=B))
    state.do("server.drain", server=B)
    assert "drain it first" in refused(state.do("server.remove", server=B))
    state.do("tenure.give_back", server=B, tenure="t-1")
    assert isinstance(state.do("server.remove", server=B), Applied)


def test_of_one_that_is_lost_a_person_says_first_that_it_is_off() -> None:
    state = tenured()
    state.do("server.lost", server=B)
    assert "kmgr off b" in refused(state.do("server.remove", server=B))
    state.do("tenure.end", server=B)
    assert isinstance(state.do("server.remove", server=B), Applied)
    assert tenures(state.db) == frozenset()


def test_what_a_recovery_removed_keeps_its_tenure_until_a_person_says_that_it_is_off() -> None:
    state = tenured()
    body = {"epoch": 2, "server": A, "name": "a", "how": "recovered"}
    assert isinstance(state.do("grid.recover", **body), Applied)
    assert tenures(state.db) == {B}
    assert isinstance(state.do("server.remove", server=B), Applied), "it is removed already"
    assert isinstance(state.do("tenure.end", server=B), Applied)
    assert tenures(state.db) == frozenset()


@dataclass
class Pair:
    """Two servers that vote; b has a tenure."""

    clock: ManualClock
    log: LocalLog
    a: LocalGrid
    b: Tenure

    def known(self) -> frozenset[ServerId]:
        with self.a.view() as db:
            return tenures(db)

    async def remove(self) -> "asyncio.Task[None]":
        told = carry_out(self.a, Board(), Remove(B), by="root", force=True, clock=self.clock)
        task = asyncio.create_task(told)
        await self.clock.advance(0.1)
        return task


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    clock, log = ManualClock(), LocalLog()
    grids = [
        LocalGrid(s, path=tmp_path / s, appliers=APPLIERS, schemas=SCHEMAS, clock=clock, log=log) for s in (A, B)
    ]
    for name in (A, B):
        where = {"grid_address": f"{name}:1", "web_address": f"{name}:2", "version": "", "fingerprint": ""}
        await grids[0].propose("server.add", {"server": name, "name": name[4:], **where}, by="test")
        await grids[0].propose("server.up", {"server": name}, by="test")
    pair = Pair(clock, log, grids[0], Tenure(grids[1], folder=tmp_path, boot="boot-1", clock=clock))
    await pair.b.step()
    assert pair.known() == {B}
    yield pair
    for one in grids:
        one.close()


def state_of(pair: Pair) -> str:
    with pair.a.view() as db:
        found = server(db, B)
    assert found is not None
    return str(found.state)


async def test_a_live_one_drains_gives_its_tenure_back_and_goes(pair: Pair) -> None:
    asked = await pair.remove()
    assert state_of(pair) == "draining"
    await pair.b.step()
    await pair.clock.advance(2)
    await asked
    assert state_of(pair) == "removed"
    assert pair.known() == frozenset()
    with pair.a.view() as db:
        assert [one.text for one in events(db, subject=B)][:2] == ["b was removed from the grid", DRAINS]


async def test_one_that_does_not_give_it_back_stays_and_drains(pair: Pair) -> None:
    asked = await pair.remove()
    await pair.clock.advance(GIVES_BACK_S + 1)
    with pytest.raises(Unavailable, match="b drains, but has not given up the right"):
        await asked
    assert state_of(pair) == "draining"
    assert pair.known() == {B}
