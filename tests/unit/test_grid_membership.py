"""Who votes: each rule by an example. `tests/property/test_grid_voters.py` tries all from every prefix."""

from collections.abc import Iterable

from kmgr.grid.membership import (
    MOST_BEHIND,
    AddVoter,
    HandOver,
    RemoveVoter,
    Sight,
    Step,
    next_step,
    settled,
    sight,
    spare,
)
from kmgr.grid.model import Server, ServerRole, ServerState, Vitals
from kmgr.ids import ServerId

A, B, C, D, E, F = (ServerId(f"srv-{letter}") for letter in "abcdef")
W = ServerId("srv-witness")
ORDER = (A, B, C, D, E, F, W)


def fleet(*members: ServerId, removed: Iterable[ServerId] = ()) -> list[Server]:
    return [
        Server(
            *(
                one,
                one[4:],
                "",
                "",
                ServerState.REMOVED if one in removed else ServerState.UP,
                "",
                "",
                ORDER.index(one),
                0,
            ),
            role=ServerRole.WITNESS if one == W else ServerRole.SERVER,
        )
        for one in members
    ]


def seen(*alive: ServerId, ready: Iterable[ServerId] | None = None, gone: Iterable[ServerId] = ()) -> Sight:
    return Sight(frozenset(alive), frozenset(alive if ready is None else ready), frozenset(gone))


def step(servers: list[Server], voters: Iterable[ServerId], sight: Sight, *, leader: ServerId = A) -> Step | None:
    return next_step(servers, voters, sight, leader=leader)


def test_a_member_votes_once_it_has_caught_up_the_oldest_first() -> None:
    everybody = fleet(A, B, C)
    assert step(everybody, [A], seen(A, B, C, ready=[A])) is None
    assert step(everybody, [A], seen(A, B, C, ready=[A, C])) == AddVoter(C)
    assert step(everybody, [A], seen(A, B, C)) == AddVoter(B)
    assert step(everybody, [A, B], seen(A, B, C)) == AddVoter(C)
    assert step(everybody, [A, B, C], seen(A, B, C)) is None


def test_two_servers_both_vote_and_a_witness_makes_three() -> None:
    assert step(fleet(A, B), [A], seen(A, B)) == AddVoter(B)
    assert step(fleet(A, B, W), [A, B], seen(A, B, W)) == AddVoter(W)
    assert step(fleet(A, B, W), [A, B, W], seen(A, B, W)) is None


def test_a_witness_does_not_vote_beside_one_three_or_five_servers() -> None:
    assert step(fleet(A, W), [A], seen(A, W)) is None
    assert step(fleet(A, B, C, W), [A, B, C], seen(A, B, C, W)) is None
    assert settled(fleet(A, B, C, D, E, W), [A, B, C, D, E], ORDER, leader=A) == {A, B, C, D, E}


def test_a_third_server_takes_the_place_of_the_witness_without_a_weaker_moment() -> None:
    everybody = fleet(A, B, C, W)
    assert step(everybody, [A, B, W], seen(A, B, C, W)) == AddVoter(C)
    assert step(everybody, [A, B, C, W], seen(A, B, C, W)) == RemoveVoter(W)


def test_of_four_servers_three_vote_with_a_witness_all_and_it() -> None:
    assert step(fleet(A, B, C, D), [A, B, C], seen(A, B, C, D)) is None
    assert settled(fleet(A, B, C, D, W), [A, B, C], ORDER, leader=A) == {A, B, C, D, W}


def test_at_most_five_vote() -> None:
    assert settled(fleet(A, B, C, D, E, F), [A], ORDER, leader=A) == {A, B, C, D, E}


def test_a_fourth_voter_is_not_begun_before_the_fifth_is_there() -> None:
    everybody = fleet(A, B, C, D, E)
    assert step(everybody, [A, B, C], seen(A, B, C, D)) is None
    assert step(everybody, [A, B, C], seen(A, B, C, D, E)) == AddVoter(D)
    assert step(everybody, [A, B, C, D], seen(A, B, C, D, E)) == AddVoter(E)
    # The fifth is away for a moment: the fourth keeps its vote until it is known to be away for good.
    assert step(everybody, [A, B, C, D], seen(A, B, C, D)) is None
    assert step(everybody, [A, B, C, D], seen(A, B, C, D, gone=[E])) == RemoveVoter(D)


def test_a_lost_voter_keeps_its_vote_until_it_is_gone_and_somebody_can_take_its_place() -> None:
    everybody = fleet(A, B, C, D)
    assert step(everybody, [A, B, C], seen(A, B, D)) is None
    assert step(everybody, [A, B, C], seen(A, B, D, gone=[C])) == RemoveVoter(C)
    assert step(everybody, [A, B], seen(A, B, D, gone=[C])) == AddVoter(D)
    assert step(fleet(A, B, C), [A, B, C], seen(A, B, gone=[C])) is None


