"""How records of an island are settled, rule by rule: desktops and sessions against what the grid decided."""

import hashlib
from typing import Any

import pytest

from kmgr.grid.envelope import Command
from kmgr.grid.rows import one, rows
from kmgr.grid.settle import Told
from kmgr.ids import CommandId, ServerId
from kmgr.provision.island import settle_desktop
from kmgr.provision.model import DesktopState as S
from kmgr.users.island import settle_close, settle_close_all, settle_open
from tests.lab.state import State

A, B = ServerId("srv-a"), ServerId("srv-b")
COMMAND = Command("island.settle", CommandId("cmd"), 99, A, {})


@pytest.fixture
def state() -> State:
    state = State()
    state.server("a")
    state.server("b")
    state.version("ver-1", (A, B))
    state.template("kde", next_number=5)
    return state


def row(state: State, desktop: str) -> dict[str, Any]:
    found = one(state.db, "select * from desktops where id = ?", [desktop])
    assert found is not None
    return found


def there(state: State, desktop: str) -> bool:
    return one(state.db, "select id from desktops where id = ?", [desktop]) is not None


def settle(
    state: State, mine: dict[str, Any], *, knew: tuple[str, ...] = (), connected: tuple[str, ...] = ()
) -> dict[str, Any]:
    values = {"desktop": mine["id"], "generation": mine["generation"], "row": mine, "knew": list(knew)}
    settle_desktop(state.db, COMMAND, values, Told(A, frozenset(connected)))
    return row(state, mine["id"])


def given(mine: dict[str, Any], user: str = "anna") -> dict[str, Any]:
    return {**mine, "state": "in_use", "user": user, "claimed_at": 7}


def texts(state: State) -> list[str]:
    return [line["text"] for line in rows(state.db, "select text from events order by n")]


@pytest.mark.parametrize("known", S)
def test_whoever_was_given_a_desktop_keeps_it_whatever_the_grid_made_of_it(state: State, known: S) -> None:
    desktop = state.desktop("tpl-kde", A, known.value, user="bob")
    now = settle(state, given(row(state, desktop)))
    assert (now["state"], now["user"], now["claimed_at"]) == ("in_use", "anna", 7)
    assert any("is not bob's" in text for text in texts(state)) == (known is S.IN_USE)


@pytest.mark.parametrize("known", S)
@pytest.mark.parametrize("mine", [S.PLACED, S.BUILDING, S.READY, S.BROKEN, S.RETIRED])
def test_what_nobody_uses_goes_only_the_ways_of_a_desktops_life(state: State, known: S, mine: S) -> None:
    desktop = state.desktop("tpl-kde", A, known.value, user="bob")
    told = {
        **row(state, desktop),
        "state": mine.value,
        "user": None,
        "step": "run",
        "cause": "no disk",
        "ready_at": 3,
    }
    now = settle(state, told)
    if S.RETIRED in (known, mine):
        assert now["state"] == "retired"
    elif mine is S.BROKEN or known is S.BROKEN:
        assert now["state"] == "broken"
        assert (now["cause"] == "no disk") == (mine is S.BROKEN)
    elif (known, mine) == (S.READY, S.BUILDING):
        assert now["state"] == "building"  # its server was restarted while it was cut off: the standby boots again
    else:
        # Never back: what was further already stays.
        order = [S.PLACED, S.BUILDING, S.READY, S.IN_USE]
        assert now["state"] == max(known, mine, key=order.index)


def test_a_new_desktop_keeps_its_name_if_it_is_free_and_the_template_counts_on(state: State) -> None:
    other = state.desktop("tpl-kde", B)
    taken = row(state, other)["name"]
    fresh = {**row(state, other), "id": "dsk-new", "server": A, "state": "ready", "user": None}
    assert settle(state, {**fresh, "name": "kde-7"})["name"] == "kde-7"
    assert one(state.db, "select next_number as n from templates") == {"n": 8}
    again = settle(state, {**fresh, "id": "dsk-next", "name": taken})
    assert again["name"] == "kde-8"
    assert one(state.db, "select next_number as n from templates") == {"n": 9}


def test_a_new_desktop_whose_template_is_gone_goes_unless_somebody_uses_it(state: State) -> None:
    seen = state.desktop("tpl-kde", B)
    fresh = {**row(state, seen), "server": A, "template": "tpl-gone", "name": "gone-1"}
    assert settle(state, {**fresh, "id": "dsk-1", "state": "ready"})["state"] == "retired"
    used = settle(state, given({**fresh, "id": "dsk-2"}))
    assert (used["state"], used["name"]) == ("in_use", "dsk-2")


