"""Policies: what can be asked for, all that is wrong named at once, and templates that keep theirs."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kmgr.errors import Refused
from kmgr.grid.envelope import Applied
from kmgr.grid.store import Store
from kmgr.registry import SCHEMAS
from kmgr.templates.policy import (
    FIELDS,
    USUAL,
    Day,
    Devices,
    IdleThen,
    Policy,
    Ramp,
    Refresh,
    Schedule,
    as_values,
    computer_name,
    from_json,
    pattern_problem,
    policy_of,
    to_json,
)
from tests.lab.outcomes import rejected
from tests.unit.test_templates_commands import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = Store(tmp_path / "state.sqlite", SCHEMAS)
    store.guard()
    yield Desk(store)
    store.close()


def refusal(**values: Any) -> str:
    with pytest.raises(Refused) as caught:
        policy_of(values)
    return caught.value.message


def test_without_a_word_everything_is_as_it_always_was() -> None:
    assert policy_of({}) == from_json("") == USUAL
    assert (USUAL.refresh, USUAL.keep_s, USUAL.idle_s, USUAL.calendar) == (Refresh.ON_LOGOUT, None, None, ())
    assert USUAL.name_pattern == "{template}-{number}"


def test_only_what_is_given_changes() -> None:
    base = policy_of({"keep_s": 600, "idle_s": 900})
    assert policy_of({"idle_s": None}, base=base) == policy_of({"keep_s": 600})


def test_a_calendar_is_read_with_its_days_in_order() -> None:
    ramp = {"days": ["fri", "mon"], "start": "07:30", "end": "24:00", "standby": 30, "early_min": 20}
    assert policy_of({"calendar": [ramp]}).calendar == (
        Ramp(450, 1440, 30, days=(Day.MON, Day.FRI), dates=(), early_min=20),
    )


def test_everything_that_is_wrong_is_named_at_once() -> None:
    said = refusal(keep_s=-1, idle_s="soon", devices={"sound": 9}, colour="blue", refresh="sometimes")
    for part in (
        "kept after a disconnect",
        "idle time",
        "sound is true or false",
        "'colour'",
        "on_logout or schedule",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"refresh": "schedule"}, "need one"),
        ({"refresh": "never", "keep_s": 60}, "made anew only by hand, or never"),
        ({"refresh": "manual", "idle_s": 600, "idle_then": "log_out"}, "close its screen instead"),
        ({"idle_s": 60, "idle_warning_s": 60}, "warn later or wait longer"),
        ({"seed_data": "#cloud-config"}, "there is no seed"),
        ({"calendar": [{"start": "08:00", "end": "16:00", "standby": 1}]}, "days of the week or for dates"),
        (
            {"calendar": [{"start": "8", "end": "16:00", "standby": 1, "days": ["mon"]}]},
            "start of a ramp is a time of day",
        ),
        ({"calendar": [{"start": "08:00", "end": "08:00", "standby": 1, "days": ["mon"]}]}, "two different times"),
        ({"calendar": {"mon": 3}}, "list of at most"),
        ({"holidays": ["2026-02-30"]}, "days like"),
        ({"holidays": "2026-02-03"}, "days like"),
        ({"network": "two words"}, "network"),
        ({"network": None}, "network"),
        ({"devices": ["sound"]}, "devices has clipboard"),
        ({"devices": {"video_mib": 24}}, "the video memory is 16 or 32 or 64 or 128 MiB, not 24"),
        ({"devices": {"video_mib": True}}, "the video memory is"),
        ({"machine": {"firmware": "floppy"}}, "the firmware of a machine is bios or uefi or secure"),
        ({"properties": {"a b": "c"}}, "properties"),
        ({"properties": {"a": "one\ntwo"}}, "properties"),
        ({"schedule": {"days": [], "at": "03:00"}}, "at least one day"),
        ({"suspend_standby": 1}, "true or false"),
        ({"keep_s": True}, "whole number"),
        ({"name_pattern": "pc"}, "{number}"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(values: dict[str, Any], part: str) -> None:
    assert part in refusal(**values)


@pytest.mark.parametrize("pattern", ["{template}-{number}", "PC{number}", "lab-{number:3}", "{number}{template}"])
def test_patterns_that_make_host_names(pattern: str) -> None:
    assert pattern_problem(pattern) == ""


@pytest.mark.parametrize(
    "pattern",
    [
        "pc",
        "",
        "{number}.lab",
        "-{number}",
        "{number}-",
        "{user}{number}",
        "{template:3}{number}",
        "a b{number}",
        "{{number}",
    ],
)
def test_patterns_that_do_not(pattern: str) -> None:
    assert repr(pattern) in pattern_problem(pattern)


def test_computer_names_are_counted_with_as_many_digits_as_asked() -> None:
    assert [computer_name("PC-{number:3}", "office", n) for n in (1, 42, 1234)] == ["PC-001", "PC-042", "PC-1234"]
    assert computer_name("{template}-{number}", "office", 7) == "office-7"


@given(
    pattern=st.from_regex(r"([A-Za-z0-9]|\{number(:[1-9])?\}|\{template\}|-){1,12}", fullmatch=True),
    template=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True),
    numbers=st.tuples(st.integers(1, 1_000_000), st.integers(1, 1_000_000)),
)
def test_every_pattern_that_is_taken_makes_host_names_and_no_name_twice(
    pattern: str, template: str, numbers: tuple[int, int]
) -> None:
    assume(not pattern_problem(pattern))
    names = [computer_name(pattern, template, number) for number in numbers]
    assert all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", name) for name in names)
    assert (names[0] == names[1]) == (numbers[0] == numbers[1])


_minutes = st.integers(0, 1439)
_days = st.lists(st.sampled_from(Day), min_size=1, unique=True).map(lambda found: tuple(d for d in Day if d in found))
_dates = st.lists(st.dates().map(str), min_size=1, max_size=5).map(lambda found: tuple(sorted(set(found))))
_ramps = st.builds(
    lambda start, length, standby, when, early: Ramp(
        start, (start + length) % 1440, standby, when[0], when[1], early
    ),
    _minutes,
    st.integers(1, 1439),
    st.integers(0, 1000),
    st.one_of(_days.map(lambda d: (d, ())), _dates.map(lambda d: ((), d))),
    st.integers(0, 240),
)
_drawn = st.builds(
    Policy,
    refresh=st.sampled_from(Refresh),
    schedule=st.builds(Schedule, _days, _minutes),
    keep_s=st.none() | st.integers(0, 86_400),
    idle_s=st.none() | st.integers(100, 86_400),
    idle_warning_s=st.integers(10, 99),
    idle_then=st.sampled_from(IdleThen),
    calendar=st.lists(_ramps, max_size=4).map(tuple),
    holidays=_dates,
    suspend_standby=st.booleans(),
    devices=st.builds(Devices, st.booleans(), st.booleans()),
)


def _consistent(policy: Policy) -> Policy:
    """Return the policy without the rules that contradict its refresh."""
    if policy.refresh in (Refresh.MANUAL, Refresh.NEVER):
        return replace(policy, keep_s=None, idle_then=IdleThen.DISCONNECT)
    return policy


policies = _drawn.map(_consistent)


@given(policy=policies)
def test_what_is_written_is_read_back(policy: Policy) -> None:
    assert from_json(to_json(policy)) == policy
    assert policy_of(as_values(policy)) == policy


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(values=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), _anything, max_size=4))
def test_nonsense_is_refused_and_never_breaks(values: dict[str, Any]) -> None:
    try:
        policy = policy_of(values)
    except Refused:
        return
    assert policy_of(as_values(policy)) == policy


def test_a_template_keeps_its_policy_and_changes_a_part_of_it(desk: Desk) -> None:
    assert isinstance(desk.create(policy={"keep_s": 600, "idle_s": 1200}), Applied)
    desk.update(policy={"idle_s": None})
    assert desk.template.policy == Policy(keep_s=600)
    assert "idle s 1200 → None" in desk.told()[0]


def test_refresh_is_the_same_in_policy_and_beside_it(desk: Desk) -> None:
    desk.create(refresh="manual")
    assert (desk.template.refresh, desk.template.policy.refresh) == (Refresh.MANUAL, Refresh.MANUAL)
    desk.update(policy={"refresh": "never"})
    assert (desk.template.refresh, desk.template.policy.refresh) == (Refresh.NEVER, Refresh.NEVER)
    desk.update(refresh="on_logout")
    assert (desk.template.refresh, desk.template.policy.refresh) == (Refresh.ON_LOGOUT, Refresh.ON_LOGOUT)


def test_a_wrong_policy_changes_nothing(desk: Desk) -> None:
    assert "idle time" in rejected(desk.create(policy={"idle_s": 1}), "refused")
    desk.create()
    before = desk.template
    assert "idle time" in rejected(desk.update(standby=1, policy={"idle_s": 1}), "refused")
    assert "object of its fields" in rejected(desk.update(policy="strict"), "refused")
    assert "need one" in rejected(desk.update(refresh="schedule"), "refused")
    assert desk.template == before
