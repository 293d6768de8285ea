"""The tenure of one of two voters: asked for, used, and given back before anybody could need it to be."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.balancer.fencing import Fencing
from kmgr.errors import Unavailable
from kmgr.grid.envelope import Applied, Rejected
from kmgr.grid.model import Server, ServerState
from kmgr.ids import ServerId
from kmgr.provision.lease import LEASE_S, TAKE_OVER_S, Lease
from kmgr.provision.queries import tenure_of
from kmgr.provision.tenure import Tenure
from kmgr.provision.tenure_rules import Step, lasts, next_step, wanted
from tests.lab.provision import A, B, Office
from tests.lab.state import State

C = ServerId("srv-c")


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    office.member(B)
    await office.found()
    yield office


def tenure(office: Office, boot: str = "boot-1") -> Tenure:
    folder = office.folder / "run"
    folder.mkdir(exist_ok=True)
    return Tenure(office.grid, folder=folder, boot=boot, clock=office.clock)


def known(office: Office) -> str:
    with office.grid.view() as db:
        return tenure_of(db, A)


def test_it_is_wanted_by_a_running_one_of_exactly_two_voters() -> None:
    assert wanted(A, ServerState.UP, (A, B))
    for state in (ServerState.DRAINING, ServerState.LOST, ServerState.REMOVED, ServerState.JOINING, None):
        assert not wanted(A, state, (A, B))
    for voters in ((A,), (B, C), (A, B, C), (A, B, C, ServerId("srv-d"))):
        assert not wanted(A, ServerState.UP, voters)


def test_what_is_proposed_follows_what_is_known() -> None:
    assert next_step("", "", wanted=True) is Step.BEGIN
    assert next_step("t-1", "t-1", wanted=True) is Step.NOTHING
    # Of an earlier life, whose end nobody noted: replaced, never used.
    assert next_step("t-0", "", wanted=True) is Step.BEGIN
    assert not lasts("t-0", "", ServerState.UP)
    assert next_step("t-0", "", wanted=False) is Step.GIVE_BACK
    # Asked for, and the answer was not heard: it may still come.
    assert next_step("", "t-1", wanted=False) is Step.GIVE_BACK
    assert next_step("", "", wanted=False) is Step.NOTHING


def test_it_lasts_while_the_state_has_it_and_counts_the_server_as_running() -> None:
    assert lasts("t-1", "t-1", ServerState.UP)
    assert lasts("t-1", "t-1", ServerState.DRAINING)
    for state in (ServerState.LOST, ServerState.REMOVED, None):
        assert not lasts("t-1", "t-1", state)
    assert not lasts("t-2", "t-1", ServerState.UP)
    assert not lasts("", "t-1", ServerState.UP)


async def test_without_a_majority_the_lease_goes_on_by_it(office: Office) -> None:
    mine = tenure(office)
    lease = Lease(office.grid, clock=office.clock, tenured=mine.lasts)
    await mine.step()
    assert await lease.renew()
    office.log.cut_off.add(B)
    for _ in range(10):
        await office.clock.advance(1)
        assert await lease.renew()
        assert lease.holds(LEASE_S - 0.1)
    assert lease.why_not == ""


async def test_what_was_given_back_is_not_used_by_this_life_nor_by_the_next(office: Office) -> None:
    mine = tenure(office)
    await mine.step()
    assert mine.lasts()
    office.log.grids[C] = office.grid
    office.log.cut_off.update({B, C})
    with pytest.raises(Unavailable):
        await mine.step()
    # Nobody has heard that it was given back, but it may have been.
    assert known(office)
    assert not mine.lasts()
    assert not tenure(office).lasts()
    office.log.cut_off.clear()
    await mine.step()
    assert known(office) == ""


async def test_a_daemon_started_again_uses_it_on_in_the_same_boot_only(office: Office) -> None:
    await tenure(office).step()
    assert tenure(office).lasts()
    other = tenure(office, boot="boot-2")
    assert not other.lasts()
    before = known(office)
    await other.step()
    assert other.lasts()
    assert known(office) not in ("", before)
    assert not tenure(office, boot="").lasts()


def taken(state: State, desktop: str) -> Applied | Rejected:
    lost_at = next(state.db.query("select changed_at from servers where id = 'srv-a'"))["changed_at"]
    body = {"desktop": desktop, "generation": 1, "server": "srv-a", "lost_at": lost_at, "target": "srv-b"}
    outcome = state.do("desktop.take_over", **body)
    assert isinstance(outcome, Applied | Rejected)
    return outcome


def copied() -> tuple[State, str]:
    """Return a grid in which Anna's desktop on a has a copy on b."""
    state = State()
    here, _ = (state.server(name) for name in "ab")
    state.template("own", kind="personal")
    desktop = state.desktop("tpl-own", here, "in_use")
    state.db.execute("update desktops set kind = 'personal', user = 'anna' where id = ?", [desktop])
    state.do("copy.assign", desktop=desktop, generation=1, server="srv-b")
    point = {"desktop": desktop, "generation": 1, "server": "srv-b", "as_of": 1, "bytes": 1}
    state.do("copy.points", server="srv-a", points=[point])
    return state, desktop


def test_nothing_is_taken_over_from_who_has_one_until_it_is_given_back_or_said_to_be_off() -> None:
    for last in ("tenure.give_back", "tenure.end"):
        state, desktop = copied()
        assert isinstance(state.do("tenure.begin", server="srv-a", tenure="t-1"), Applied)
        refused = state.do("tenure.end", server="srv-a")
        assert isinstance(refused, Rejected)
        assert "hears from it" in refused.detail
        state.do("server.lost", server="srv-a")
        refused = taken(state, desktop)
        assert isinstance(refused, Rejected)
        assert refused.code == "tenure"
        # Another one's word about an older tenure says nothing.
        state.do("tenure.give_back", server="srv-a", tenure="t-0")
        assert isinstance(taken(state, desktop), Rejected)
        assert isinstance(state.do(last, server="srv-a", tenure="t-1"), Applied)
        assert isinstance(taken(state, desktop), Applied)


def test_a_server_that_is_lost_or_removed_gets_none() -> None:
    state, desktop = copied()
    for away in ("server.lost", "server.remove"):
        state.do(away, server="srv-a")
        assert isinstance(state.do("tenure.begin", server="srv-a", tenure="t-1"), Rejected)
    assert isinstance(taken(state, desktop), Applied)


def test_a_loss_is_waited_out_from_when_there_is_no_tenure_any_more() -> None:
    fencing = Fencing(TAKE_OVER_S)
    lost = [Server(A, "a", "a:1", "a:2", ServerState.LOST, "1", "", 0, 5)]
    assert fencing.fenced(lost, 0, {A}) == frozenset()
    assert fencing.fenced(lost, 100, {A}) == frozenset()
    assert fencing.fenced(lost, 101) == frozenset()
    assert fencing.fenced(lost, 101 + TAKE_OVER_S - 0.1) == frozenset()
    assert fencing.fenced(lost, 101 + TAKE_OVER_S) == {A}
    # For how long it is lost is another question.
    assert fencing.lost_for(lost[0], 110) == 110