def test_a_desktop_that_its_server_removed_is_gone_whoever_was_given_it(state: State) -> None:
    desktop = state.desktop("tpl-kde", A, "in_use", user="bob")
    gone = {"desktop": desktop, "generation": 1, "row": None, "knew": []}
    settle_desktop(state.db, COMMAND, gone, Told(A))
    assert not there(state, desktop)
    assert "is not bob's: while its server was cut off it was nobody any more's" in texts(state)[-1]
    settle_desktop(state.db, COMMAND, gone, Told(A))


def test_the_word_about_an_older_generation_is_history(state: State) -> None:
    desktop = state.desktop("tpl-kde", A, "broken")
    mine = row(state, desktop)
    state.do("desktop.retry", desktop=desktop)
    assert settle(state, {**mine, "state": "retired"})["state"] == "placed"
    settle_desktop(state.db, COMMAND, {"desktop": desktop, "generation": 1, "row": None, "knew": []}, Told(A))
    assert there(state, desktop)


def test_nobody_speaks_for_another_servers_desktops(state: State) -> None:
    far = state.desktop("tpl-kde", B)
    assert settle(state, given(row(state, far)))["state"] == "ready"
    settle_desktop(state.db, COMMAND, {"desktop": far, "generation": 1, "row": None, "knew": []}, Told(A))
    assert there(state, far)


@pytest.mark.parametrize(
    ("knew", "connected", "stays"), [(False, False, "other"), (True, False, "mine"), (False, True, "mine")]
)
def test_of_two_desktops_one_stays(state: State, knew: bool, connected: bool, stays: str) -> None:
    mine, other = state.desktop("tpl-kde", A), state.desktop("tpl-kde", B, "in_use", user="anna")
    settle(
        state,
        given(row(state, mine)),
        knew=(other,) if knew else (),
        connected=(mine,) if connected else (),
    )
    kept, gone = (mine, other) if stays == "mine" else (other, mine)
    assert (row(state, kept)["state"], row(state, gone)["state"]) == ("in_use", "retired")
    assert any("had got another one while a server was cut off" in text for text in texts(state))


def test_one_on_a_lost_server_or_of_another_template_is_no_second_one(state: State) -> None:
    state.template("win")
    mine = state.desktop("tpl-kde", A)
    others = [state.desktop("tpl-kde", B, "in_use", user="anna"), state.desktop("tpl-win", A, "in_use", user="anna")]
    state.become(B, "lost")
    settle(state, given(row(state, mine)))
    assert {row(state, desktop)["state"] for desktop in (mine, *others)} == {"in_use"}


def opened(**changed: Any) -> dict[str, Any]:
    digest = hashlib.sha256(b"secret").hexdigest()
    person = {"name": "anna", "display_name": "Anna", "groups": ["staff"], "role": "user", "source": "built-in"}
    rest = {"hash": "h", "address": "", "server": A, "expires_at": 10**12, "at": 5, "account": digest}
    return {**person, **rest, **changed}


def account(state: State, **fields: Any) -> None:
    body = {"display_name": "Anna B.", "role": "admin", "groups": ["all"], "password_hash": "secret", **fields}
    state.do("account.create", name="root", **body)
    state.do("account.create", name="anna", **body)


def sessions(state: State) -> list[dict[str, Any]]:
    return rows(state.db, "select * from sessions order by hash")


def test_a_session_goes_on_as_who_its_person_is_now(state: State) -> None:
    account(state)
    for _ in range(2):
        settle_open(state.db, COMMAND, opened(), Told(A))
    (session,) = sessions(state)
    assert (session["role"], session["display_name"], session["groups"]) == ("admin", "Anna B.", '["all"]')
    assert (session["created_at"], session["server"]) == (5, A)


def test_a_session_of_a_directory_goes_on_as_the_directory_said(state: State) -> None:
    settle_open(state.db, COMMAND, opened(source="corp", account=""), Told(A))
    assert [(s["role"], s["groups"]) for s in sessions(state)] == [("user", '["staff"]')]


@pytest.mark.parametrize(
    ("type", "body"),
    [
        ("account.update", {"disabled": True}),
        ("account.password", {"password_hash": "another"}),
        ("account.delete", {}),
    ],
)
def test_a_session_whose_account_was_closed_or_changed_ends(state: State, type: str, body: dict[str, Any]) -> None:
    account(state)
    state.do(type, name="anna", **body)
    settle_open(state.db, COMMAND, opened(), Told(A))
    assert sessions(state) == []
    assert texts(state)[-1] == "a session of anna has ended: the account was changed while its server was cut off"


def test_what_was_closed_is_closed_everywhere(state: State) -> None:
    for token in ("one", "two", "three"):
        settle_open(state.db, COMMAND, opened(source="corp", hash=token), Told(A))
    settle_close(state.db, COMMAND, {"hash": "one"}, Told(A))
    assert {s["hash"] for s in sessions(state)} == {"two", "three"}
    settle_close_all(state.db, COMMAND, {"name": "anna"}, Told(A))
    assert sessions(state) == []
