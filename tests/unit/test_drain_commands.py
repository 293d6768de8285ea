"""The notice that people on a draining server get, in the log."""

import pytest

from kmgr.grid.envelope import Outcome
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.drain_commands import MOST_MINUTES
from kmgr.provision.drain_rows import leaving, notices
from tests.lab.outcomes import good, why
from tests.lab.state import State

A, B = ServerId("srv-a"), ServerId("srv-b")
MINUTE = 60_000


@pytest.fixture
def state() -> State:
    state = State()
    state.server("a")
    state.server("b")
    state.version("ver-1", [A, B])
    state.template("win", standby=0)
    state.at = 1_000_000
    return state


def drained(state: State, minutes: int = 30) -> int:
    good(state.do("server.drain", server=A))
    good(state.do("drain.notice", server=A, minutes=minutes))
    return state.at + minutes * MINUTE


def tell(state: State, desktop: str, generation: int = 1) -> Outcome:
    return state.do("drain.tell", desktop=desktop, generation=generation, server=A)


def end(state: State, desktop: str, until: int, generation: int = 1) -> Outcome:
    return state.do("drain.end", desktop=desktop, generation=generation, server=A, until=until)


def until(state: State, desktop: str) -> int | None:
    found = leaving(state.db).get(DesktopId(desktop))
    return None if found is None else found.until


def state_of(state: State, desktop: str) -> str:
    return next(d.state.value for d in state.view().desktops if d.id == desktop)


def test_a_notice_needs_a_drain_and_sensible_minutes(state: State) -> None:
    assert "does not drain" in why(state.do("drain.notice", server=A, minutes=30))
    assert "no server srv-x" in why(state.do("drain.notice", server="srv-x", minutes=30))
    good(state.do("server.drain", server=A))
    for minutes in (0, -1, MOST_MINUTES + 1, "30", True, None):
        assert "minutes of a notice must be" in why(state.do("drain.notice", server=A, minutes=minutes))
    assert notices(state.db) == {}


def test_who_cannot_be_moved_is_told_and_ends_at_that_moment_and_not_before(state: State) -> None:
    used = state.desktop("tpl-win", A, "in_use")
    last = drained(state)
    good(tell(state, used))
    assert until(state, used) == last
    state.at = last - 2
    assert "is not over" in why(end(state, used, last))
    assert state_of(state, used) == "in_use"
    good(end(state, used, last))
    assert (state_of(state, used), leaving(state.db)) == ("retired", {})


def test_who_is_told_late_has_minutes_all_the_same(state: State) -> None:
    late, short = state.desktop("tpl-win", A, "in_use"), state.desktop("tpl-win", A, "in_use", user="otto")
    last = drained(state)
    state.at = last - 1000
    good(tell(state, late))
    assert until(state, late) == state.at + 5 * MINUTE
    good(state.do("drain.notice", server=A, minutes=2))
    state.at += 90_000
    good(tell(state, short))
    assert until(state, short) == state.at + MINUTE


def test_a_new_notice_holds_for_who_was_told_already(state: State) -> None:
    used = state.desktop("tpl-win", A, "in_use")
    first = drained(state)
    good(tell(state, used))
    good(state.do("drain.notice", server=A, minutes=60))
    second = state.at + 60 * MINUTE
    assert until(state, used) == second
    state.at = first + 1
    assert "does not have to leave (then)" in why(end(state, used, first))


def test_undrained_nobody_has_to_leave(state: State) -> None:
    used = state.desktop("tpl-win", A, "in_use")
    last = drained(state)
    good(tell(state, used))
    good(state.do("server.undrain", server=A))
    assert (notices(state.db), leaving(state.db)) == ({}, {})
    state.at = last + 1
    assert "does not have to leave" in why(end(state, used, last))
    assert "does not drain with a notice" in why(tell(state, used))


def test_a_server_that_is_lost_and_returns_still_drains_by_its_notice(state: State) -> None:
    last = drained(state)
    good(state.do("server.lost", server=A))
    good(state.do("server.up", server=A))
    assert notices(state.db) == {A: last}
    good(state.do("server.remove", server=A))
    assert notices(state.db) == {}


def test_whoever_moved_on_is_not_concerned(state: State) -> None:
    used = state.desktop("tpl-win", A, "in_use")
    last = drained(state)
    good(tell(state, used))
    good(state.do("desktop.move", desktop=used, generation=1, server=A, target=B, why="its server drains"))
    state.at = last
    assert "moves to another server" in why(end(state, used, last))
    good(state.do("desktop.moved", desktop=used, generation=1, server=A, target=B))
    assert leaving(state.db) == {}
    assert "another life" in why(end(state, used, last))
    assert state_of(state, used) == "in_use"


def test_one_that_was_given_back_is_forgotten(state: State) -> None:
    used = state.desktop("tpl-win", A, "in_use")
    drained(state)
    good(tell(state, used))
    good(state.do("desktop.release", desktop=used, user="anna"))
    assert leaving(state.db) == {}


def test_personal_desktops_and_those_nobody_uses_do_not_end(state: State) -> None:
    state.template("own", kind="personal")
    mine, idle = state.desktop("tpl-own", A, "in_use"), state.desktop("tpl-win", A, "ready")
    state.db.execute("update desktops set kind = 'personal' where id = ?", [mine])
    drained(state)
    assert "no whole safe copy" in why(tell(state, mine))
    assert "not ended by a notice" in why(end(state, mine, state.at))
    assert "another life" in why(tell(state, idle))
    assert "no desktop" in why(tell(state, "dsk-none"))
