"""Copies that race with their guest: which ones come to an end, and how soon the others are given up."""

from collections.abc import Callable

import pytest

from kmgr.provision.pace import LONGEST_S, WINDOW_S, Pace

GIB = 1 << 30


def given_up(left: Callable[[float], float], until_s: float) -> tuple[float, str]:
    """Return when and why a copy is given up of which so much is left at each moment; (0, "") if it is not."""
    pace = Pace("disk", 1000.0)
    for second in range(0, int(until_s), 10):
        if why := pace.problem(int(left(second)), 1000.0 + second):
            return second, why
    return 0.0, ""


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("steadily", lambda t: 100 * GIB - t * 20_000_000),
        ("slowly, but it ends", lambda t: 20 * GIB * (1 - t / (LONGEST_S - 600))),
        ("after a burst of writing", lambda t: 50 * GIB - t * GIB / 60 + (3 * GIB if 600 < t < 700 else 0)),
        ("after it has found out how much there is", lambda t: 0 if t < 100 else 60 * GIB - t * GIB / 90),
        ("all but the last", lambda _: 0),
    ],
)
def test_a_copy_that_ends_goes_on(name: str, left: Callable[[float], float]) -> None:
    assert given_up(lambda t: max(0.0, left(t)), 3000) == (0.0, ""), name


@pytest.mark.parametrize(
    "left", [lambda _: 5 * GIB, lambda t: 5 * GIB + t * 1000, lambda t: 5 * GIB - t, lambda t: GIB + t * GIB]
)
def test_one_that_does_not_become_less_is_given_up_with_words(left: Callable[[float], float]) -> None:
    when, why = given_up(left, 3600)
    assert when == 2 * WINDOW_S
    assert "its guest writes about as fast as its disk is copied" in why
    assert "MiB are left after 4 min" in why


def test_one_that_falls_and_rises_for_ever_has_an_end_too() -> None:
    when, why = given_up(lambda t: GIB * (2 + (t // WINDOW_S) % 2), 10 * LONGEST_S)
    assert LONGEST_S <= when <= LONGEST_S + 20
    assert why == "its disk was not copied within 6 h"
