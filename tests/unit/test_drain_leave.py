"""What the log says about personal desktops that are shut down to go on from their safe copies elsewhere."""

import pytest

from kmgr.grid.envelope import Outcome
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.drain_rows import farewell, leaving
from kmgr.provision.model import CopyState, Desktop
from kmgr.provision.move_rows import cold_mark, moves
from kmgr.provision.queries import copies, desktop
from tests.lab.outcomes import good, why
from tests.lab.state import State

A, B, C = (ServerId(f"srv-{letter}") for letter in "abc")
MINUTE = 60_000


@pytest.fixture
def state() -> State:
    state = State()
    for name in "abc":
        state.server(name)
    state.version("ver-1", [A, B, C])
    state.template("own", kind="personal", standby=0)
    state.at = 1_000_000
    good(state.do("server.drain", server=A))
    return state


def mine(state: State, *, copy: CopyState | None = CopyState.READY) -> DesktopId:
    made = DesktopId(state.desktop("tpl-own", A, "in_use"))
    state.db.execute("update desktops set kind = 'personal' where id = ?", [made])
    if copy is not None:
        state.db.execute("insert into copies values (?, ?, 1, ?, 900, 5, 900)", [made, B, copy])
    return made


def leave(state: State, name: str, **more: object) -> Outcome:
    return state.do("drain.leave", **{"desktop": name, "generation": 1, "server": A, "target": B, **more})


def left(state: State, name: DesktopId, **more: object) -> Outcome:
    now = one(state, name)
    seen = {"connected_at": now.connected_at, "disconnected_at": now.disconnected_at}
    return leave(state, name, left=True, **{**seen, **more})


def moved(state: State, name: str, cold: str) -> Outcome:
    return state.do("desktop.moved", desktop=name, generation=1, server=A, target=B, cold=cold, as_of=1_000_005)


def one(state: State, name: DesktopId) -> Desktop:
    found = desktop(state.db, name)
    assert found is not None
    return found


def held(state: State, name: DesktopId) -> set[tuple[ServerId, int, CopyState]]:
    return {(copy.server, copy.generation, copy.state) for copy in copies(state.db, desktop=name)}


def told(state: State, name: str, minutes: int = 30) -> int:
    good(state.do("drain.notice", server=A, minutes=minutes))
    good(state.do("drain.tell", desktop=name, generation=1, server=A))
    return leaving(state.db)[DesktopId(name)].until


def test_its_user_is_told_what_happens_to_a_personal_desktop(state: State) -> None:
    name = mine(state)
    told(state, name)
    text = farewell(state.db, leaving(state.db)[name])
    assert "starts again on another server, with all that you saved" in text
    assert "ends" not in text


def test_without_a_whole_copy_elsewhere_nobody_is_told(state: State) -> None:
    name = mine(state, copy=CopyState.WANTED)
    good(state.do("drain.notice", server=A, minutes=30))
    assert "no whole safe copy" in why(state.do("drain.tell", desktop=name, generation=1, server=A))


def test_it_leaves_at_the_moment_that_was_told_and_not_before(state: State) -> None:
    name = mine(state)
    assert "may work on" in why(leave(state, name))
    until = told(state, name)
    state.at = until - 2
    assert "may work on" in why(leave(state, name))
    good(leave(state, name))
    assert one(state, name).moving_to == B
    assert cold_mark(state.db, name)
    assert [move.target for move in moves(state.db)] == [B]


def test_it_leaves_at_once_when_nobody_is_logged_on_unless_somebody_came_back(state: State) -> None:
    name = mine(state)
    before = one(state, name)
    good(state.do("desktop.connected", desktop=name, generation=1, server=A))
    assert "may work on" in why(left(state, name)), "somebody looks at it"
    assert "may work on" in why(left(state, name, connected_at=before.connected_at))
    good(state.do("desktop.disconnected", desktop=name, generation=1, server=A))
    assert "may work on" in why(left(state, name, disconnected_at=None))
    good(left(state, name))


