"""What the log knows of users at their desktops: opened, closed, over; late words change nothing."""

import json
from typing import Any

import pytest

from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.queries import events
from kmgr.ids import DesktopId
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.queries import desktop as find_desktop
from kmgr.templates.policy import policy_of, to_json
from tests.lab.outcomes import rejected
from tests.lab.state import State


class Room:
    """A grid with one server and one desktop that anna uses."""

    def __init__(self) -> None:
        self.state = State()
        self.server = self.state.server("a")
        self.state.template("office")
        self.id = self.state.desktop("tpl-office", self.server, "in_use")
        self.told = {"desktop": self.id, "generation": 1, "server": self.server}

    @property
    def desktop(self) -> Desktop:
        found = find_desktop(self.state.db, DesktopId(self.id))
        assert found is not None
        return found

    def over(self, **other: Any) -> Outcome:
        now = self.desktop
        believed = {
            "desktop": now.id,
            "user": now.user,
            "generation": now.generation,
            "connected_at": now.connected_at,
            "disconnected_at": now.disconnected_at,
        }
        return self.state.do("desktop.over", **{**believed, "why": "nobody came back to it for 10 minutes", **other})


@pytest.fixture
def room() -> Room:
    return Room()


def test_a_screen_is_opened_and_closed(room: Room) -> None:
    assert (room.desktop.connected_at, room.desktop.disconnected_at) == (None, None)
    room.state.do("desktop.connected", **room.told)
    opened = room.state.at
    assert (room.desktop.connected_at, room.desktop.disconnected_at) == (opened, None)
    room.state.do("desktop.disconnected", **room.told)
    assert (room.desktop.connected_at, room.desktop.disconnected_at) == (opened, room.state.at)
    room.state.do("desktop.connected", **room.told)
    assert (room.desktop.connected_at, room.desktop.disconnected_at) == (room.state.at, None)


def test_what_is_told_twice_counts_once(room: Room) -> None:
    room.state.do("desktop.connected", **room.told)
    room.state.do("desktop.disconnected", **room.told)
    before = room.desktop
    room.state.do("desktop.disconnected", **room.told)
    assert room.desktop == before


def test_nobody_leaves_who_never_came(room: Room) -> None:
    assert room.state.do("desktop.disconnected", **room.told) == Applied()
    assert room.desktop.disconnected_at is None


@pytest.mark.parametrize("wrong", [{"generation": 2}, {"server": "srv-b"}])
def test_a_word_about_a_former_life_changes_nothing(room: Room, wrong: dict[str, Any]) -> None:
    before = room.desktop
    assert "former one" in rejected(room.state.do("desktop.connected", **{**room.told, **wrong}), "conflict")
    assert room.desktop == before


def test_a_desktop_whose_time_is_over_is_given_back_with_the_reason(room: Room) -> None:
    room.state.do("desktop.connected", **room.told)
    room.state.do("desktop.disconnected", **room.told)
    assert room.over() == Applied()
    assert room.desktop.state is DesktopState.RETIRED
    [line] = events(room.state.db, subject=room.id)
    assert line.text.endswith("of anna is given back: nobody came back to it for 10 minutes")
    assert room.over() == Applied()


def test_who_came_back_in_the_meantime_keeps_it(room: Room) -> None:
    room.state.do("desktop.connected", **room.told)
    room.state.do("desktop.disconnected", **room.told)
    believed = {"connected_at": room.desktop.connected_at, "disconnected_at": room.desktop.disconnected_at}
    room.state.do("desktop.connected", **room.told)
    assert "come back" in rejected(room.over(**believed), "conflict")
    assert room.desktop.state is DesktopState.IN_USE


def test_who_asks_for_their_desktop_again_has_it_for_another_while(room: Room) -> None:
    room.state.do("desktop.connected", **room.told)
    room.state.do("desktop.disconnected", **room.told)
    believed = {"connected_at": room.desktop.connected_at, "disconnected_at": room.desktop.disconnected_at}
    room.state.do("desktop.claim", user="anna", template="tpl-office")
    assert "come back" in rejected(room.over(**believed), "conflict")


def test_a_desktop_that_is_edited_is_not_given_back(room: Room) -> None:
    room.state.db.execute("update desktops set purpose = 'edit'")
    assert "to edit and stays" in rejected(room.over(), "refused")


def test_a_start_brings_what_the_template_says_by_now(room: Room) -> None:
    room.state.db.execute("update templates set vcpus = 4, policy = ?", [to_json(policy_of({"network": "blue"}))])
    assert room.state.do("desktop.outfitted", **room.told) == Applied({"vcpus": 4, "memory_mib": 1024})
    assert (room.desktop.vcpus, json.loads(room.desktop.outfit)["network"]) == (4, "blue")
    assert "generation" in rejected(room.state.do("desktop.outfitted", **{**room.told, "generation": 9}), "conflict")


def test_another_users_desktop_is_not_given_back(room: Room) -> None:
    assert "not berta's" in rejected(room.over(user="berta"), "conflict")


def test_a_personal_desktop_is_never_given_back(room: Room) -> None:
    room.state.db.execute("update desktops set kind = 'personal'")
    assert "is kept" in rejected(room.over(), "refused")
