"""How many desktops stand by when: weekdays, dates, holidays, nights, an early beginning, and summer time."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.templates.calendar import Step, last_due, steps, wanted_standby
from kmgr.templates.policy import Day, Policy, Ramp, Schedule
from tests.unit.test_templates_policy import policies

BERLIN = ZoneInfo("Europe/Berlin")
WORK = (Day.MON, Day.TUE, Day.WED, Day.THU, Day.FRI)
SCHOOL = Policy(
    calendar=(Ramp(8 * 60, 16 * 60, 30, days=WORK, early_min=20), Ramp(10 * 60, 12 * 60, 50, days=(Day.WED,))),
    holidays=("2026-12-25",),
    holiday_standby=1,
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("moment", "wanted"),
    [
        ("2026-11-26T07:39:59", 2),  # a Thursday
        ("2026-11-26T07:40:00", 30),
        ("2026-11-26T15:59:59", 30),
        ("2026-11-26T16:00:00", 2),
        ("2026-11-25T11:00:00", 50),  # a Wednesday: the largest of two
        ("2026-11-28T11:00:00", 2),  # a Saturday
        ("2026-12-25T11:00:00", 1),  # a Friday, but a holiday
    ],
)
def test_a_school_week(moment: str, wanted: int) -> None:
    assert wanted_standby(SCHOOL, 2, at(moment)) == wanted


def test_without_a_calendar_it_is_as_many_as_ever() -> None:
    assert wanted_standby(Policy(), 7, at("2026-11-26T11:00:00")) == 7


def test_a_ramp_may_ask_for_fewer_than_usual() -> None:
    night = Policy(calendar=(Ramp(22 * 60, 6 * 60, 0, days=tuple(Day)),))
    assert [wanted_standby(night, 5, at(f"2026-11-26T{hour}:00:00")) for hour in ("21", "22", "05", "06")] == [
        5,
        0,
        0,
        5,
    ]


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    friday = Policy(calendar=(Ramp(22 * 60, 6 * 60, 9, days=(Day.FRI,)),))
    assert wanted_standby(friday, 0, at("2026-11-28T05:00:00")) == 9
    assert wanted_standby(friday, 0, at("2026-11-27T05:00:00")) == 0


def test_a_day_with_ramps_of_its_own_counts_alone_on_a_holiday_too() -> None:
    fair = Policy(
        calendar=(Ramp(0, 1440, 30, days=tuple(Day)), Ramp(9 * 60, 10 * 60, 3, dates=("2026-12-24", "2026-12-25"))),
        holidays=("2026-12-25",),
    )
    assert wanted_standby(fair, 2, at("2026-12-24T09:30:00")) == 3
    assert wanted_standby(fair, 2, at("2026-12-24T11:00:00")) == 2
    assert wanted_standby(fair, 2, at("2026-12-25T09:30:00")) == 3
    assert wanted_standby(fair, 2, at("2026-12-25T11:00:00")) == 0
    assert wanted_standby(fair, 2, at("2026-12-26T11:00:00")) == 30


def test_an_early_beginning_reaches_into_the_day_before() -> None:
    monday = Policy(calendar=(Ramp(0, 60, 4, days=(Day.MON,), early_min=30),))
    assert wanted_standby(monday, 0, at("2026-11-29T23:31:00")) == 4
    assert wanted_standby(monday, 0, at("2026-11-29T23:29:00")) == 0


def test_half_past_seven_stays_that_when_summer_time_begins_and_ends() -> None:
    early = Policy(calendar=(Ramp(450, 480, 5, days=tuple(Day)),))
    for day in ("2026-03-28", "2026-03-29", "2026-10-24", "2026-10-25"):
        assert wanted_standby(early, 0, at(f"{day}T07:30:00")) == 5
        assert wanted_standby(early, 0, at(f"{day}T07:29:00")) == 0
        assert wanted_standby(early, 0, at(f"{day}T08:00:00")) == 0


def test_no_hour_of_the_change_to_winter_time_is_left_out() -> None:
    night = Policy(calendar=(Ramp(120, 240, 6, days=(Day.SUN,)),))  # 02:00 to 04:00, which is three hours that night
    began = at("2026-10-25T02:00:00").astimezone(UTC)
    found = [wanted_standby(night, 0, (began + timedelta(minutes=m)).astimezone(BERLIN)) for m in range(-1, 181)]
    assert found == [0] + [6] * 180 + [0]


def test_the_steps_of_a_day_are_told() -> None:
    assert steps(SCHOOL, 2, at("2026-11-25T12:30:00")) == (
        Step(at("2026-11-25T12:30:00"), 30),
        Step(at("2026-11-25T16:00:00"), 2),
        Step(at("2026-11-26T07:40:00"), 30),
    )


moments = st.integers(1_767_225_600, 1_830_297_600).map(lambda one: datetime.fromtimestamp(one, BERLIN))


@given(policy=policies, moment=moments, minute=st.integers(0, 1439))
def test_between_two_steps_nothing_changes(policy: Policy, moment: datetime, minute: int) -> None:
    found = steps(policy, 3, moment)
    assert all(
        one.at.timestamp() < other.at.timestamp() and one.standby != other.standby for one, other in pairwise(found)
    )
    then = moment.timestamp() + 60 * minute
    told = [step for step in found if step.at.timestamp() <= then][-1]
    assert told.standby == wanted_standby(policy, 3, datetime.fromtimestamp(then, BERLIN))


def test_a_schedule_was_due_last_on_one_of_its_days() -> None:
    nightly = Schedule((Day.MON, Day.THU), 3 * 60)
    assert last_due(nightly, at("2026-11-26T03:00:00")) == at("2026-11-26T03:00:00")
    assert last_due(nightly, at("2026-11-26T02:59:59")) == at("2026-11-23T03:00:00")
    assert last_due(nightly, at("2026-11-29T12:00:00")) == at("2026-11-26T03:00:00")


@given(days=st.sets(st.sampled_from(Day), min_size=1), minute=st.integers(0, 1439), moment=moments)
def test_a_schedule_is_never_due_in_the_future_and_never_more_than_a_week_ago(
    days: set[Day], minute: int, moment: datetime
) -> None:
    due = last_due(Schedule(tuple(day for day in Day if day in days), minute), moment)
    assert due.timestamp() <= moment.timestamp() <= due.timestamp() + 7 * 86_400 + 3600


def test_a_moment_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        wanted_standby(SCHOOL, 2, at("2026-11-26").replace(tzinfo=None))
