"""A superseded disk becomes its desktop's disk again: what the log allows, and what is kept meanwhile."""

from typing import Any

from kmgr.grid.envelope import Applied, Outcome
from kmgr.ids import DesktopId, ServerId, VersionId
from kmgr.provision.model import CopyState, DesktopState
from kmgr.provision.queries import copies, put_backs
from kmgr.provision.queries import desktop as find_desktop
from kmgr.provision.uses import uses
from tests.lab.outcomes import why
from tests.lab.state import State

ONE, TWO, THREE = (ServerId(f"srv-{letter}") for letter in "abc")


def moved() -> tuple[State, DesktopId]:
    """Return a grid in which Anna's desktop went on on b (generation 2); its disk of generation 1 is on a."""
    state = State()
    for name in "abc":
        state.server(name)
    state.template("own", kind="personal")
    desktop = state.desktop("tpl-own", TWO, "in_use")
    state.db.execute("update desktops set kind = 'personal', user = 'anna', generation = 2 where id = ?", [desktop])
    state.db.execute("insert into copies values (?, ?, 1, 'superseded', null, 0, 1)", [desktop, ONE])
    state.db.execute("insert into copies values (?, ?, 2, 'ready', 5, 1, 1)", [desktop, THREE])
    return state, desktop


def order(state: State, desktop: str, **changed: Any) -> Outcome:
    body = {"desktop": desktop, "generation": 2, "server": ONE, "disk": 1}
    return state.do("desktop.put_back", **{**body, **changed})


def held(state: State) -> set[tuple[str, int, str]]:
    return {(copy.server, copy.generation, copy.state.value) for copy in copies(state.db)}


def test_the_present_disk_is_kept_and_the_desktop_runs_nowhere_until_its_server_has_said_so() -> None:
    state, desktop = moved()
    assert isinstance(order(state, desktop), Applied)
    now = find_desktop(state.db, desktop)
    assert now is not None
    assert (now.server, now.generation, now.state) == (TWO, 3, DesktopState.BROKEN)
    assert held(state) == {(ONE, 1, "superseded"), (TWO, 2, "superseded"), (THREE, 2, "dropping")}
    assert put_backs(state.db) == {desktop}
    assert "wait for that" in why(state.do("desktop.retry", desktop=desktop))
    assert "being put back" in why(state.do("copy.drop", desktop=desktop, server=ONE, generation=1))
    assert "already" in why(order(state, desktop, generation=3))
    aside = {"desktop": desktop, "server": TWO}
    assert "generation 3" in why(state.do("desktop.put_aside", **aside, generation=2))
    assert isinstance(state.do("desktop.put_aside", **aside, generation=3), Applied)
    now = find_desktop(state.db, desktop)
    assert now is not None
    assert (now.server, now.generation, now.state, now.cause) == (ONE, 4, DesktopState.IN_USE, "")
    assert (ONE, 1, "starting") in held(state)
    assert "not" in why(state.do("desktop.put_in_place", desktop=desktop, server=ONE, generation=3))
    assert isinstance(state.do("desktop.put_in_place", desktop=desktop, server=ONE, generation=4), Applied)
    assert held(state) == {(TWO, 2, "superseded"), (THREE, 2, "dropping")}
    assert put_backs(state.db) == frozenset()


def test_a_move_that_goes_on_ends_with_the_order() -> None:
    state, desktop = moved()
    state.db.execute("update desktops set moving_to = ? where id = ?", [THREE, desktop])
    assert isinstance(order(state, desktop), Applied)
    now = find_desktop(state.db, desktop)
    assert now is not None
    assert now.moving_to is None


def test_what_a_live_move_left_is_put_back_only_once_the_server_that_it_moved_to_is_away() -> None:
    state, desktop = moved()
    state.db.execute("update copies set state = 'left' where generation = 1")
    assert "no such former disk" in why(order(state, desktop))
    state.become(TWO, "removed")
    assert isinstance(order(state, desktop), Applied)
    lost_at = state.db.execute("select changed_at from servers where id = ?", [TWO]).fetchone()[0]
    aside = {"desktop": desktop, "server": TWO, "generation": 3, "lost_at": lost_at}
    assert isinstance(state.do("desktop.put_aside", **aside), Applied)
    now = find_desktop(state.db, desktop)
    assert now is not None
    assert (now.server, now.generation, now.state) == (ONE, 4, DesktopState.IN_USE)
    assert (ONE, 1, "starting") in held(state)


