"""Who is lost and who is back, by the leader's own clock."""

from kmgr.grid.liveness import back, lost, silent
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
    found = lost(fleet, {}, leader=A, elected_at=0, now=100, lost_after_s=8)
    assert found == ("srv-d",)
    draining = [server(B, ServerState.DRAINING)]
    assert lost(draining, heard(B, 1), leader=A, elected_at=0, now=100, lost_after_s=8) == (B,)


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
