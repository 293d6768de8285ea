"""Who is lost and who is back, by the leader's own clock."""

from collections.abc import Mapping, Sequence

import pytest

from kmgr.grid.liveness import Silence, back, inherited, listened, lost, silent
from kmgr.grid.model import Server, ServerState, Vitals
from kmgr.ids import ServerId

A, B, C = ServerId("srv-a"), ServerId("srv-b"), ServerId("srv-c")


def server(id: ServerId, state: ServerState = ServerState.UP) -> Server:
    return Server(id, id[4:], "", "", state, "", "", 0, 0)


def heard(id: ServerId, at: float, applied: int = 0) -> dict[ServerId, Vitals]:
    return {id: Vitals(id, at, extra={"applied": applied})}


def test_a_new_leader_gives_everybody_a_full_term() -> None:
    assert silent([A, B], {A: 1.0}, elected_at=100.0, now=107.9, lost_after_s=8) == ()
    assert silent([B, A], {A: 1.0}, elected_at=100.0, now=108.0, lost_after_s=8) == (A, B)
    assert silent([A, B], {A: 104.0}, elected_at=100.0, now=108.0, lost_after_s=8) == (B,)


def test_only_running_servers_are_lost_and_never_the_leader_itself() -> None:
    fleet = [server(A), server(B, ServerState.LOST), server(C, ServerState.JOINING), server(ServerId("srv-d"))]
    quiet = {one.id: Silence(0, 100) for one in fleet}
    assert lost(fleet, quiet, leader=A, lost_after_s=8) == ("srv-d",)
    assert lost([server(B, ServerState.DRAINING)], quiet, leader=A, lost_after_s=8) == (B,)
    assert lost([server(B)], {B: Silence(0, 7.9)}, leader=A, lost_after_s=8) == ()


def lasts(looks: Sequence[float], beats: Sequence[float], *, elected_at: float = 0.0) -> float:
    """Return how long b has been silent after these looks; it was heard whenever a beat had come before one."""
    silences: Mapping[ServerId, Silence] = {}
    looked_at = elected_at
    for now in looks:
        board = heard(B, max(at for at in beats if at <= now)) if any(at <= now for at in beats) else {}
        silences = listened(silences, [B], board, looked_at=looked_at, now=now)
        looked_at = now
    return silences[B].lasts


def test_a_silence_is_what_the_leader_listened_to() -> None:
    every_quarter = [n / 4 for n in range(1, 33)]
    assert lasts(every_quarter, []) == 8
    assert lasts(every_quarter, [1.0]) == pytest.approx(7, abs=0.25)
    assert lasts(every_quarter, [1.0, 2.0, 7.9]) == pytest.approx(0.1)
    assert lasts([100.25, 100.5], [1.0], elected_at=100.0) == 0.5, "what came before the election counts for nobody"


def begins_with(board: Mapping[ServerId, float], *, elected_at: float = 100.0) -> Mapping[ServerId, float]:
    vitals = {server: Vitals(server, at) for server, at in board.items()}
    found = inherited([A, B, C], vitals, leader=A, elected_at=elected_at, lost_after_s=6.0)
    return {server: silence.lasts for server, silence in found.items() if server != A}


def test_a_lost_leader_was_silent_before_its_successor_was_elected() -> None:
    assert begins_with({A: 99.9, B: 98.5, C: 99.8}) == {B: pytest.approx(1.3), C: 0.0}
    assert begins_with({A: 99.9, B: 60.0, C: 99.8}) == {B: 2.0, C: 0.0}, "no more than a third of what is enough"
    assert begins_with({A: 99.9, C: 99.8}) == {C: 0.0}, "one that was never heard has a full term"
    silences = listened(
        inherited([B], {B: Vitals(B, 98.5), C: Vitals(C, 99.8)}, leader=A, elected_at=100.0, lost_after_s=6.0),
        [B],
        {B: Vitals(B, 98.5)},
        looked_at=100.0,
        now=100.25,
    )
    assert silences[B].lasts == pytest.approx(1.55)


def test_a_new_leader_that_had_heard_nobody_blames_nobody_for_that() -> None:
    # It was cut off from all for 40 s, or stood still.
    assert begins_with({A: 99.9, B: 60.0, C: 60.2}) == {B: pytest.approx(0.2), C: 0.0}
    assert begins_with({A: 99.9, B: 60.0}) == {B: 0.0}


def test_a_leader_that_slept_blames_nobody_for_its_sleep() -> None:
    assert lasts([0.25, 0.5, 60.0], [0.4]) <= 1.5
    assert lasts([0.25, 0.5, 60.0, 60.25], [0.4, 60.1]) == pytest.approx(0.15)
    assert lasts([0.25, 0.5, 60.0, 60.25], [0.6]) <= 1.25
    held_up_again_and_again = [2.0 * n for n in range(1, 9)]
    assert lasts(held_up_again_and_again, [0.1]) >= 7.9, "one that is truly dead is found all the same"


def test_a_lost_server_is_back_when_it_is_heard_and_has_caught_up() -> None:
    def found(board: dict[ServerId, Vitals]) -> tuple[ServerId, ...]:
        fleet = [server(A), server(B, ServerState.LOST)]
        return back(fleet, board, leader=A, applied=1_000, now=10, fresh_s=3)

    assert found({}) == ()
    assert found(heard(B, 5, 1_000)) == ()
    assert found(heard(B, 9, 10)) == ()
    assert found(heard(B, 9, 995)) == (B,)


def test_a_joining_server_is_up_once_it_has_caught_up_whether_it_votes_or_not() -> None:
    fleet = [server(B, ServerState.JOINING)]
    assert back(fleet, heard(B, 9, 10), leader=A, applied=1_000, now=10, fresh_s=3) == ()
    assert back(fleet, heard(B, 9, 990), leader=A, applied=1_000, now=10, fresh_s=3) == (B,)


def test_a_leader_that_was_declared_lost_by_the_former_one_is_back_by_leading() -> None:
    assert back([server(A, ServerState.LOST)], {}, leader=A, applied=9, now=0, fresh_s=3) == (A,)
