"""How many desktops come up at once: it stays within its bounds, comes back, and a storm is over sooner for it."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.provision.storm import GROW_S, HOLD_S, Boot, Boots, Bounds, Pace, Pressure, bounds_of, next_pace

LOOK_S = 2.0
CALM = Pressure(cpu_percent=5.0, io_percent=0.0, disk_ms=1.0)

percents = st.none() | st.floats(0, 100)
pressures = st.builds(Pressure, percents, percents, st.none() | st.floats(0, 10_000))
boots = st.builds(Boot, st.sampled_from("ab"), st.floats(0, 500), st.floats(0.01, 600))
looks = st.lists(st.tuples(pressures, st.lists(boots, max_size=6), st.integers(0, 200)), max_size=60)
bounds = st.builds(bounds_of, st.integers(1, 256)) | st.builds(bounds_of, st.integers(1, 256), st.integers(1, 40))


def seen_at(now: float) -> Boots:
    """One got ready, as quickly as ever."""
    return Boots([Boot("office", now - 0.5, 0.5)])


def walked(within: Bounds, through: list[tuple[Pressure, list[Boot], int]]) -> tuple[list[Pace], float]:
    paces, now = [Pace(within.usual)], 0.0
    for pressure, ended, coming in through:
        now += LOOK_S
        paces.append(next_pace(paces[-1], pressure, Boots(ended), coming=coming, now=now, bounds=within))
    return paces, now


@given(bounds, looks)
def test_it_never_leaves_its_bounds_and_never_comes_to_a_standstill(
    within: Bounds, through: list[tuple[Pressure, list[Boot], int]]
) -> None:
    paces, _ = walked(within, through)
    for pace in paces:
        assert 1 <= pace.limit <= within.most
        assert bool(pace.why) <= (pace.limit < within.usual), "a reason is told for what is as usual"


@given(bounds, looks)
def test_in_calm_it_is_as_usual_again_and_with_all_places_taken_as_many_as_ever(
    within: Bounds, through: list[tuple[Pressure, list[Boot], int]]
) -> None:
    paces, now = walked(within, through)
    pace = paces[-1]
    for _ in range(round((HOLD_S + 17 * GROW_S) / LOOK_S) + 17):
        now += LOOK_S
        pace = next_pace(pace, CALM, seen_at(now), coming=0, now=now, bounds=within)
    assert within.usual <= pace.limit <= within.most
    assert not pace.why
    for _ in range(round(17 * GROW_S / LOOK_S) + 17):
        now += LOOK_S
        pace = next_pace(pace, CALM, seen_at(now), coming=pace.limit, now=now, bounds=within)
    assert pace.limit == within.most


@given(bounds, looks, st.integers(1, 200))
def test_disks_that_stay_busy_bring_it_to_one(
    within: Bounds, through: list[tuple[Pressure, list[Boot], int]], coming: int
) -> None:
    paces, now = walked(within, through)
    pace, seen = paces[-1], [paces[-1].limit]
    for _ in range(round(15 * HOLD_S / LOOK_S)):
        now += LOOK_S
        pace = next_pace(
            pace, Pressure(5.0, 45.0, 200.0), Boots(), coming=min(coming, pace.limit), now=now, bounds=within
        )
        seen.append(pace.limit)
    assert pace.limit == 1
    assert seen == sorted(seen, reverse=True)
    assert within.usual == 1 or "its disks were busy (45 % of the time" in pace.why


@given(st.integers(1, 256), st.integers(0, 500))
def test_busy_processors_alone_leave_a_quarter_of_theirs(cpus: int, coming: int) -> None:
    within, now = bounds_of(cpus), 0.0
    pace = Pace(within.usual)
    for _ in range(150):
        now += LOOK_S
        pace = next_pace(pace, Pressure(99.0, 0.0, 1.0), Boots(), coming=coming, now=now, bounds=within)
    assert pace.limit == max(1, cpus // 4)
    assert "its processors were busy (99 %" in pace.why and "however little" in pace.why


@given(bounds, looks)
def test_a_machine_that_tells_nothing_has_the_rule_by_its_processors(
    within: Bounds, through: list[tuple[Pressure, list[Boot], int]]
) -> None:
    paces, now = walked(within, through)
    assert next_pace(paces[-1], Pressure(), Boots(), coming=9, now=now + 1, bounds=within) == Pace(within.usual)


def test_boots_that_are_slow_of_their_kind_make_it_fewer_and_those_of_before_do_not_again() -> None:
    within = bounds_of(8)
    quick, slow = Boot("office", 0.0, 5.0), [Boot("office", 20.0, 14.0)] * 5
    first = next_pace(Pace(9), CALM, Boots([quick, *slow]), coming=9, now=40.0, bounds=within)
    assert (first.limit, first.why) == (7, "desktops came up 2.8 times as slowly as when it is quiet")
    seen = Boots([quick, *slow])
    assert next_pace(first, CALM, seen, coming=7, now=52.0, bounds=within).limit == 7, "nothing was begun since"
    assert next_pace(first, CALM, seen, coming=0, now=52.0, bounds=within).limit > 7


def test_a_kind_that_always_takes_long_is_not_slow() -> None:
    heavy = [Boot("office", 0.0, 5.0), *(Boot("windows", 20.0 + n, 60.0 + n) for n in range(5))]
    pace = next_pace(Pace(9), CALM, Boots(heavy), coming=9, now=90.0, bounds=bounds_of(8))
    assert pace.limit == 11


class FakeServer:
    """Boots that take longer the more there are beyond `able`: shared fairly (`worse` 1), or with losses (above)."""

    def __init__(self, *, able: int, worse: float, boot_s: float, full: Callable[[float], Pressure]) -> None:
        self.able, self.worse, self.boot_s, self.full = able, worse, boot_s, full

    def pressure(self, coming: int) -> Pressure:
        return self.full(coming / self.able)

    def rate(self, coming: int) -> float:
        return 1.0 if coming <= self.able else (self.able / coming) ** self.worse

    def play(self, count: int, *, within: Bounds, fixed: int = 0) -> float:
        """Return after how many seconds `count` desktops are ready: paced, or so many at a time."""
        now, left, boots = 1000.0, count, Boots([Boot("office", 0.0, self.boot_s)])
        going: list[list[float]] = []
        pace, step, looked, pressure = Pace(within.usual), 0.25, now, CALM
        while left or going:
            while left and len(going) < (fixed or pace.limit):
                left -= 1
                going.append([now, 0.0])
            now, coming, rate = now + step, len(going), self.rate(len(going))
            ready = [boot for boot in going if boot[1] + rate * step >= self.boot_s]
            going = [[begun, done + rate * step] for begun, done in going if [begun, done] not in ready]
            for begun, _ in ready:
                boots.note(Boot("office", begun, now - begun))
            if now - looked >= LOOK_S:
                looked, pressure = now, self.pressure(coming)
            if ready or now == looked:
                pace = next_pace(pace, pressure, boots, coming=coming, now=now, bounds=within)
        return now - 1000.0


def disks(load: float) -> Pressure:
    """Disks are the narrow place."""
    return Pressure(20.0, max(0.0, 60.0 * (1 - 1 / load)) if load > 1 else 0.0, 3.0 * load**2)


def processors(load: float) -> Pressure:
    """Processors are the narrow place."""
    return Pressure(min(100.0, 80.0 * load), 0.0, 1.0)


def silent(_: float) -> Pressure:
    """Nothing is busy as far as the kernel can tell: only how long boots take says something."""
    return CALM


@pytest.mark.parametrize("full", [disks, silent], ids=["disks", "silent"])
def test_a_hundred_desktops_are_ready_sooner_where_disks_thrash(full: Callable[[float], Pressure]) -> None:
    server = FakeServer(able=5, worse=1.8, boot_s=8.0, full=full)
    within = bounds_of(16)
    assert server.play(100, within=within) < 0.75 * server.play(100, within=within, fixed=within.usual)


def test_a_hundred_desktops_are_ready_sooner_where_the_server_can_do_more_than_is_usual() -> None:
    server = FakeServer(able=64, worse=1.0, boot_s=8.0, full=silent)
    within = bounds_of(8)
    assert server.play(100, within=within) < 0.8 * server.play(100, within=within, fixed=within.usual)


@pytest.mark.parametrize("able", [8, 9, 12])
def test_in_the_calm_case_it_is_not_later_than_a_fixed_number(able: int) -> None:
    server = FakeServer(able=able, worse=1.0, boot_s=8.0, full=processors)
    within = bounds_of(8)
    assert server.play(100, within=within) <= 1.05 * server.play(100, within=within, fixed=within.usual)
