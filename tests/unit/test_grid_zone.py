"""The grid's time zone: chosen by name, the same for every server."""

import pytest

from kmgr.errors import Refused
from kmgr.grid.envelope import Applied
from kmgr.grid.zone import check_zone, local_time, zone_name
from tests.lab.outcomes import rejected
from tests.lab.state import State

NOON_UTC = 1_795_694_400_000  # 2026-11-26T12:00:00Z


def test_a_grid_lives_in_utc_until_somebody_chooses() -> None:
    state = State()
    assert zone_name(state.db) == "UTC"
    assert state.do("grid.zone", zone="Europe/Berlin") == Applied({"before": "UTC"})
    assert zone_name(state.db) == "Europe/Berlin"
    assert local_time(state.db, NOON_UTC).isoformat() == "2026-11-26T13:00:00+01:00"


@pytest.mark.parametrize("name", ["", "../etc/passwd", "Europe/", "a" * 65, None, 7])
def test_what_is_no_name_is_refused(name: object) -> None:
    assert "Europe/Berlin" in rejected(State().do("grid.zone", zone=name), "refused")


def test_a_zone_that_this_server_does_not_know_is_taken_as_utc() -> None:
    state = State()
    state.do("grid.zone", zone="Mars/Olympus")
    assert local_time(state.db, NOON_UTC).isoformat() == "2026-11-26T12:00:00+00:00"
    with pytest.raises(Refused, match="no time zone"):
        check_zone("Mars/Olympus")
    assert check_zone(" Europe/Berlin ") == "Europe/Berlin"
