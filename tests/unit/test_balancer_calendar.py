"""A pool that follows its template's calendar through a day, by the balancer's own plans."""

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from kmgr.balancer.plan import plan
from kmgr.balancer.queries import look, shortages_now
from kmgr.templates.policy import policy_of, to_json
from tests.lab.state import State

RAMPS = [{"days": ["thu"], "start": "08:00", "end": "16:00", "standby": 6, "early_min": 20}]
BERLIN = ZoneInfo("Europe/Berlin")


def school(**fields: Any) -> State:
    state = State()
    state.version("ver-1", [state.server(name) for name in "abc"])
    state.do("grid.zone", zone="Europe/Berlin")
    state.template("office", policy=to_json(policy_of({"calendar": RAMPS})), **fields)
    return state


def at(clock: str) -> int:
    return round(datetime.fromisoformat(f"2026-11-26T{clock}").replace(tzinfo=BERLIN).timestamp() * 1000)


def settle(state: State, at_ms: int) -> int:
    """Plan and carry out until nothing is left to do; returns how many stand by then."""
    for _ in range(20):
        actions = plan(look(state.db, state.vitals, 0.0, at_ms=at_ms)).actions
        if not actions:
            return state.states("tpl-office").count("ready")
        state.carry_out(actions)
        state.make_everything()
    raise AssertionError("it never comes to rest")


def test_the_pool_grows_before_school_and_shrinks_after_it() -> None:
    state = school()
    found = [settle(state, at(clock)) for clock in ("07:39", "07:40", "12:00", "15:59", "16:00", "23:00")]
    assert found == [2, 6, 6, 6, 2, 2]


def test_whom_a_desktop_belongs_to_keeps_it_when_the_day_ends() -> None:
    state = school()
    settle(state, at("09:00"))
    for user in ("anna", "berta"):
        state.do("desktop.claim", user=user, template="tpl-office")
    settle(state, at("09:00"))
    assert settle(state, at("17:00")) == 2
    assert state.states("tpl-office").count("in_use") == 2


def test_no_calendar_asks_for_more_than_the_maximum() -> None:
    state = school(maximum=4)
    assert settle(state, at("12:00")) == 4
    assert shortages_now(state.db, state.vitals, 0.0, at_ms=at("12:00")) == ()


def test_over_a_whole_day_it_changes_twice() -> None:
    state = school()
    begin = datetime.fromisoformat("2026-11-26T00:00").replace(tzinfo=BERLIN)
    found = [settle(state, round((begin + timedelta(minutes=10 * n)).timestamp() * 1000)) for n in range(144)]
    assert found == [2] * 46 + [6] * 50 + [2] * 48
