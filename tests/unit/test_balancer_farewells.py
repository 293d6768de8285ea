"""Who on a draining server is told to leave, and when that is over: decided, and done by whoever leads."""

from collections.abc import Collection
from pathlib import Path

import pytest

from kmgr.balancer.farewell_agent import FarewellAgent
from kmgr.balancer.farewells import AGAIN_S, SURE_S, End, Farewells, Leave, Tell
from kmgr.balancer.relocate import EACH_AT_ONCE, MOST_FAILURES
from kmgr.grid.envelope import Applied
from kmgr.grid.vitals import Board
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.drain_rows import leaving, notices
from kmgr.provision.outfit import outfit
from kmgr.templates.machine import Firmware, Machine
from kmgr.templates.policy import Policy
from tests.lab.provision import A, B, Office, done
from tests.lab.state import State

MINUTE = 60_000


@pytest.fixture
def state() -> State:
    state = State()
    state.server("a")
    state.server("b")
    state.version("ver-1", [A, B])
    state.template("win", standby=0)
    return state


def stick(state: State, desktop: str) -> None:
    """Have all attempts to move it fail."""
    for _ in range(MOST_FAILURES):
        body = {"desktop": desktop, "generation": 1, "server": A}
        assert isinstance(state.do("desktop.move", **body, target=B, why="its server drains"), Applied)
        state.do("desktop.move_failed", **body, cause="its memory changes too fast")


def due(state: State, farewells: Farewells, now: float, *, later_ms: int = 0) -> list[tuple[type, str]]:
    told = leaving(state.db)
    given = farewells.due(state.view(), notices(state.db), told, now=now, now_ms=state.at + later_ms)
    return [(type(one), one.desktop.id) for one in given]


def test_who_can_be_moved_is_not_told_and_who_cannot_only_when_that_is_sure(state: State) -> None:
    moves, stuck = state.desktop("tpl-win", A, "in_use"), state.desktop("tpl-win", A, "in_use", user="otto")
    state.do("server.drain", server=A)
    stick(state, stuck)
    farewells = Farewells()
    assert due(state, farewells, 0.0) == [], "nobody has to leave without a notice"
    state.do("drain.notice", server=A, minutes=30)
    assert due(state, farewells, 1.0) == []
    assert due(state, farewells, 1.0 + SURE_S) == [(Tell, stuck)]
    assert moves != stuck


def test_what_hinders_for_a_moment_frightens_nobody(state: State) -> None:
    used = state.desktop("tpl-win", A, "in_use")
    state.do("server.drain", server=A)
    state.do("drain.notice", server=A, minutes=30)
    farewells, heard = Farewells(), state.vitals[B]
    state.silence(B)
    assert due(state, farewells, 0.0) == []
    state.vitals[B] = heard
    assert due(state, farewells, SURE_S) == []
    state.silence(B)
    assert due(state, farewells, SURE_S + 1) == []
    assert due(state, farewells, 2 * SURE_S + 1) == [(Tell, used)]


def test_the_end_comes_at_its_time_and_for_none_but_pooled_desktops(state: State) -> None:
    state.template("own", kind="personal")
    mine, used = state.desktop("tpl-own", A, "in_use"), state.desktop("tpl-win", A, "in_use")
    state.db.execute("update desktops set kind = 'personal' where id = ?", [mine])
    state.do("server.drain", server=A)
    stick(state, used)
    stick(state, mine)
    state.do("drain.notice", server=A, minutes=30)
    farewells = Farewells()
    due(state, farewells, 0.0)
    assert due(state, farewells, SURE_S) == [(Tell, used)]
    state.do("drain.tell", desktop=used, generation=1, server=A)
    assert due(state, farewells, SURE_S + 1, later_ms=29 * MINUTE) == []
    assert due(state, farewells, SURE_S + 2, later_ms=31 * MINUTE) == [(End, used)]


def own(state: State, server: ServerId = A) -> str:
    """Return a personal desktop in use that cannot be moved while it runs, with a whole copy on b."""
    if not any(template.id == "tpl-own" for template in state.view().templates):
        state.template("own", kind="personal", standby=0)
    made = state.desktop("tpl-own", server, "in_use")
    state.db.execute("update desktops set kind = 'personal' where id = ?", [made])
    state.db.execute("insert into copies values (?, ?, 1, 'ready', 5, 5, 5)", [made, B])
    stick(state, made)
    return made


def leaves(
    state: State, farewells: Farewells, now: float, *, later_ms: int = 0, left: Collection[DesktopId] = ()
) -> list[Tell | End | Leave]:
    given, told = notices(state.db), leaving(state.db)
    return [*farewells.due(state.view(), given, told, now=now, now_ms=state.at + later_ms, left=left)]


def sure(state: State) -> Farewells:
    """Return farewells that have seen who is stuck on a, which drains: at `SURE_S` they are sure."""
    state.do("server.drain", server=A)
    farewells = Farewells()
    farewells.due(state.view(), {}, {}, now=0.0, now_ms=state.at)
    return farewells


