"""Limits of speed, what is told of it, and from whom to draw: plain functions of values and time."""

from collections import Counter
from functools import partial

import pytest

from kmgr.ids import ServerId
from kmgr.replica import choose
from kmgr.replica.budget import BURST_S, Budget, bytes_per_s
from kmgr.replica.progress import Rate, remaining_s

MIB = 1 << 20


def test_a_budget_lets_its_rate_through_and_no_more_than_a_short_burst_beyond() -> None:
    budget, now, sent = Budget(10 * MIB), 0.0, 0
    while now < 10.0:
        sent += MIB // 4
        now += budget.spend(MIB // 4, now=now)
    assert 10 * 10 * MIB <= sent <= (10 + BURST_S) * 10 * MIB + MIB // 4


def test_rest_is_not_saved_up() -> None:
    budget = Budget(MIB)
    budget.spend(1, now=0.0)
    assert budget.spend(MIB, now=1000.0) == pytest.approx(1 - BURST_S)


def test_without_a_limit_nothing_waits() -> None:
    assert Budget().spend(1 << 40, now=0.0) == 0.0
    assert Budget().wait_s(now=0.0) == 0.0


def test_a_clock_that_goes_back_neither_gives_nor_takes() -> None:
    budget = Budget(MIB)
    owed = budget.spend(2 * MIB, now=100.0)
    assert budget.wait_s(now=50.0) == owed
    assert budget.wait_s(now=51.0) == pytest.approx(owed - 1)


def test_a_new_limit_counts_at_once() -> None:
    budget = Budget(MIB)
    budget.set_rate(10 * MIB)
    assert budget.spend(10 * MIB, now=0.0) < 1.0
    budget.set_rate(0)
    assert budget.spend(10 * MIB, now=0.0) == 0.0


@pytest.mark.parametrize(
    ("plain", "beside", "in_use", "expected"),
    [(0, 0, True, 0), (9, 0, True, 9), (9, 2, True, 2), (9, 2, False, 9), (0, 2, True, 2), (0, 2, False, 0)],
)  # fmt: skip
def test_the_lower_limit_counts_while_desktops_are_in_use(
    plain: int, beside: int, in_use: bool, expected: int
) -> None:
    found = bytes_per_s(mbit_s=plain, beside_desktops_mbit_s=beside, in_use=in_use)
    assert found == expected * 125_000


def test_a_server_s_own_limit_only_lowers_those_of_the_grid() -> None:
    allowed = partial(bytes_per_s, mbit_s=9, beside_desktops_mbit_s=4, in_use=True)
    assert [allowed(own_mbit_s=own) for own in (0, 2, 6)] == [500_000, 250_000, 500_000]
    assert bytes_per_s(mbit_s=0, beside_desktops_mbit_s=0, in_use=False, own_mbit_s=6) == 750_000


def test_a_rate_is_told_over_the_last_seconds_and_ends_with_them() -> None:
    rate = Rate()
    assert rate.now(0.0) == 0
    for tenth in range(101):
        rate.note(tenth * 1000, now=tenth / 10)
    assert rate.now(10.0) == pytest.approx(10_000, rel=0.02)
    assert rate.now(20.0) == 0
    rate.note(0, now=1.0)
    assert rate.now(1.0) == 0


def test_the_rest_of_the_time_is_rounded_up_and_unknown_in_a_standstill() -> None:
    assert remaining_s(1001, 1000) == 2
    assert remaining_s(0, 0) == 0
    assert remaining_s(1, 0) is None


def test_few_servers_draw_from_all_others_and_many_from_a_few_spread_evenly() -> None:
    few = [ServerId(f"srv-{k}") for k in range(8)]
    assert sorted(choose.to_open("me", few, ())) == few
    many = [ServerId(f"srv-{k:03}") for k in range(100)]
    drawn: Counter[ServerId] = Counter()
    for own in many:
        able = [server for server in many if server != own]
        opened = choose.to_open(own, able, ())
        assert opened[0] == able[0]
        assert len(opened) == choose.DRAWN
        assert choose.to_open(own, able, opened) == []
        drawn.update(opened[1:])
    assert max(drawn.values()) <= 3 * choose.DRAWN


def test_sources_that_have_nothing_missing_give_way_only_to_others() -> None:
    able = [ServerId(f"srv-{k}") for k in range(12)]
    drawing = able[:8]
    assert choose.to_leave(able, drawing, drawing[:1]) == drawing[:1]
    assert choose.to_leave(able, drawing, []) == []
    assert choose.to_leave(drawing, drawing, drawing) == []
    assert len(choose.to_leave(able, drawing, drawing)) == 2
