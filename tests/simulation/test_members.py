"""Members come and go on real logs: nothing waits for who is away, nothing is lost on the way."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.grid.model import ServerRole, ServerState
from kmgr.ids import ServerId
from tests.lab.members_lab import MembersLab
from tests.lab.raft_lab import A, B, C, D, eventually

E, W = ServerId("srv-e"), ServerId("srv-w")


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[MembersLab]:
    lab = MembersLab(tmp_path)
    yield lab
    await lab.close()
    assert lab.raft.fatal == []


async def test_one_two_three_two_one(lab: MembersLab) -> None:
    await lab.found(A)
    await lab.join(B)
    await lab.votes(A, B)
    await lab.join(C)
    await lab.votes(A, B, C)
    await lab.do("server.remove", server=C)
    await lab.votes(A, B)
    await lab.do("server.remove", server=B)
    await lab.votes(A)
    await lab.do("setting.set", name="login_tries", value=11)
    assert [s for s, row in lab.known().items() if row.state is not ServerState.REMOVED] == [A]


async def test_a_joining_server_that_never_appears_stops_nobody(lab: MembersLab) -> None:
    await lab.grow(A, B)
    await lab.do("server.add", server=C, name="c", grid_address="c:1", web_address="c:2", version="", fingerprint="")
    await lab.join(D)
    await lab.votes(A, B, D)
    assert lab.known()[C].state is ServerState.JOINING
    await lab.do("server.remove", server=C)


async def test_a_server_joins_while_another_is_down_and_takes_its_vote_in_time(lab: MembersLab) -> None:
    await lab.grow(A, B, C)
    await lab.kill(C)
    await lab.join(D)
    await lab.all_up(D)
    assert lab.voters() == {A, B, C}
    await eventually(lambda: lab.known()[C].state is ServerState.LOST)
    await lab.votes(A, B, D)
    await lab.start(C)
    await lab.all_up(C)
    await lab.keep_on(A, B, D)
    await lab.kill(B)
    await lab.do("setting.set", name="login_tries", value=12)


async def test_the_dead_are_removed_in_one_step_and_the_next_loss_is_survived(lab: MembersLab) -> None:
    await lab.grow(A, B, C)
    await lab.kill(C)
    await lab.do("server.remove", server=C)
    await lab.votes(A, B)
    await lab.join(D)
    await lab.votes(A, B, D)
    await lab.kill(A)
    await lab.do("setting.set", name="login_tries", value=13)


async def test_a_member_is_removed_while_another_is_down(lab: MembersLab) -> None:
    await lab.grow(A, B, C, D)
    await lab.kill(B)
    await lab.do("server.remove", server=D)
    await lab.do("server.remove", server=B)
    await lab.votes(A, C)


@pytest.mark.parametrize("others", [(B,), (B, C)])
async def test_the_leader_is_removed(lab: MembersLab, others: tuple[ServerId, ...]) -> None:
    await lab.grow(A, *others)
    leader = (await lab.raft.led()).server
    await lab.do("server.remove", server=leader)
    await lab.votes(*({A, *others} - {leader}))
    assert (await lab.raft.led()).server != leader
    await lab.kill(leader)
    await lab.do("setting.set", name="login_tries", value=14)


async def test_five_servers_lose_two_for_good_and_then_a_third(lab: MembersLab) -> None:
    await lab.grow(A, B, C, D, E)
    await lab.votes(A, B, C, D, E)
    await lab.kill(D, E)
    await lab.votes(A, B, C)
    await lab.kill(A)
    await lab.do("setting.set", name="login_tries", value=15)
    for server in (A, D, E):
        await lab.start(server)
    await lab.votes(A, B, C, D, E)


async def test_two_servers_with_a_witness_lose_one_and_go_on(lab: MembersLab) -> None:
    await lab.grow(A, B, witness=W)
    await lab.votes(A, B, W)
    leader = (await lab.raft.led()).server
    await lab.kill(leader)
    await lab.do("setting.set", name="login_tries", value=16)
    other = ({A, B} - {leader}).pop()
    await eventually(lambda: (led := lab.raft.leader()) is not None and led.server == other)
    await lab.start(leader)
    await lab.all_up(leader)
    await lab.keep_on(A, B, W)


async def test_servers_stand_before_the_witness_does(lab: MembersLab) -> None:
    await lab.grow(A, B, witness=W)
    terms = 0
    for _ in range(4):
        leader = (await lab.raft.led()).server
        before = lab.raft.grids[leader].status().term
        await lab.kill(leader)
        terms += (await lab.raft.led()).status().term - before
        await lab.start(leader)
        await lab.votes(A, B, W)
        await lab.raft.level()
    # Were it to stand as soon as they do, half of the elections would be followed by a hand-over.
    assert terms <= 5


async def test_a_witness_that_leads_hands_over(lab: MembersLab) -> None:
    await lab.grow(A, B, witness=W)
    await lab.votes(A, B, W)
    await (await lab.raft.led()).hand_over(W)
    await eventually(lambda: (led := lab.raft.leader()) is not None and led.server in {A, B})


async def test_a_witness_is_added_and_removed_at_any_time(lab: MembersLab) -> None:
    await lab.found(A)
    await lab.join(W, ServerRole.WITNESS)
    await lab.all_up(W)
    await lab.keep_on(A)
    await lab.join(B)
    await lab.votes(A, B, W)
    await lab.join(C)
    await lab.votes(A, B, C)
    await lab.do("server.remove", server=W)
    await lab.do("server.remove", server=C)
    await lab.votes(A, B)


async def changed(lab: MembersLab) -> None:
    """Return when other servers vote than now, or all of them."""
    before = lab.voters()
    await eventually(lambda: lab.voters() not in (before, set()) or len(before) == 5)


async def test_cut_off_after_any_change_of_voters_the_next_leader_goes_on(lab: MembersLab) -> None:
    await lab.grow(A, B, C)
    for name in (D, E):
        await lab.join(name)
    for _ in range(4):
        await changed(lab)
        leader = await lab.raft.led()
        await lab.kill(leader.server)
        await lab.raft.led()
        await lab.start(leader.server)
        await asyncio.sleep(0.2)
    await lab.votes(A, B, C, D, E)
