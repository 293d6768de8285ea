"""What the log takes of how far safe copies are: no point goes back, unless its server's clock did."""

import pytest

from kmgr.grid.envelope import Applied
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.queries import copies
from tests.lab.state import State

ONE, TWO = ServerId("srv-a"), ServerId("srv-b")


@pytest.fixture
def desktop() -> tuple[State, DesktopId]:
    state = State()
    for name in "ab":
        state.server(name)
    state.template("own", kind="personal")
    desktop = state.desktop("tpl-own", ONE, "in_use")
    state.db.execute("update desktops set kind = 'personal', user = 'anna' where id = ?", [desktop])
    state.db.execute("insert into copies values (?, ?, 1, 'ready', 5000, 1, 1)", [desktop, TWO])
    return state, desktop


def told(state: State, desktop: DesktopId, as_of: int, **more: object) -> tuple[int, int | None]:
    """Tell a point; return how many counted, and what the log has then."""
    point = {"desktop": desktop, "generation": 1, "server": TWO, "as_of": as_of, "bytes": 1, **more}
    outcome = state.do("copy.points", server=ONE, points=[point])
    assert isinstance(outcome, Applied)
    (copy,) = copies(state.db)
    return outcome.values["taken"], copy.as_of


def test_what_comes_late_does_not_count_and_a_clock_that_was_set_back_does(desktop: tuple[State, DesktopId]) -> None:
    state, own = desktop
    assert told(state, own, 4000) == (0, 5000)
    assert told(state, own, 4000, set_back="yes") == (0, 5000)
    assert told(state, own, 4000, set_back=True) == (1, 4000)
    assert told(state, own, 6000) == (1, 6000)


def test_what_was_wrong_with_a_copy_that_was_started_is_in_the_history_once(desktop: tuple[State, DesktopId]) -> None:
    state, own = desktop
    state.db.execute("update desktops set server = ?, generation = 2 where id = ?", [TWO, own])
    state.db.execute("update copies set state = 'starting'")
    state.db.execute("insert into take_overs values (?, 2, ?, ?, 9000, 9000, null)", [own, ONE, TWO])
    key = {"desktop": own, "generation": 2, "server": TWO, "as_of": 5000}
    for _ in range(2):
        assert isinstance(state.do("copy.promoted", **key, bad=3, unread=40), Applied)
    texts = [row[0] for row in state.db.execute("select text from events").fetchall()]
    assert sum("3 places of 64 KiB of it had gone bad" in text for text in texts) == 1
    assert sum("3 MiB were not" in text for text in texts) == 1