def test_it_leaves_only_a_draining_server_for_one_that_can_start_it(state: State) -> None:
    name = mine(state)
    assert "no whole safe copy" in why(left(state, name, target=C))
    good(state.do("server.drain", server=B))
    assert "takes no desktops" in why(left(state, name))
    good(state.do("server.undrain", server=B))
    good(state.do("server.undrain", server=A))
    assert "does not drain" in why(left(state, name))


def test_pooled_desktops_and_those_on_their_way_do_not_leave_like_that(state: State) -> None:
    state.template("win")
    used, name = DesktopId(state.desktop("tpl-win", A, "in_use", user="otto")), mine(state)
    assert "kept for nobody" in why(left(state, used))
    good(state.do("desktop.move", desktop=name, generation=1, server=A, target=B, why="its server drains"))
    assert "moves to another server" in why(left(state, name))


def test_it_is_handed_over_with_its_copy_and_what_it_leaves_is_kept(state: State) -> None:
    name = mine(state)
    state.db.execute("insert into copies values (?, ?, 1, 'wanted', null, 0, 900)", [name, C])
    good(left(state, name))
    good(moved(state, name, cold_mark(state.db, name)))
    now = one(state, name)
    assert (now.server, now.generation, now.moving_to, now.user) == (B, 2, None, "anna")
    starting = (B, 1, CopyState.STARTING)
    assert held(state, name) == {starting, (A, 1, CopyState.LEFT), (C, 1, CopyState.DROPPING)}
    assert cold_mark(state.db, name) == ""
    done = {"desktop": name, "generation": 2, "as_of": 1_000_005}
    assert "does not start from a copy" not in why(state.do("copy.promoted", **done, server=A))
    good(state.do("copy.promoted", **done, server=B))
    assert starting not in held(state, name)
    assert "does not start from a copy" in why(state.do("copy.promoted", **done, server=B))


def test_only_a_word_of_this_very_move_hands_it_over(state: State) -> None:
    name = mine(state)
    good(left(state, name))
    first = cold_mark(state.db, name)
    assert "another way" in why(moved(state, name, "")), "nothing was moved while it ran"
    good(state.do("desktop.move_failed", desktop=name, generation=1, server=A, cause="it did not shut down"))
    assert cold_mark(state.db, name) == ""
    assert "does not move" in why(moved(state, name, first))
    good(left(state, name))
    assert "another time" in why(moved(state, name, first)), "it has run since"
    good(moved(state, name, cold_mark(state.db, name)))


def test_a_live_move_is_not_handed_over_as_a_cold_one(state: State) -> None:
    name = mine(state)
    good(state.do("desktop.move", desktop=name, generation=1, server=A, target=B, why="its server drains"))
    assert "another way" in why(moved(state, name, "cmd-1"))


def test_without_its_copy_it_is_not_handed_over(state: State) -> None:
    name = mine(state)
    good(left(state, name))
    state.db.execute("update copies set state = 'dropping' where desktop = ?", [name])
    assert "no whole safe copy" in why(moved(state, name, cold_mark(state.db, name)))
    assert one(state, name).server == A


def test_taken_over_meanwhile_it_is_not_handed_over(state: State) -> None:
    name = mine(state)
    good(left(state, name))
    mark = cold_mark(state.db, name)
    good(state.do("server.lost", server=A))
    lost_at = next(s.changed_at for s in state.view().servers if s.id == A)
    body = {"desktop": name, "generation": 1, "server": A, "lost_at": lost_at, "target": B}
    good(state.do("desktop.take_over", **body))
    assert cold_mark(state.db, name) == ""
    assert "generation 2" in why(moved(state, name, mark))


def test_deleted_nothing_is_left_of_its_move(state: State) -> None:
    name = mine(state)
    good(left(state, name))
    good(state.do("desktop.retire", desktop=name, why="by hand", lose="anna"))
    good(state.do("desktop.removed", desktop=name, generation=1, server=A))
    assert cold_mark(state.db, name) == ""