def test_a_witness_steps_in_for_a_server_that_is_gone_and_out_when_it_is_back() -> None:
    everybody = fleet(A, B, C, W)
    assert step(everybody, [A, B, C], seen(A, B, W, gone=[C])) == RemoveVoter(C)
    assert step(everybody, [A, B], seen(A, B, W, gone=[C])) == AddVoter(W)
    assert step(everybody, [A, B, W], seen(A, B, C, W)) == AddVoter(C)
    assert step(everybody, [A, B, C, W], seen(A, B, C, W)) == RemoveVoter(W)


def test_of_five_two_that_are_gone_lose_their_votes_so_that_another_may_be_lost() -> None:
    everybody = fleet(A, B, C, D, E)
    assert step(everybody, [A, B, C, D, E], seen(A, B, C, D, gone=[E])) is None
    assert step(everybody, [A, B, C, D, E], seen(A, B, C, gone=[D, E])) == RemoveVoter(D)
    assert step(everybody, [A, B, C, E], seen(A, B, C, gone=[D, E])) == RemoveVoter(E)
    assert spare([A, B, C, D, E], [A, B, C]) == 0
    assert spare([A, B, C], [A, B, C]) == 1


def test_a_removed_voter_goes_first_dead_or_alive() -> None:
    everybody = fleet(A, B, C, D, removed=[B])
    assert step(everybody, [A, B, C], seen(A, C, D)) == RemoveVoter(B)
    assert step(everybody, [A, B, C], seen(A, B, C, D)) == RemoveVoter(B)


def test_a_removed_voter_stays_while_the_grid_would_be_lost_without_it() -> None:
    everybody = fleet(A, B, C, removed=[B])
    assert step(everybody, [A, B, C], seen(A, B)) is None
    assert step(everybody, [A, B, C], seen(A, B, gone=[C])) == RemoveVoter(C)
    assert step(everybody, [A, B], seen(A, B, gone=[C])) == RemoveVoter(B)


def test_a_removed_leader_hands_over_to_one_that_is_level_a_server_before_a_witness() -> None:
    everybody = fleet(A, B, C, W, removed=[A])
    assert step(everybody, [A, B, W], seen(A, B, W)) == HandOver(B)
    assert step(everybody, [A, B, W], seen(A, B, W, ready=[A, W])) == HandOver(W)
    assert step(everybody, [A, B, W], seen(A, ready=[A])) is None
    assert step(everybody, [B, C], seen(B, C), leader=B) is None


def test_a_witness_leads_only_until_a_server_is_level() -> None:
    everybody = fleet(A, B, W)
    assert step(everybody, [A, B, W], seen(A, W, ready=[W]), leader=W) is None
    assert step(everybody, [A, B, W], seen(A, B, W, ready=[W, B]), leader=W) == HandOver(B)


def test_a_witness_that_leads_and_should_not_vote_hands_over_first() -> None:
    everybody = fleet(A, B, C, W)
    assert step(everybody, [A, B, C, W], seen(A, B, C, W), leader=W) == HandOver(A)


def test_a_grid_whose_table_is_still_empty_is_left_alone() -> None:
    assert step([], [A], seen(A)) is None
    assert step(fleet(A), [A, B], seen(A, B)) is None


def judged(*, removed: Iterable[ServerId] = (), progress: dict[ServerId, int], now: float = 100.0) -> Sight:
    board = {one: Vitals(one, at) for one, at in ((A, 1.0), (B, 99.0), (C, 95.0))}
    return sight(
        fleet(A, B, C, D, removed=removed), board, progress,
        leader=A, last=1000, elected_at=50.0, now=now, fresh_s=3.0, gone_after_s=60.0,
    )  # fmt: skip


def test_alive_is_who_was_heard_and_ready_who_also_has_the_log() -> None:
    found = judged(progress={A: 1000, B: 1000 - MOST_BEHIND, C: 1000})
    assert found == Sight(frozenset([A, B]), frozenset([A, B]), frozenset())
    assert judged(progress={B: 999 - MOST_BEHIND}).ready == {A}


def test_gone_is_who_was_silent_for_long_counted_from_the_election() -> None:
    assert judged(progress={}, now=109.0).gone == frozenset()
    assert judged(progress={}, now=110.0).gone == {D}
    assert judged(progress={}, now=155.0).gone == {C, D}


def test_a_removed_voter_counts_as_alive_while_it_takes_part_in_the_log() -> None:
    assert B not in judged(removed=[B], progress={B: 100}).alive
    assert B in judged(removed=[B], progress={B: 1000}).alive
