"""Who looks at a server's desktops: what the log hears of it, who is warned, and whose screen is closed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.errors import NotFound, Unavailable
from kmgr.grid.envelope import Outcome
from kmgr.grid.local import LocalNetwork
from kmgr.ids import AccountName, DesktopId
from kmgr.provision.attendance import ATTENTION, MESSAGE, Attendance
from kmgr.provision.idle import SETTLE_S, Idleness, judge
from kmgr.provision.model import Desktop, DesktopState
from kmgr.templates.policy import Policy
from tests.lab.provision import A, B, Office, done
from tests.unit.test_provision_rfb_input import ASK, HANDSHAKE, KEY

D1 = DesktopId("dsk-1")
RULE = {"idle_s": 600, "idle_warning_s": 60}


class Watched(Office):
    """Server a with a desktop that anna uses, and its attendance."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.told: list[tuple[str, str]] = []
        self.refuses = False
        self.attendance = Attendance(self.grid, clock=self.clock, tell=self.tell)
        network = LocalNetwork()
        self.attendance.serve(network.port(A))
        self.far = network.port(B)

    async def begin(self, **policy: Any) -> None:
        await self.found(policy=policy)
        await self.standby(D1)
        done(await self.do("desktop.claim", user="anna", template="tpl"))

    async def tell(self, desktop: Desktop, text: str) -> None:
        if self.refuses:
            raise Unavailable("the guest agent does not answer")
        self.told.append((desktop.name, text))

    async def pass_(self, seconds: float) -> None:
        """Let time pass as the loop sees it: a look each second."""
        for _ in range(round(seconds)):
            await self.attendance.run_once()
            await self.clock.advance(1, settle=2)
        await self.attendance.run_once()

    async def asked(self, **more: Any) -> dict[str, Any]:
        return dict(await self.far.call(A, ATTENTION, {"desktop": D1, "user": "anna", **more}))

    @property
    def entries(self) -> int:
        return self.grid.status().applied


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Watched]:
    office = Watched(tmp_path)
    yield office
    office.grid.close()


async def test_the_log_hears_of_an_opening_at_once_and_of_a_closing_when_it_lasted(office: Watched) -> None:
    await office.begin()
    with office.attendance.open(D1):
        await office.pass_(1)
        assert office.one(D1).is_open
    await office.pass_(SETTLE_S - 2)
    assert office.one(D1).is_open
    await office.pass_(3)
    assert not office.one(D1).is_open
    assert office.one(D1).disconnected_at is not None


async def test_a_page_that_is_loaded_anew_is_no_news(office: Watched) -> None:
    await office.begin()
    with office.attendance.open(D1):
        await office.pass_(1)
    before = office.entries
    for _ in range(5):
        await office.pass_(3)
        with office.attendance.open(D1):
            await office.pass_(1)
    assert office.entries == before


async def test_two_screens_of_one_desktop_are_one_fact(office: Watched) -> None:
    await office.begin()
    with office.attendance.open(D1):
        with office.attendance.open(D1):
            await office.pass_(1)
        await office.pass_(2 * SETTLE_S)
        assert office.one(D1).is_open
        assert office.attendance.watched() == {D1}


async def test_who_looked_before_this_server_was_restarted_is_waited_for_and_then_gone(office: Watched) -> None:
    await office.begin()
    with office.attendance.open(D1):
        await office.pass_(1)
        office.attendance = Attendance(office.grid, clock=office.clock)
        await office.pass_(SETTLE_S - 2)
        assert office.one(D1).is_open
        await office.pass_(3)
        assert not office.one(D1).is_open


async def test_a_standby_that_an_administrator_looks_at_is_nobodys(office: Watched) -> None:
    await office.found(policy=RULE)
    await office.standby(D1)
    before = office.entries
    with office.attendance.open(D1) as viewer:
        await office.pass_(700)
        assert not viewer.cut.is_set()
    assert office.entries == before


async def test_who_edits_a_version_is_not_hurried(office: Watched) -> None:
    await office.begin(**RULE, idle_then="log_out")
    office.grid.store.writer.execute("update desktops set purpose = 'edit'")
    with office.attendance.open(D1) as viewer:
        await office.pass_(601)
        assert not viewer.cut.is_set()


async def test_without_a_rule_nobody_is_ever_idle(office: Watched) -> None:
    await office.begin()
    with office.attendance.open(D1) as viewer:
        await office.pass_(2000)
        assert not viewer.cut.is_set()
        assert (await office.asked())["idleness"] == Idleness.NO_RULE


async def test_who_does_nothing_is_warned_once_and_then_the_screen_is_closed(office: Watched) -> None:
    await office.begin(**RULE)
    with office.attendance.open(D1) as viewer:
        await office.pass_(500)
        active = {"idleness": "active", "left_s": 100, "again_s": 40, "then": "disconnect", "message": ""}
        assert await office.asked() == active
        assert office.told == []
        await office.pass_(50)
        assert (await office.asked())["idleness"] == "warned"
        assert len(office.told) == 1
        assert "closed in 60 seconds" in office.told[0][1]
        assert not viewer.cut.is_set()
        await office.pass_(51)
        assert viewer.cut.is_set()
    assert (await office.asked())["idleness"] == "closed"
    assert office.one(D1).state is DesktopState.IN_USE
    with office.attendance.open(D1):
        assert (await office.asked())["idleness"] == "active"