def test_what_is_not_there_or_not_possible_is_refused() -> None:
    state, desktop = moved()
    assert "no such former disk" in why(order(state, desktop, disk=2))
    assert "no such former disk" in why(order(state, desktop, server=THREE))
    assert "generation 2" in why(order(state, desktop, generation=1))
    assert "no desktop" in why(order(state, "dsk-none"))
    state.do("server.lost", server=ONE)
    assert "start it first" in why(order(state, desktop))


def test_a_lost_server_is_waited_out_unless_it_may_run_it_without_a_majority() -> None:
    state, desktop = moved()
    state.do("tenure.begin", server=TWO, tenure="t-1")
    order(state, desktop)
    aside = {"desktop": desktop, "server": TWO, "generation": 3}
    assert "may be running" in why(state.do("desktop.put_aside", **aside, lost_at=0))
    state.do("server.lost", server=TWO)
    lost_at = next(state.db.query("select changed_at from servers where id = ?", [TWO]))["changed_at"]
    assert "may be running" in why(state.do("desktop.put_aside", **aside, lost_at=lost_at - 1))
    assert "is it off" in why(state.do("desktop.put_aside", **aside, lost_at=lost_at))
    state.do("tenure.end", server=TWO)
    assert isinstance(state.do("desktop.put_aside", **aside, lost_at=lost_at), Applied)


def test_its_version_is_kept_where_it_lies_and_a_removed_server_is_no_reason_to_forget_it() -> None:
    state, desktop = moved()
    now = find_desktop(state.db, desktop)
    assert now is not None
    assert uses(state.db).desktops[VersionId(now.version)][ONE] == 1
    state.do("server.remove", server=TWO)
    assert "it goes on from that" in why(state.do("desktop.forget", desktop=desktop))
    state.do("server.remove", server=THREE)
    assert "put it back, or delete it" in why(state.do("desktop.forget", desktop=desktop))
    assert uses(state.db).desktops[VersionId(now.version)][ONE] == 1
    state.do("copy.drop", desktop=desktop, server=ONE, generation=1)
    assert isinstance(state.do("desktop.forget", desktop=desktop), Applied)
    assert {copy.state for copy in copies(state.db)} == {CopyState.DROPPING}


def test_if_the_disks_server_is_removed_meanwhile_the_order_ends_and_the_other_disk_is_there() -> None:
    state, desktop = moved()
    order(state, desktop)
    state.do("server.remove", server=ONE)
    assert isinstance(state.do("desktop.put_aside", desktop=desktop, server=TWO, generation=3), Applied)
    assert put_backs(state.db) == frozenset()
    assert isinstance(order(state, desktop, generation=3, server=TWO, disk=2), Applied)


def test_instead_of_a_safe_copy_that_has_gone_bad_what_a_cold_move_left_is_put_back_too() -> None:
    state, desktop = moved()
    state.db.execute("update copies set state = 'left' where generation = 1")
    state.db.execute("update copies set state = 'starting', server = ?, generation = 1 where generation = 2", [TWO])
    assert "no such former disk" in why(order(state, desktop))
    body = {"desktop": desktop, "generation": 2, "server": TWO, "step": "safe copy", "cause": "it has gone bad"}
    assert isinstance(state.do("desktop.failed", **body, trouble="no_copy", against=False), Applied)
    assert "no such former disk" in why(order(state, desktop))
    state.db.execute("update desktops set trouble = 'bad_copy' where id = ?", [desktop])
    assert isinstance(order(state, desktop), Applied)
    assert held(state) == {(ONE, 1, "left"), (TWO, 1, "dropping")}, "no disk is where the bad copy was"
    assert isinstance(state.do("desktop.put_aside", desktop=desktop, server=TWO, generation=3), Applied)
    assert (ONE, 1, "starting") in held(state)
