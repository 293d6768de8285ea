"""What the log says about desktops that go on on another server."""

import pytest

from kmgr.grid.envelope import Applied, Rejected
from kmgr.grid.queries import events
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.model import CopyState, Desktop
from kmgr.provision.move_rows import moves
from kmgr.provision.queries import copies, desktop
from tests.lab.state import State

A, B, C = (ServerId(f"srv-{letter}") for letter in "abc")


@pytest.fixture
def state() -> State:
    state = State()
    for name in "abc":
        state.server(name)
    state.version("ver-1", [A, B])
    state.template("win")
    return state


def used(state: State, **fields: object) -> str:
    made = state.desktop("tpl-win", A, "in_use")
    if fields:
        state.db.table("desktops").update(made, fields)
    return made


def one(state: State, name: str) -> Desktop:
    found = desktop(state.db, DesktopId(name))
    assert found is not None
    return found


def body(name: str, **more: object) -> dict[str, object]:
    return {"desktop": name, "generation": 1, "server": A, **more}


def begin(state: State, name: str) -> None:
    assert isinstance(state.do("desktop.move", **body(name, target=B, why="its server drains")), Applied)


def test_a_move_is_announced_and_handed_over_under_a_new_generation(state: State) -> None:
    made = used(state)
    begin(state, made)
    assert (one(state, made).server, one(state, made).moving_to) == (A, B)
    assert [move.desktop for move in moves(state.db)] == [made]
    assert isinstance(state.do("desktop.moved", **body(made, target=B)), Applied)
    after = one(state, made)
    assert (after.server, after.generation, after.moving_to, after.user) == (B, 2, None, "anna")
    assert moves(state.db) == ()
    assert isinstance(state.do("desktop.failed", **body(made, step="run", cause="old")), Rejected)


def test_whichever_end_the_log_has_first_counts(state: State) -> None:
    made = used(state)
    begin(state, made)
    assert isinstance(state.do("desktop.move_failed", **body(made, cause="the wire broke")), Applied)
    assert isinstance(state.do("desktop.moved", **body(made, target=B)), Rejected)
    assert (one(state, made).server, one(state, made).generation, one(state, made).moving_to) == (A, 1, None)
    (failed,) = moves(state.db)
    assert (failed.failures, failed.cause) == (1, "the wire broke")
    begin(state, made)
    assert isinstance(state.do("desktop.moved", **body(made, target=B)), Applied)
    assert isinstance(state.do("desktop.move_failed", **body(made, cause="late")), Rejected)
    assert one(state, made).server == B


def test_a_target_that_began_anew_ends_the_move_before_it_deletes_what_arrived(state: State) -> None:
    made = used(state)
    begin(state, made)
    assert state.do("desktop.stray", desktop=made, server=B) == Applied({"wanted": False})
    assert isinstance(state.do("desktop.moved", **body(made, target=B)), Rejected)


def test_a_target_that_was_handed_it_is_told_to_keep_it(state: State) -> None:
    made = used(state)
    begin(state, made)
    state.do("desktop.moved", **body(made, target=B))
    assert state.do("desktop.stray", desktop=made, server=B) == Applied({"wanted": True})
    assert state.do("desktop.stray", desktop=made, server=A) == Applied({"wanted": False})


@pytest.mark.parametrize("target", ["srv-a", "srv-c", "srv-none"])
def test_it_goes_only_to_another_server_that_is_up_and_has_its_golden_image(state: State, target: str) -> None:
    made = used(state)
    assert isinstance(state.do("desktop.move", **body(made, target=target, why="x")), Rejected)
    assert one(state, made).moving_to is None


def test_only_what_is_used_moves_and_from_a_server_that_is_up(state: State) -> None:
    standby = state.desktop("tpl-win", A, "ready")
    assert isinstance(state.do("desktop.move", **body(standby, target=B, why="x")), Rejected)
    made = used(state)
    state.become(A, "lost")
    assert isinstance(state.do("desktop.move", **body(made, target=B, why="x")), Rejected)


def test_one_that_was_given_back_on_its_way_is_not_handed_over(state: State) -> None:
    made = used(state)
    begin(state, made)
    state.do("desktop.release", desktop=made, user="anna")
    assert isinstance(state.do("desktop.moved", **body(made, target=B)), Rejected)


def test_nothing_is_handed_over_to_a_server_that_is_lost(state: State) -> None:
    made = used(state)
    begin(state, made)
    state.become(B, "lost")
    assert isinstance(state.do("desktop.moved", **body(made, target=B)), Rejected)


def test_the_disk_a_personal_desktop_leaves_is_kept_until_its_next_safe_copy(state: State) -> None:
    made = used(state, kind="personal")
    begin(state, made)
    state.do("desktop.moved", **body(made, target=B))
    assert [(c.server, c.generation, c.state) for c in copies(state.db)] == [(A, 1, CopyState.LEFT)]
    state.do("copy.assign", desktop=made, generation=2, server=C)
    point = {"desktop": made, "generation": 2, "server": C, "as_of": 900, "bytes": 5}
    state.do("copy.points", server=B, points=[point])
    assert {c.server: c.state for c in copies(state.db)} == {A: CopyState.DROPPING, C: CopyState.READY}


def test_the_history_tells_both_ends(state: State) -> None:
    made = used(state)
    begin(state, made)
    state.do("desktop.moved", **body(made, target=B))
    told = [event.text for event in events(state.db)]
    assert any("moves to b: its server drains" in text for text in told)
    assert any("goes on on b; it came from a" in text for text in told)