@pytest.mark.parametrize("by", ["key", "button"])
async def test_a_key_or_the_button_begins_the_time_anew(office: Watched, by: str) -> None:
    await office.begin(**RULE)
    with office.attendance.open(D1) as viewer:
        office.attendance.heard(D1, viewer, HANDSHAKE)
        await office.pass_(580)
        office.attendance.heard(D1, viewer, ASK)
        assert (await office.asked())["idleness"] == "warned"
        if by == "key":
            office.attendance.heard(D1, viewer, KEY)
        else:
            await office.asked(extend=True)
        assert (await office.asked())["left_s"] == 600
        await office.pass_(599)
        assert not viewer.cut.is_set()
        assert len(office.told) == 2


async def test_where_idling_is_logging_out_the_desktop_is_given_back(office: Watched) -> None:
    await office.begin(**RULE, idle_then="log_out")
    with office.attendance.open(D1) as viewer:
        await office.pass_(601)
        assert viewer.cut.is_set()
    assert office.one(D1).state is DesktopState.RETIRED


async def test_a_guest_that_cannot_be_told_stops_nothing(office: Watched) -> None:
    await office.begin(**RULE)
    office.refuses = True
    with office.attendance.open(D1) as viewer:
        await office.pass_(601)
        assert viewer.cut.is_set()


async def test_without_a_majority_screens_open_and_close_and_the_log_hears_of_it_later(office: Watched) -> None:
    await office.begin(**RULE, idle_then="log_out")
    office.log.cut_off.add(A)
    with office.attendance.open(D1) as viewer:
        await office.pass_(601)
        assert viewer.cut.is_set()
    assert (await office.asked())["idleness"] == "closed"
    assert not office.one(D1).is_open
    with office.attendance.open(D1):
        office.log.cut_off.clear()
        await office.pass_(1)
        assert office.one(D1).is_open


async def test_on_an_island_an_idle_screen_is_closed_without_waiting_for_a_majority(
    office: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    await office.begin(**RULE, idle_then="log_out")
    status = office.grid.status()

    async def waits(*_: Any, **__: Any) -> Outcome:
        raise AssertionError("nothing is asked for that an island would refuse, perhaps after some seconds")

    monkeypatch.setattr(office.grid, "status", lambda: replace(status, island=True))
    monkeypatch.setattr(office.grid, "propose", waits)
    with office.attendance.open(D1) as viewer:
        await office.pass_(601)
        assert viewer.cut.is_set()
    assert office.one(D1).state is DesktopState.IN_USE


async def test_others_are_not_told_about_a_desktop(office: Watched) -> None:
    await office.begin(**RULE)
    with pytest.raises(NotFound):
        await office.asked(user=AccountName("berta"))
    with pytest.raises(NotFound):
        await office.asked(desktop="dsk-none")


@given(idle=st.floats(0, 5000), limit=st.integers(60, 4000), warning=st.integers(10, 59))
def test_nobody_is_closed_out_unwarned_or_early(idle: float, limit: int, warning: int) -> None:
    verdict = judge(Policy(idle_s=limit, idle_warning_s=warning), idle)
    assert (verdict.idleness is Idleness.OVER) == (idle >= limit)
    assert (verdict.idleness is Idleness.WARNED) == (limit - warning <= idle < limit)
    if verdict.idleness is Idleness.ACTIVE:
        later = judge(Policy(idle_s=limit, idle_warning_s=warning), idle + verdict.again_s + 0.001)
        assert later.idleness is Idleness.WARNED


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_message_is_shown_in_the_guest_if_it_can_and_kept_for_a_page_that_asks(
    office: Watched, refuses: bool
) -> None:
    await office.begin()
    office.refuses = refuses
    body = {"desktop": D1, "user": "anna", "text": "The printer is back."}
    told = await office.far.call(A, MESSAGE, body)
    assert told["why_not_in_guest"] == ("the guest agent does not answer" if refuses else "")
    assert told["page"] is False
    assert [text for _, text in office.told] == ([] if refuses else ["The printer is back."])
    assert (await office.asked())["message"] == "The printer is back."
    with pytest.raises(NotFound):
        await office.far.call(A, MESSAGE, {**body, "user": "bea"})


async def test_whoever_gets_the_desktop_next_does_not_read_the_message(office: Watched) -> None:
    await office.begin()
    await office.far.call(A, MESSAGE, {"desktop": D1, "user": "anna", "text": "For anna."})
    office.attendance._messages[D1] = (office.clock.monotonic(), "bea", "For bea.")
    assert (await office.asked())["message"] == ""