def test_a_personal_one_is_told_and_at_its_time_goes_on_from_its_copy(state: State) -> None:
    mine = own(state)
    farewells = sure(state)
    state.do("drain.notice", server=A, minutes=30)
    assert [type(one) for one in leaves(state, farewells, SURE_S)] == [Tell]
    state.do("drain.tell", desktop=mine, generation=1, server=A)
    assert leaves(state, farewells, 30.0, later_ms=29 * MINUTE) == []
    (one,) = leaves(state, farewells, 50.0, later_ms=31 * MINUTE)
    assert isinstance(one, Leave)
    assert (one.desktop.id, one.target, one.left) == (mine, B, False)
    assert leaves(state, farewells, 50.0 + AGAIN_S - 1, later_ms=31 * MINUTE) == [], "not again and again"
    assert len(leaves(state, farewells, 50.0 + AGAIN_S, later_ms=31 * MINUTE)) == 1


def test_one_in_which_nobody_is_logged_on_leaves_without_a_notice_unless_it_is_looked_at(state: State) -> None:
    mine = DesktopId(own(state))
    assert leaves(state, sure(state), SURE_S) == []
    (one,) = leaves(state, sure(state), SURE_S, left={mine})
    assert isinstance(one, Leave)
    assert one.left
    state.do("desktop.connected", desktop=mine, generation=1, server=A)
    assert leaves(state, sure(state), SURE_S, left={mine}) == []


def test_a_personal_one_whose_copy_cannot_be_started_is_neither_told_nor_shut_down(state: State) -> None:
    mine = DesktopId(own(state))
    state.do("server.drain", server=A)
    state.do("drain.notice", server=A, minutes=30)
    state.hear(B, memory_free_mib=500)
    assert leaves(state, sure(state), SURE_S, left={mine}) == []
    state.silence(B)
    assert leaves(state, sure(state), SURE_S, left={mine}) == []


def test_one_whose_machine_its_copys_server_cannot_make_is_neither_told_nor_shut_down(state: State) -> None:
    mine = DesktopId(own(state))
    state.db.execute("update desktops set outfit = ?", [outfit(Policy(machine=Machine(Firmware.UEFI)))])
    state.do("server.drain", server=A)
    state.do("drain.notice", server=A, minutes=30)
    assert leaves(state, sure(state), SURE_S, left={mine}) == []
    state.hear(B, extra={"machines": ["uefi"]})
    assert [type(one) for one in leaves(state, sure(state), SURE_S, left={mine})] == [Leave, Tell]


def test_a_few_leave_at_once_and_no_more_than_there_is_room_for(state: State) -> None:
    all_ = {DesktopId(own(state)) for _ in range(4)}
    assert len(leaves(state, sure(state), SURE_S, left=all_)) == EACH_AT_ONCE
    state.hear(B, memory_mib=4096, memory_free_mib=1400)
    assert len(leaves(state, sure(state), SURE_S, left=all_)) == 1


class Draining(Office):
    """Server a drains with a desktop that cannot go anywhere: b was never heard. Two servers that may lead."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.other = self.member(B)
        first, second = (FarewellAgent(grid, Board(), clock=self.clock) for grid in (self.grid, self.other))
        self.leaders = (first, second)

    async def begin(self) -> None:
        await self.found(standby=0)
        await self.standby("dsk-1")
        done(await self.do("desktop.claim", user="anna", template="tpl"))
        done(await self.do("server.drain", server=A))

    async def pass_(self, seconds: float, *, leader: int = 0) -> int:
        changes = 0
        for _ in range(round(seconds)):
            changes += await self.leaders[leader].run_once()
            await self.clock.advance(1, settle=2)
        return changes

    def left_s(self) -> float | None:
        with self.grid.view() as db:
            found = leaving(db).get(DesktopId("dsk-1"))
        return None if found is None else (found.until - self.clock.now_ms()) / 1000


async def test_the_notice_outlives_whoever_led_when_it_was_given(tmp_path: Path) -> None:
    office = Draining(tmp_path)
    await office.begin()
    assert await office.pass_(30) == 0
    done(await office.do("drain.notice", server=A, minutes=2))
    assert await office.pass_(60) == 1
    assert office.left_s() == pytest.approx(60, abs=3)
    assert await office.pass_(55, leader=1) == 0
    assert office.states()["dsk-1"] == "in_use"
    assert await office.pass_(10, leader=1) == 1
    assert office.states()["dsk-1"] == "retired"


async def test_undrained_in_time_the_desktop_goes_on(tmp_path: Path) -> None:
    office = Draining(tmp_path)
    await office.begin()
    done(await office.do("drain.notice", server=A, minutes=2))
    await office.pass_(60)
    done(await office.do("server.undrain", server=A))
    assert await office.pass_(120) == 0
    assert office.states()["dsk-1"] == "in_use"
