"""Events wake the agent and are never trusted alone: lost, doubled or in a flood, they change nothing that counts."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId
from kmgr.provision.agent import CALM_S, PERIOD_S
from kmgr.provision.causes import Trouble
from kmgr.provision.fake_events import FakeEvents
from kmgr.provision.happening import What
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.listening import AGAIN_S, GAP_S, MOST_ANSWERS, MOST_REBOOTS
from kmgr.provision.model import DesktopState as S
from tests.lab.provision import Desk, done, settle

D1 = DesktopId("d-1")


class Listening:
    """A desk whose agent's loop runs and hears events; `looks` counts how often the hypervisor was asked."""

    def __init__(self, folder: Path) -> None:
        self.events = FakeEvents()
        self.desk = Desk(folder, events=self.events)
        self.looks = 0
        ask = self.desk.hypervisor.domains

        async def counted() -> object:
            self.looks += 1
            return await ask()

        self.desk.hypervisor.domains = counted  # type: ignore[assignment]
        self.task: asyncio.Task[None] | None = None

    async def pass_time(self, seconds: float) -> int:
        """Let time pass in small steps; returns how often was looked meanwhile."""
        before = self.looks
        for _ in range(round(seconds * 2)):
            await self.desk.clock.advance(0.5)
            await settle()
        return self.looks - before


@pytest.fixture
async def ear(tmp_path: Path) -> AsyncIterator[Listening]:
    made = Listening(tmp_path)
    await made.desk.found()
    made.task = asyncio.create_task(made.desk.agent.run())
    await settle()
    yield made
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)
    made.desk.grid.close()


async def standby(ear: Listening) -> None:
    done(await ear.desk.place(D1))
    await ear.pass_time(16)
    assert ear.desk.one(D1).state is S.READY


async def test_while_all_is_calm_and_events_flow_it_looks_every_half_minute(ear: Listening) -> None:
    await standby(ear)
    assert await ear.pass_time(10 * CALM_S) in (9, 10, 11)


async def test_without_events_it_looks_as_often_as_ever(ear: Listening) -> None:
    await standby(ear)
    ear.events.down = "libvirt is not answering"
    ear.events.break_off()
    await ear.pass_time(2)
    assert await ear.pass_time(60) >= 60 / PERIOD_S - 2
    ear.events.down = ""
    await ear.pass_time(AGAIN_S + 1)
    assert ear.events.connections == 2
    assert await ear.pass_time(60) <= 3, "it is calm again once events flow"


async def test_what_happens_to_a_domain_is_seen_at_once(ear: Listening) -> None:
    await standby(ear)
    done(await ear.desk.do("desktop.claim", user="bea", template="tpl"))
    await ear.pass_time(4)
    ear.desk.hypervisor.power_off(D1)
    ear.events.tell(What.CHANGED, D1)
    await ear.pass_time(1)
    (status,) = await ear.desk.hypervisor.domains()
    assert status.state is DomainState.RUNNING, "it was powered on again"


async def test_a_lost_event_costs_half_a_minute_and_nothing_else(ear: Listening) -> None:
    await standby(ear)
    done(await ear.desk.do("desktop.claim", user="bea", template="tpl"))
    await ear.pass_time(4)
    ear.desk.hypervisor.power_off(D1)
    await ear.pass_time(CALM_S + 2)
    (status,) = await ear.desk.hypervisor.domains()
    assert status.state is DomainState.RUNNING


async def test_a_flood_of_events_is_no_flood_of_looks(ear: Listening) -> None:
    await standby(ear)
    before = ear.looks
    for _ in range(200):
        for _ in range(20):
            ear.events.tell(What.CHANGED, D1)
        await ear.pass_time(0.5)
    assert ear.looks - before <= 100 / GAP_S + 2


async def test_while_something_is_not_as_it_should_be_it_looks_often(ear: Listening) -> None:
    ear.desk.raw("ver-1").unlink()
    done(await ear.desk.place(D1))  # it waits for its golden image, of which no event tells
    await ear.pass_time(4)
    assert await ear.pass_time(20) >= 8


async def test_a_standby_that_reboots_again_and_again_is_broken_and_halted(ear: Listening) -> None:
    await standby(ear)
    for _ in range(MOST_REBOOTS - 1):
        ear.events.tell(What.REBOOTED, D1)
        await ear.pass_time(2)
    assert ear.desk.one(D1).state is S.READY, "updates reboot as well"
    ear.events.tell(What.REBOOTED, D1)
    await ear.pass_time(4)
    found = ear.desk.one(D1)
    assert (found.state, found.step, found.trouble) == (S.BROKEN, "run", Trouble.REBOOTS)
    (status,) = await ear.desk.hypervisor.domains()
    assert status.state is DomainState.PAUSED, "it takes nothing from the others"
    assert ear.desk.agent.problems() == (), "and is no sign of a full disk"


