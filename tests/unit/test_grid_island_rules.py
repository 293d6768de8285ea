"""When a server goes on by itself and when it hands over: each line of the table, and the two clocks behind it."""

import pytest

from kmgr.grid.island_rules import (
    MOVES,
    STARTING_S,
    STEADY_S,
    Mode,
    Move,
    Sky,
    Watched,
    limits,
    most_here,
    next_move,
    share,
    sky,
    unfit,
    watched,
)
from kmgr.grid.model import Server, ServerRole, ServerState
from kmgr.ids import ServerId

A, B, W = ServerId("srv-a"), ServerId("srv-b"), ServerId("srv-w")


def server(id: ServerId, state: ServerState = ServerState.UP, role: ServerRole = ServerRole.SERVER) -> Server:
    return Server(id, id[4:], "", "", state, "", "", 0, 0, role)


def seen(*looks: tuple[float, bool]) -> Watched:
    found = Watched()
    for now, majority in looks:
        found = watched(found, majority=majority, now=now)
    return found


def above(found: Watched, now: float, *, after_s: float = 4.0, started_at: float = -100.0) -> Sky:
    return sky(found, now=now, after_s=after_s, started_at=started_at)


def test_the_table_has_every_line() -> None:
    assert set(MOVES) == {(mode, look) for mode in Mode for look in Sky}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("look", Sky)
@pytest.mark.parametrize("fit", [True, False])
@pytest.mark.parametrize("stale", [True, False])
def test_what_follows_from_what(mode: Mode, look: Sky, fit: bool, stale: bool) -> None:
    move = next_move(mode, look, fit=fit, stale=stale)
    if mode is Mode.LOG:
        assert (move is Move.ENTER) == (look is Sky.GONE and fit)
        assert move in (Move.ENTER, Move.STAY)
    else:
        # Whoever is an island hands over as soon as it can, even if it may not begin another one.
        assert (move is Move.HAND_OVER) == (look is Sky.THERE)
        assert (move is Move.RENEW) == (look is Sky.GONE and stale)


def test_a_majority_is_gone_after_the_time_and_not_before() -> None:
    found = seen((0, True), (2, True), (3, False))
    assert above(found, 3) is Sky.DOUBTFUL
    assert above(found, 6.9) is Sky.DOUBTFUL
    assert above(found, 7) is Sky.GONE


def test_a_majority_that_shows_itself_for_a_moment_does_not_begin_the_wait_anew() -> None:
    found = seen((0, False), (2, True), (2 + STEADY_S / 2, True), (3, False))
    assert found == Watched(absent_since=0, present_since=None)
    assert above(found, 4) is Sky.GONE
    longer = seen((0, False), (2, True), (2 + STEADY_S, True), (4, False))
    assert longer == Watched(absent_since=4, present_since=None)


def test_a_majority_is_believed_when_it_stays() -> None:
    found = seen((0, False), (9, True))
    assert above(found, 9) is Sky.DOUBTFUL
    assert above(found, 9 + STEADY_S) is Sky.THERE


def test_nothing_is_gone_while_a_server_starts() -> None:
    found = seen((100, False))
    assert above(found, 100 + STARTING_S - 0.1, started_at=100) is Sky.DOUBTFUL
    assert above(found, 100 + STARTING_S, started_at=100) is Sky.GONE


def test_before_the_first_look_nothing_is_known() -> None:
    assert above(Watched(), 1e9) is Sky.DOUBTFUL


def test_who_may_be_an_island() -> None:
    two = [server(A), server(B)]
    assert unfit(two, A) == ""
    assert unfit([server(A, ServerState.LOST), server(B)], A) == ""
    assert unfit([server(A, ServerState.DRAINING), server(B)], A) == ""
    assert "part of the grid" in unfit([server(A, ServerState.JOINING), server(B)], A)
    assert "part of the grid" in unfit([], A)
    assert "removed" in unfit([server(A, ServerState.REMOVED), server(B)], A)
    assert "witness" in unfit([server(W, role=ServerRole.WITNESS), *two], W)
    assert "only server" in unfit([server(A), server(B, ServerState.REMOVED)], A)


def test_limits_and_shares() -> None:
    servers = [
        server(A),
        server(B),
        server(W, role=ServerRole.WITNESS),
        server(ServerId("srv-n"), ServerState.JOINING),
    ]
    assert [share(total, servers) for total in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert share(5, []) == 5
    # What the others leave of the maximum, but never less than the share.
    assert (most_here(8, 1, servers), most_here(8, 7, servers)) == (7, 4)


def test_people_are_told_what_goes_on_what_waits_and_what_helps() -> None:
    said = limits([server(A), server(B)], A)
    assert said.startswith("a does not reach a majority of the grid (without b)")
    for words in ("users log in", "Changes of the configuration wait", "witness", "docs/operating.md"):
        assert words in said


def test_the_only_server_of_its_grid_misses_nobody_and_is_asked_again() -> None:
    said = limits([server(A)], A)
    assert "without" not in said
    assert "try again in a moment" in said
