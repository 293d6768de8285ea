"""A whole number within limits, and what a person is told of anything else."""

import pytest

from kmgr import config, settings
from kmgr.errors import Refused
from kmgr.whole import is_whole, must_be


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, [], -1, 6])
def test_nothing_else_is_one(value: object) -> None:
    assert not is_whole(value, 0, 5)


def test_the_limits_belong_to_them() -> None:
    assert [n for n in range(-2, 9) if is_whole(n, 1, 3)] == [1, 2, 3]
    assert is_whole(1 << 80)
    assert not is_whole(-1)


def test_a_person_is_told_the_limits_and_what_there_was_but_no_novel() -> None:
    assert must_be("7", 1, 5) == "must be a whole number from 1 to 5, not '7'"
    assert must_be(True, 2) == "must be a whole number of at least 2, not True"
    assert len(must_be("x" * 10_000, 1, 5)) < 100


def test_the_same_words_stand_everywhere() -> None:
    with pytest.raises(Refused, match="heartbeat_ms must be a whole number from 200 to 5000, not 'soon'"):
        settings.check("heartbeat_ms", "soon")
    assert config.KEYS["max_builds"].check(True) == "must be a whole number from 0 to 1000, not True"
    assert config.KEYS["web_port"].check(0) == "must be a whole number from 1 to 65535, not 0"
