"""How far a drain is, as the console tells it."""

import pytest

from kmgr.balancer.drains import Progress, progress
from kmgr.balancer.plan import plan
from kmgr.balancer.relocate import MOST_FAILURES
from kmgr.ids import DesktopId, ServerId
from tests.lab.state import State

A, B = ServerId("srv-a"), ServerId("srv-b")


@pytest.fixture
def state() -> State:
    state = State()
    state.server("a", "draining")
    state.server("b")
    state.version("ver-1", [A, B])
    state.template("win", standby=0)
    return state


def told(state: State, later_ms: int = 0, **percents: int) -> Progress:
    known = {DesktopId(name.replace("_", "-")): percent for name, percent in percents.items()}
    return progress(state.view(), A, percents=known, now_ms=state.at + later_ms)


def test_an_empty_server_is_done(state: State) -> None:
    assert told(state) == Progress(0, (), (), 0, 0)


def test_what_moves_tells_how_long_the_rest_takes(state: State) -> None:
    for number in range(4):
        state.desktop("tpl-win", A, "in_use", user=f"u{number}")
    assert told(state).remaining_s is None
    state.carry_out(plan(state.view()).actions)
    now = told(state, 10_000, dsk_0001=50, dsk_0002=50)
    assert (now.left, [one.percent for one in now.moving], now.waiting) == (4, [50, 50], ())
    # Half the way took ten seconds: ten more for these two, twenty for the next two.
    assert now.remaining_s == 30


def test_who_is_waited_for_is_named_with_the_reason(state: State) -> None:
    made = state.desktop("tpl-win", A, "in_use")
    for _ in range(MOST_FAILURES):
        state.carry_out(plan(state.view()).actions)
        state.do("desktop.move_failed", desktop=made, generation=1, server=A, cause="its memory changes too fast")
    (waits,) = told(state).waiting
    assert "leaves when its user logs out: its memory changes too fast" in waits.why
    assert told(state).remaining_s is None


def test_a_personal_one_without_a_copy_that_can_be_started_is_told_so(state: State) -> None:
    made = state.desktop("tpl-win", A, "in_use")
    state.db.execute("update desktops set kind = 'personal' where id = ?", [made])
    for _ in range(MOST_FAILURES):
        state.carry_out(plan(state.view()).actions)
        state.do("desktop.move_failed", desktop=made, generation=1, server=A, cause="its memory changes too fast")
    (waits,) = told(state).waiting
    assert "nothing can start it from a whole safe copy: its memory changes too fast" in waits.why
    state.db.execute("insert into copies values (?, ?, 1, 'ready', 5, 5, 5)", [made, B])
    (waits,) = told(state).waiting
    assert "leaves when its user logs out" in waits.why


def test_no_room_anywhere_is_told_server_by_server(state: State) -> None:
    state.hear(B, memory_free_mib=400)
    state.desktop("tpl-win", A, "in_use")
    (waits,) = told(state).waiting
    assert "no server can take it: b has too little memory left" in waits.why


def test_what_nobody_uses_is_counted_apart(state: State) -> None:
    state.desktop("tpl-win", A, "ready")
    now = told(state)
    assert (now.left, now.others, now.remaining_s) == (1, 1, 0)