async def test_what_the_firmware_resets_once_more_is_no_further_reboot(ear: Listening) -> None:
    await standby(ear)
    for _ in range(MOST_REBOOTS - 1):
        for _ in range(3):
            ear.events.tell(What.REBOOTED, D1)
        await ear.pass_time(2)
    assert ear.desk.one(D1).state is S.READY


async def test_one_that_reboots_instead_of_answering_is_not_waited_for(ear: Listening) -> None:
    done(await ear.desk.do("setting.set", name="build_timeout_s", value=3_600))
    ear.desk.hypervisor.fail["boot"] = "never"
    done(await ear.desk.place(D1))
    await ear.pass_time(4)
    for _ in range(MOST_REBOOTS):
        ear.events.tell(What.REBOOTED, D1)
        await ear.pass_time(2)
    await ear.pass_time(4)
    found = ear.desk.one(D1)
    assert (found.state, found.step, found.trouble) == (S.BROKEN, "guest", Trouble.REBOOTS)
    ear.desk.hypervisor.fail.clear()
    done(await ear.desk.do("desktop.retry", desktop=D1))
    await ear.pass_time(20)
    assert ear.desk.one(D1).state is S.READY, "a retry begins to count anew"


@pytest.mark.parametrize("used", [False, True])
async def test_an_agent_that_floods_breaks_a_standby_and_leaves_a_user_alone(ear: Listening, used: bool) -> None:
    await standby(ear)
    if used:
        done(await ear.desk.do("desktop.claim", user="bea", template="tpl"))
    for _ in range(MOST_ANSWERS):
        ear.events.tell(What.ANSWERS, D1)
        await ear.pass_time(1)
    found = ear.desk.one(D1)
    if used:
        assert found.state is S.IN_USE, "whoever works on it needs no agent"
    else:
        assert (found.state, found.trouble) == (S.BROKEN, Trouble.AGENT_FLOODS)


async def test_one_whose_agent_floods_instead_of_answering_is_broken_by_that_name(ear: Listening) -> None:
    done(await ear.desk.do("setting.set", name="build_timeout_s", value=30))
    ear.desk.hypervisor.fail["boot"] = "never"

    async def floods(*_: object) -> Mapping[str, Any]:
        raise Unavailable("the guest agent sends more than it was asked for: no response in 10485760 bytes")

    ear.desk.hypervisor.agent = floods  # type: ignore[assignment]
    done(await ear.desk.place(D1))
    await ear.pass_time(36)
    found = ear.desk.one(D1)
    assert (found.state, found.step, found.trouble) == (S.BROKEN, "guest", Trouble.AGENT_FLOODS)
    assert "within 30 s" in found.cause
    assert "10485760 bytes" in found.cause


async def test_one_that_a_full_disk_halts_at_once_goes_on_soon_after_there_is_room(ear: Listening) -> None:
    await standby(ear)
    done(await ear.desk.do("desktop.claim", user="bea", template="tpl"))
    await ear.pass_time(4)
    hypervisor, tries = ear.desk.hypervisor, 0
    start = hypervisor.start

    async def halted_again(desktop: DesktopId) -> None:
        nonlocal tries
        tries += 1
        await start(desktop)
        hypervisor.halt(desktop)
        ear.events.tell(What.CHANGED, desktop)

    hypervisor.start = halted_again  # type: ignore[method-assign]
    hypervisor.halt(D1)
    ear.events.tell(What.CHANGED, D1)
    await ear.pass_time(20)
    assert 5 <= tries <= 20 / GAP_S + 2, "again and again, but in no storm"
    assert "halted again and again" in ear.desk.agent.problems()[0]
    hypervisor.start = start  # type: ignore[method-assign]
    await ear.pass_time(4)
    (status,) = await hypervisor.domains()
    assert status.state is DomainState.RUNNING
    assert ear.desk.one(D1).state is S.IN_USE
    await ear.pass_time(4)
    assert ear.desk.agent.problems() == ()


async def test_reboots_long_ago_are_forgotten(ear: Listening) -> None:
    await standby(ear)
    for _ in range(3 * MOST_REBOOTS):
        ear.events.tell(What.REBOOTED, D1)
        await ear.pass_time(70)
    assert ear.desk.one(D1).state is S.READY
