"""Standbys after a reboot or a power cut of their server: ready is who answers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.grid.envelope import Applied, Rejected
from kmgr.ids import DesktopId
from kmgr.provision.model import DesktopState as S
from kmgr.provision.reconcile import BootAgain, Restart
from tests.lab.provision import Desk, done, settle

D1 = DesktopId("d-1")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    await desk.found()
    yield desk
    await desk.agent.stop()
    desk.grid.close()


async def standbys(desk: Desk, *names: str) -> None:
    for name in names:
        done(await desk.place(name))
    await desk.live(14 * len(names))
    assert set(desk.states().values()) == {"ready"}


async def test_standbys_are_ready_after_a_power_cut_only_when_their_guests_answer_again(desk: Desk) -> None:
    await standbys(desk, "d-1", "d-2")
    desk.overlay("d-1").write_bytes(b"as it was")
    await desk.agent.stop()
    desk.hypervisor.power_cut()
    desk.restarted()
    assert [type(action) for action in await desk.round()] == [BootAgain, BootAgain]
    # Both at once, though they boot one after the other: nobody is given one that is off or boots.
    assert desk.states() == {"d-1": "building", "d-2": "building"}
    assert isinstance(await desk.do("desktop.claim", user="bea", template="tpl"), Rejected)
    await desk.live(8)
    assert desk.states() == {"d-1": "building", "d-2": "building"}
    await desk.live(16)
    assert desk.states() == {"d-1": "ready", "d-2": "ready"}
    assert desk.overlay("d-1").read_bytes() == b"as it was"
    assert await desk.round() == ()


async def test_a_standby_that_was_claimed_before_it_was_found_off_stays_its_users(desk: Desk) -> None:
    await standbys(desk, "d-1")
    await desk.agent.stop()
    desk.hypervisor.power_cut()
    agent = desk.restarted()
    begun = await agent.run_once()
    done(await desk.do("desktop.claim", user="bea", template="tpl"))
    await settle()
    assert [type(action) for action in begun] == [BootAgain]
    assert [type(action) for action in await desk.round()] == [Restart]
    assert (desk.one(D1).state, desk.one(D1).user) == (S.IN_USE, "bea")


async def test_standbys_that_do_not_come_back_are_broken_and_say_nothing_about_their_template(desk: Desk) -> None:
    done(await desk.do("setting.set", name="build_timeout_s", value=30))
    done(await desk.do("setting.set", name="build_failures", value=1))
    await standbys(desk, "d-1")
    desk.hypervisor.fail["boot"] = "never"
    desk.hypervisor.power_cut()
    await desk.live(40)
    assert (desk.one(D1).state, desk.one(D1).step) == (S.BROKEN, "guest")
    assert isinstance(await desk.place("d-2"), Applied)  # the template is refilled all the same


async def test_a_standby_that_goes_off_three_times_in_five_minutes_is_broken(desk: Desk) -> None:
    await standbys(desk, "d-1")
    for _ in range(3):
        assert desk.one(D1).state is S.READY
        desk.hypervisor.power_off(D1)
        await desk.live(20)
    found = desk.one(D1)
    assert (found.state, found.step) == (S.BROKEN, "run")
    assert "3 times within 5 minutes" in found.cause
