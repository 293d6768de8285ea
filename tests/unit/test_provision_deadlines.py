"""No desktop hangs in a state for ever: past its deadline it is broken, by a step and a cause, and others go on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.grid.queries import events
from kmgr.ids import DesktopId
from kmgr.provision.causes import Trouble
from kmgr.provision.deadlines import PAUSE_MS
from kmgr.provision.lifecycle import DEADLINES, IMAGE_DEADLINE, LIFECYCLE
from kmgr.provision.model import DesktopState as S
from kmgr.settings import SETTINGS
from tests.lab.provision import Desk, done

D1, D2 = DesktopId("d-1"), DesktopId("d-2")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    await desk.found()
    done(await desk.do("setting.set", name="begin_timeout_s", value=60))
    done(await desk.do("setting.set", name="image_timeout_s", value=120))
    done(await desk.do("setting.set", name="build_timeout_s", value=30))
    yield desk
    await desk.agent.stop()
    desk.grid.close()


def test_every_state_that_somebody_waits_for_has_a_deadline_that_the_table_allows() -> None:
    assert set(DEADLINES) == set(S) - {S.READY, S.IN_USE, S.BROKEN}
    for state, rule in [*DEADLINES.items(), (S.PLACED, IMAGE_DEADLINE)]:
        assert rule.setting in SETTINGS
        assert rule.then is None or LIFECYCLE[state][rule.then] is S.BROKEN


async def test_one_that_its_server_cannot_begin_is_broken_with_what_the_hypervisor_said(desk: Desk) -> None:
    desk.hypervisor.down = "libvirt is not answering: Failed to connect socket"
    done(await desk.place(D1))
    await desk.live(58)
    assert desk.one(D1).state is S.PLACED
    await desk.live(6)
    found = desk.one(D1)
    assert (found.state, found.step, found.trouble) == (S.BROKEN, "begin", Trouble.NO_HYPERVISOR)
    assert "within 60 s: libvirt is not answering" in found.cause
    assert desk.agent.vitals()["can_run_desktops"] is False


async def test_one_whose_hypervisor_stopped_during_its_boot_is_broken_after_its_time(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.live(4)
    desk.hypervisor.down = "libvirt hangs: 4 calls are without an answer"
    await desk.live(40)
    found = desk.one(D1)
    assert (found.state, found.step, found.trouble) == (S.BROKEN, "guest", Trouble.NO_HYPERVISOR)


async def test_standbys_and_desktops_in_use_are_never_given_up_for_a_hypervisor_that_is_away(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.live(14)
    done(await desk.do("desktop.claim", user="bea", template="tpl"))
    done(await desk.place(D2))
    await desk.live(14)
    desk.hypervisor.down = "libvirt is not answering"
    await desk.live(400)
    assert desk.states() == {D1: "in_use", D2: "ready"}


async def test_a_daemon_that_is_restarted_begins_to_count_again(desk: Desk) -> None:
    desk.hypervisor.down = "libvirt is not answering"
    done(await desk.place(D1))
    await desk.live(50)
    desk.restarted()
    await desk.live(50)
    assert desk.one(D1).state is S.PLACED, "given up early"
    await desk.live(20)
    assert desk.one(D1).state is S.BROKEN


async def test_who_waits_for_its_turn_is_not_late(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_builds=1)
    await desk.found(maximum=20)
    done(await desk.do("setting.set", name="begin_timeout_s", value=30))
    for number in range(6):
        done(await desk.place(f"d-{number}"))
    await desk.live(80)  # ten seconds each, one after another
    assert set(desk.states().values()) == {"ready"}
    await desk.agent.stop()
    desk.grid.close()


async def test_one_whose_golden_image_never_comes_is_broken_and_says_so(desk: Desk) -> None:
    desk.raw("ver-1").unlink()
    done(await desk.place(D1))
    await desk.live(110)
    assert desk.one(D1).state is S.PLACED
    await desk.live(20)
    found = desk.one(D1)
    assert (found.state, found.step, found.trouble) == (S.BROKEN, "golden image", Trouble.NO_IMAGE)


async def test_a_fault_of_the_server_stops_no_template_and_pauses_that_server(desk: Desk) -> None:
    desk.hypervisor.fail["start"] = "Cannot get interface MTU on 'br9': No such device"
    for number in range(4):
        done(await desk.place(f"d-{number}"))
    await desk.live(10)
    assert set(desk.states().values()) == {"broken"}
    with desk.grid.view() as db:
        assert not [event for event in events(db, limit=100) if event.kind == "alarm"]
    vitals = desk.agent.vitals()
    assert vitals["can_run_desktops"] is False
    assert "network" in vitals["problems"][0]
    desk.hypervisor.fail.clear()
    for number in range(4):
        done(await desk.do("desktop.retry", desktop=f"d-{number}"))
    await desk.live(60)
    assert set(desk.states().values()) == {"ready"}
    assert desk.agent.vitals()["can_run_desktops"] is True


async def test_the_pause_ends_by_itself(desk: Desk) -> None:
    desk.hypervisor.fail["start"] = "Cannot allocate memory"
    done(await desk.place(D1))
    await desk.live(4)
    assert desk.one(D1).trouble is Trouble.NO_MEMORY
    assert not desk.agent.can_run()
    await desk.live(PAUSE_MS / 1000 + 2)
    assert desk.agent.can_run()


async def test_a_desktop_that_cannot_be_removed_is_told_and_never_forgotten(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.live(14)
    done(await desk.do("desktop.retire", desktop=D1, why="test"))
    folder = desk.folder / "desktops"
    desk.overlay(D1).unlink()
    desk.overlay(D1).mkdir()  # a disk that cannot be unlinked
    await desk.live(80)
    assert desk.one(D1).state is S.RETIRED
    (problem,) = desk.agent.vitals()["problems"]
    assert "could not be removed" in problem
    assert "Is a directory" in problem
    (folder / "d-1.qcow2").rmdir()
    await desk.live(6)
    assert desk.desktop(D1) is None
    assert desk.agent.vitals()["problems"] == []
