"""Grid-wide settings: checked by one table."""

import pytest

from kmgr.errors import Refused
from kmgr.settings import SETTINGS, check, problems


def test_defaults_are_within_their_own_limits_and_fit_together() -> None:
    assert problems({name: check(name, s.default) for name, s in SETTINGS.items()}) == []


@pytest.mark.parametrize("value", [True, "8", 1.5, -1, None])
def test_a_value_of_the_wrong_kind_is_refused_with_its_limits(value: object) -> None:
    with pytest.raises(Refused, match="from 3 to 100"):
        check("login_tries", value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(Refused, match="heartbeat_ms"):
        check("colour", 1)


def test_a_heartbeat_too_slow_for_the_loss_limit_is_a_problem() -> None:
    values = {name: s.default for name, s in SETTINGS.items()}
    assert problems({**values, "heartbeat_ms": 5_000})
