"""Desktops that users left: kept for them, found again elsewhere, and taken back when their time is over."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.errors import NotAllowed
from kmgr.ids import AccountName, DesktopId, ServerId, TemplateId, VersionId
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.queries import desktop as find_desktop
from kmgr.templates.model import Kind
from kmgr.templates.policy import Day, Policy, Refresh, Schedule
from kmgr.users.broker import Broker, Ready
from kmgr.users.model import Role
from kmgr.users.over import LEAST_S, Left, Over, absences, left, over
from kmgr.users.over_agent import TakingBack
from tests.lab.people import SERVERS, Office, a_person

KEPT = {"keep_s": 600}


class House:
    """An office whose template has a policy; anna has a desktop of it."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self.clock = office.clock
        self.duty = TakingBack(office.grid, clock=office.clock)
        self.id = ""

    async def begin(self, **policy: Any) -> None:
        await self.office.template("lab", policy=policy)
        await self.office.give("anna", template="tpl-lab")
        self.id = await self.office.standby("tpl-lab")
        await self.office.do("desktop.claim", user="anna", template="tpl-lab")

    async def screen(self, what: str) -> None:
        await self.office.do(f"desktop.{what}", desktop=self.id, generation=1, server=SERVERS[0])

    async def pass_(self, seconds: float) -> list[Over]:
        """Let time pass with a look every five seconds; returns what was taken back."""
        found = list(await self.duty.run_once())
        for _ in range(round(seconds / 5)):
            await self.clock.advance(5, settle=1)
            found += await self.duty.run_once()
        return found

    @property
    def state(self) -> DesktopState:
        with self.office.grid.view() as db:
            found = find_desktop(db, DesktopId(self.id))
        assert found is not None
        return found.state


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    office = Office(tmp_path)
    await office.open()
    yield House(office)
    office.close()


async def test_a_desktop_is_kept_for_so_long_and_then_taken_back(house: House) -> None:
    await house.begin(**KEPT)
    await house.screen("connected")
    assert await house.pass_(700) == []
    await house.screen("disconnected")
    assert await house.pass_(595) == []
    [taken] = await house.pass_(10)
    assert "nobody came back to it for 10 minutes" in taken.why
    assert house.state is DesktopState.RETIRED


async def test_who_logs_in_elsewhere_in_time_finds_the_same_desktop_and_a_whole_new_time(house: House) -> None:
    await house.begin(**KEPT)
    await house.screen("connected")
    await house.screen("disconnected")
    await house.pass_(500)
    elsewhere = Broker(house.office.grids[1], clock=house.clock)
    answer = await elsewhere.open(a_person("anna"), "lab")
    assert isinstance(answer, Ready)
    assert (answer.desktop.id, answer.new) == (house.id, False)
    assert await house.pass_(595) == []
    assert len(await house.pass_(10)) == 1


async def test_without_a_limit_it_is_kept_as_long_as_its_user_is_logged_in(house: House) -> None:
    await house.begin()
    await house.screen("connected")
    await house.screen("disconnected")
    assert await house.pass_(3000) == []


async def test_what_was_never_opened_is_taken_back_too_but_not_at_once(house: House) -> None:
    await house.begin(keep_s=0)
    assert await house.pass_(LEAST_S - 5) == []
    assert len(await house.pass_(10)) == 1


async def test_a_new_leader_begins_to_count_anew(house: House) -> None:
    await house.begin(**KEPT)
    await house.screen("connected")
    await house.screen("disconnected")
    await house.pass_(595)
    house.duty = TakingBack(house.office.grids[1], clock=house.clock)
    assert await house.pass_(595) == []
    assert len(await house.pass_(10)) == 1


async def test_a_desktop_of_a_server_that_cannot_be_asked_is_nobodys_to_take(house: House) -> None:
    await house.begin(**KEPT)
    await house.office.do("server.lost", server=SERVERS[0])
    assert await house.pass_(700) == []


async def test_a_schedule_takes_what_was_claimed_before_and_not_what_is_open(house: House) -> None:
    hour = datetime.fromtimestamp(house.clock.now_ms() / 1000, UTC).hour
    await house.begin(refresh="schedule", schedule={"days": [*Day], "at": f"{(hour + 1) % 24:02}:00"})
    await house.screen("connected")
    assert await house.pass_(3700) == []
    await house.screen("disconnected")
    assert await house.pass_(LEAST_S - 5) == []
    [taken] = await house.pass_(10)
    assert "schedule" in taken.why


async def test_a_schedule_leaves_what_was_claimed_after_it(house: House) -> None:
    hour = datetime.fromtimestamp(house.clock.now_ms() / 1000, UTC).hour
    await house.begin(refresh="schedule", schedule={"days": [*Day], "at": f"{hour:02}:00"})
    assert await house.pass_(300) == []


async def test_what_is_never_made_anew_is_not_given_back_but_by_an_administrator(house: House) -> None:
    await house.begin(refresh="never")
    broker = Broker(house.office.grid, clock=house.clock)
    with pytest.raises(NotAllowed, match="kept for you"):
        await broker.release(a_person("anna"), DesktopId(house.id))
    kept = house.state
    assert kept is DesktopState.IN_USE
    await broker.release(a_person("root", role=Role.ADMIN), DesktopId(house.id))
    assert house.state is DesktopState.RETIRED


# The decision alone

ages = st.floats(0, 100_000)
policies = st.sampled_from(
    [
        Policy(),
        Policy(keep_s=0),
        Policy(keep_s=900),
        Policy(refresh=Refresh.MANUAL),
        Policy(refresh=Refresh.NEVER),
        Policy(refresh=Refresh.SCHEDULE, schedule=Schedule()),
    ]
)


def a_desktop(**changed: Any) -> Desktop:
    values: dict[str, Any] = {
        "id": DesktopId("dsk-1"), "name": "lab-1", "template": TemplateId("tpl-lab"), "version": VersionId("ver-1"),
        "server": ServerId("srv-a"), "state": DesktopState.IN_USE, "generation": 1, "vcpus": 1, "memory_mib": 512,
        "user": AccountName("anna"), "claimed_at": 1_000, "step": "", "cause": "", "created_at": 0, "changed_at": 0,
        "ready_at": 0, "connected_at": 2_000, "disconnected_at": 3_000,
    }  # fmt: skip
    return Desktop(**{**values, **changed})


@given(
    policy=policies,
    age=ages,
    state=st.sampled_from(DesktopState),
    kind=st.sampled_from(Kind),
    is_open=st.booleans(),
    runs=st.booleans(),
)
def test_nothing_is_taken_from_who_is_there_or_keeps_it(
    policy: Policy, age: float, state: DesktopState, kind: Kind, is_open: bool, runs: bool
) -> None:
    desktop = a_desktop(state=state, kind=kind, disconnected_at=None if is_open else 3_000)
    since: dict[Left, float] = {left(desktop): 0.0}
    at = datetime(2026, 11, 26, 12, tzinfo=UTC)
    absent = tuple(absences([desktop], [ServerId("srv-a")] if runs else []))
    found = list(over(absent, {desktop.template: policy}, since=since, now=age, at=at))
    may = state is DesktopState.IN_USE and kind is Kind.POOLED and not is_open and runs and age >= LEAST_S
    due = policy.refresh is Refresh.SCHEDULE or (policy.keep_s is not None and age >= policy.keep_s)
    assert bool(found) == (may and due)
