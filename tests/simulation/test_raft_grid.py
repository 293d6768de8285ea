"""What was acknowledged stays: servers killed, cut off, started again, added, removed, caught up."""

import asyncio
import errno
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kmgr.errors import ConfigError, OutcomeUnknown, Unavailable
from kmgr.grid.commands import APPLIERS
from kmgr.grid.envelope import Applied
from kmgr.grid.queries import events
from kmgr.grid.raft import opening
from kmgr.grid.raft.logfile import LogFile
from tests.lab.raft_lab import QUICK, A, B, C, D, RaftLab, eventually, put


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[RaftLab]:
    lab = RaftLab(tmp_path)
    yield lab
    await lab.close_all()
    assert lab.fatal == []


async def test_a_change_proposed_anywhere_is_visible_there_at_once_and_soon_everywhere(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    for value, server in enumerate((A, B, C), 1000):
        assert isinstance(await put(lab.grids[server], value), Applied)
        assert lab.value(server) == value
    await lab.level()
    assert lab.value(A) == lab.value(B) == 1002


async def test_when_the_leader_ends_another_one_goes_on(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    await put(lab.grids[A], 1100)
    await lab.close((await lab.led()).server)
    for server in lab.grids:
        await put(lab.grids[server], 1101)
        assert lab.grids[server].status().majority
    assert {lab.value(server) for server in lab.grids} == {1101}


async def test_killed_all_at_once_and_started_again_nothing_acknowledged_is_missing(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    for value in range(1001, 1031):
        await put(lab.grids[(A, B, C)[value % 3]], value)
    for server in (A, B, C):
        await lab.kill(server)
    lab.lose_state(B)
    for server in (A, B, C):
        await lab.begin(server)
    await lab.level()
    assert {lab.value(server) for server in (A, B, C)} == {1030}
    with lab.grids[B].view() as db:
        assert len([event for event in events(db, limit=100) if event.kind == "setting"]) == 30


async def test_a_server_that_was_killed_catches_up_while_the_others_go_on(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    leader = (await lab.led()).server
    await lab.kill(leader)
    rest = next(iter(lab.grids.values()))
    for value in range(1000, 1020):
        await put(rest, value)
    await lab.begin(leader)
    await lab.level()
    assert lab.value(leader) == 1019


async def test_a_restart_takes_its_voters_from_the_log_and_never_founds_again(lab: RaftLab) -> None:
    await lab.grow(A, B)
    for server in (A, B):
        await lab.kill(server)
    alone = await lab.begin(A, founder=True)
    with pytest.raises(Unavailable):
        await put(alone, 1200, timeout_s=1.0)
    assert alone.status().voters == (A, B)
    assert not alone.status().is_leader
    await lab.begin(B)
    await put(alone, 1201)


async def test_a_server_that_nobody_added_stays_quiet_and_learns_nothing(lab: RaftLab) -> None:
    await lab.grow(A)
    newcomer = await lab.begin(B)
    await put(lab.grids[A], 1300)
    await asyncio.sleep(0.7)
    status = newcomer.status()
    assert (status.leader, status.voters, status.applied, status.majority) == (None, (), 1, False)
    assert lab.grids[A].status().term == 1


async def test_a_newcomer_catches_up_by_snapshot_and_survives_a_kill_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    lab = RaftLab(tmp_path, timing=replace(QUICK, compact_entries=20))
    await lab.grow(A, B)
    for value in range(1000, 1060):
        await put(lab.grids[B], value)
    assert (tmp_path / A / "raft" / "snapshot").exists()
    await lab.begin(C)
    await (await lab.led()).add_voter(C)
    await lab.level()
    assert "the state was taken over from a snapshot" in caplog.messages
    assert lab.value(C) == 1059
    await put(lab.grids[C], 1060)
    for server in (A, B, C):
        await lab.kill(server)
    lab.lose_state(C)
    for server in (A, B, C):
        await lab.begin(server)
    await lab.level()
    assert {lab.value(server) for server in (A, B, C)} == {1060}
    assert lab.grids[C].status().voters == (A, B, C)
    await lab.close_all()
    assert lab.fatal == []


async def test_the_same_command_id_changes_things_once(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    first = await put(lab.grids[A], 1400, id="cmd-x")
    await put(lab.grids[B], 1401)
    again = await asyncio.gather(*(put(lab.grids[server], 1400, id="cmd-x") for server in (A, B, C)))
    assert all(outcome == first for outcome in again)
    await lab.level()
    assert {lab.value(server) for server in (A, B, C)} == {1401}


async def test_without_a_majority_a_change_is_refused_in_time_and_did_not_happen(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    for server in (A, B):
        await lab.kill(server)
    await eventually(lambda: not lab.grids[C].status().majority)
    began = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable):
        await put(lab.grids[C], 1500, timeout_s=0.5)
    assert asyncio.get_running_loop().time() - began < 2
    await lab.begin(A)
    await put(lab.grids[C], 1501)
    with lab.grids[C].view() as db:
        assert not [event for event in events(db, limit=100) if "1500" in event.text]


async def test_a_deposed_leader_acknowledges_nothing_and_drops_what_it_had(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    old = await lab.led()
    others = [server for server in (A, B, C) if server != old.server]
    for server in others:
        lab.wires.cut(old.server, server)
    with pytest.raises(OutcomeUnknown):
        await put(old, 1600, timeout_s=0.8)
    assert not old.status().majority
    await put(lab.grids[others[0]], 1601)
    lab.wires.mend()
    await lab.level()
    assert {lab.value(server) for server in (A, B, C)} == {1601}
    with old.view() as db:
        assert not [event for event in events(db, limit=100) if "1600" in event.text]


async def test_a_change_whose_leader_dies_is_made_by_the_next_one(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    leader = (await lab.led()).server
    asking = next(server for server in (B, C) if server != leader)
    proposals = [asyncio.create_task(put(lab.grids[asking], value, id=f"cmd-{value}")) for value in range(1700, 1720)]
    await asyncio.sleep(0)
    await lab.kill(leader)
    outcomes = await asyncio.gather(*proposals)
    assert all(isinstance(outcome, Applied) for outcome in outcomes)


async def test_voters_change_one_at_a_time_and_the_leader_hands_over_before_it_goes(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    leader = await lab.led()
    await lab.begin(D)
    heir, other = (server for server in (A, B, C) if server != leader.server)
    with pytest.raises(Unavailable):
        await leader.remove_voter(leader.server)
    await leader.add_voter(D)
    await leader.remove_voter(other)
    await leader.hand_over(heir)
    assert leader.status().leader == heir
    await eventually(lambda: lab.grids[heir].status().is_leader)
    await lab.grids[heir].remove_voter(leader.server)
    await put(lab.grids[heir], 1800)
    assert lab.grids[heir].status().voters == tuple(sorted((heir, D)))
    term = lab.grids[heir].status().term
    await asyncio.sleep(0.8)
    assert lab.grids[heir].status().term == term


async def test_an_unreachable_server_is_not_made_a_voter(lab: RaftLab) -> None:
    await lab.grow(A)
    with pytest.raises(Unavailable, match="not connected"):
        await lab.grids[A].add_voter(B)
    assert lab.grids[A].status().voters == (A,)


async def test_waiting_for_a_change_ends_with_the_change_or_in_time(lab: RaftLab) -> None:
    await lab.grow(A, B)
    since = lab.grids[B].status().applied
    waiting = asyncio.create_task(lab.grids[B].changed(since, timeout_s=5))
    await put(lab.grids[A], 1900)
    assert await asyncio.wait_for(waiting, 1) > since
    await lab.level()
    now = lab.grids[B].status().applied
    assert await lab.grids[B].changed(now, timeout_s=0.05) == now


async def test_a_server_whose_log_is_gone_refuses_to_go_on(lab: RaftLab) -> None:
    await lab.grow(A)
    await lab.kill(A)
    (lab.folder / A / "raft" / "journal").unlink()
    with pytest.raises(ConfigError, match="gone"):
        await lab.begin(A, founder=True)
    lab.grids.pop(A)
    lab.stores.pop(A).close()


async def test_a_bug_stops_the_server_it_shows_itself_on_and_no_exception_escapes(lab: RaftLab) -> None:
    def bug(_db: object, _command: object) -> Applied:
        raise KeyError("bug")

    lab.appliers = {**APPLIERS, "bug": bug}
    await lab.grow(A)
    with pytest.raises(OutcomeUnknown):
        await lab.grids[A].propose("bug", {}, by="test", timeout_s=5)
    await eventually(lambda: lab.fatal)
    assert "applying bug" in lab.fatal[0]
    assert lab.grids[A].status().leader is None
    with pytest.raises(Unavailable):
        await put(lab.grids[A], 2000)
    with pytest.raises(Unavailable):
        await lab.grids[A].add_voter(B)
    lab.fatal.clear()


async def test_a_full_disk_stops_the_server_and_what_was_acknowledged_is_there_afterwards(
    lab: RaftLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(opening, "LogFile", FullLater)
        await lab.grow(A)
    value = 1000
    with pytest.raises(OutcomeUnknown):
        while True:
            await put(lab.grids[A], value + 1, timeout_s=5)
            value += 1
    await eventually(lambda: lab.fatal)
    assert "disk" in lab.fatal[0]
    lab.fatal.clear()
    await lab.close(A)
    await lab.begin(A)
    await (await lab.led()).changed(0, timeout_s=1)
    assert lab.value(A) in {value, value + 1}


class FullLater(LogFile):
    """A disk that is full after some entries."""

    def append(self, data: bytes) -> None:
        if self.size > 2000:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(data)


async def test_a_learner_reads_and_proposes_but_never_counts_or_stands(lab: RaftLab) -> None:
    await lab.grow(A)
    learner = await lab.begin(B)
    lab.grids[A].feed(frozenset({A, B}))
    await eventually(lambda: learner.status().majority)
    await put(learner, 1234)
    assert lab.value(B) == 1234
    await eventually(lambda: lab.value(A) == 1234)  # a leader tells of a commit before it applies it itself
    assert learner.status().voters == (A,)
    await eventually(lambda: lab.grids[A].progress() == {A: learner.status().applied, B: learner.status().applied})
    assert learner.progress() == {}
    await lab.kill(B)
    await put(lab.grids[A], 1235)
    learner = await lab.begin(B)
    await lab.level()
    assert lab.value(B) == 1235
    await lab.kill(A)
    await asyncio.sleep(1.0)
    assert learner.status().leader is None
    with pytest.raises(Unavailable):
        await learner.barrier(0.2)
    await lab.begin(A)
    await lab.led()


async def test_a_removed_voter_that_is_fed_learns_on_and_a_learner_becomes_a_voter(lab: RaftLab) -> None:
    await lab.grow(A, B)
    leader = await lab.led()
    other = B if leader.server == A else A
    leader.feed(frozenset({A, B, C}))
    learner = await lab.begin(C)
    await eventually(lambda: learner.status().majority)
    await leader.remove_voter(other)
    await put(lab.grids[other], 1300)
    assert lab.grids[other].status().voters == (leader.server,)
    await leader.add_voter(C)
    await put(leader, 1301)
    await lab.kill(other)
    await put(learner, 1302)
    await eventually(lambda: lab.value(leader.server) == 1302)


async def test_a_learner_that_nobody_feeds_any_more_learns_no_more(lab: RaftLab) -> None:
    await lab.grow(A)
    learner = await lab.begin(B)
    lab.grids[A].feed(frozenset({B}))
    await eventually(lambda: learner.status().majority)
    lab.grids[A].feed(frozenset())
    await eventually(lambda: B not in lab.grids[A].progress())
    await put(lab.grids[A], 1400)
    await asyncio.sleep(0.3)
    assert lab.value(B) == 1000


async def test_a_current_read_sees_what_was_acknowledged_elsewhere(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    lab.grids[A].feed(frozenset({A, B, C, D}))
    await lab.begin(D)
    await eventually(lambda: lab.grids[D].status().majority)
    for value in range(1100, 1120):
        await put(lab.grids[(A, B, C)[value % 3]], value)
        reader = (A, B, C, D)[value % 4]
        await lab.grids[reader].barrier()
        assert lab.value(reader) == value


async def test_a_deposed_leader_lets_no_current_read_pass(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    old = await lab.led()
    for server in {A, B, C} - {old.server}:
        lab.wires.cut(old.server, server)
    with pytest.raises(Unavailable, match="majority"):
        await old.barrier(0.3)
    waiting = asyncio.create_task(old.barrier(10))
    other = next(server for server in (A, B, C) if server != old.server)
    await put(lab.grids[other], 1500)
    lab.wires.mend()
    await waiting
    assert lab.value(old.server) == 1500


async def test_a_server_with_much_to_apply_catches_up_and_disturbs_nobody(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    leader = await lab.led()
    other = next(server for server in (B, C, A) if server != leader.server)
    for begin in range(0, 1500, 300):
        await asyncio.gather(*(put(leader, 1000 + value) for value in range(begin, begin + 300)))
    await lab.kill(other)
    lab.lose_state(other)
    term = leader.status().term
    await lab.begin(other)
    await put(leader, 1999)
    await lab.level()
    assert lab.value(other) == 1999
    assert leader.status().term == term
