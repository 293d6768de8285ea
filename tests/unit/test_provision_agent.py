"""Rounds of the agent: from a placed desktop to a ready one, and back from every mishap."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.errors import Unavailable
from kmgr.grid.queries import events
from kmgr.ids import DesktopId
from kmgr.provision.hypervisor import DomainSpec, DomainState, DomainStatus
from kmgr.provision.model import DesktopState as S
from kmgr.provision.reconcile import BootAgain, Build, Remove, RemoveStray, Restart
from tests.lab.provision import A, B, Desk, done, settle

D1 = DesktopId("d-1")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    await desk.found()
    yield desk
    await desk.agent.stop()
    desk.grid.close()


async def in_use(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.live(14)
    assert done(await desk.do("desktop.claim", user="bea", template="tpl"))["desktop"] == D1


async def running(desk: Desk) -> list[DomainStatus]:
    return list(await desk.hypervisor.domains())


async def test_a_placed_desktop_becomes_ready_once_its_guest_answers(desk: Desk) -> None:
    done(await desk.place(D1))
    begun = await desk.round()
    assert [type(action) for action in begun] == [Build]
    assert desk.one(D1).state is S.BUILDING
    assert desk.overlay(D1).exists()
    assert await running(desk) == [DomainStatus(D1, 1, DomainState.RUNNING)]
    await desk.live(8)
    assert desk.one(D1).state is S.BUILDING
    await desk.live(4)
    assert desk.one(D1).state is S.READY
    assert await desk.round() == ()


async def test_the_domain_is_made_to_the_templates_measure(desk: Desk) -> None:
    done(await desk.do("template.update", template="tpl", vcpus=3, memory_mib=512))
    done(await desk.place(D1))
    await desk.round()
    assert desk.hypervisor.spec(D1) == DomainSpec(
        desktop=D1,
        generation=1,
        name="office-1",
        grid="grid-1",
        template="office",
        vcpus=3,
        memory_mib=512,
        disk=str(desk.overlay(D1)),
        display=str(desk.folder / "run" / "d-1.vnc"),
        log=str(desk.folder / "desktops" / "d-1.log"),
        accelerator="tcg",
        network="user",
    )


@pytest.mark.parametrize(("step", "where"), [("define", "domain"), ("start", "start")])
async def test_a_step_that_is_refused_breaks_the_desktop_with_step_and_cause(
    desk: Desk, step: str, where: str
) -> None:
    desk.hypervisor.fail[step] = "no memory left"
    done(await desk.place(D1))
    await desk.round()
    found = desk.one(D1)
    assert (found.state, found.step, found.cause) == (S.BROKEN, where, "no memory left")


async def test_a_disk_that_refuses_breaks_the_desktop_with_its_words(desk: Desk) -> None:
    (desk.folder / "desktops").rename(desk.folder / "elsewhere")
    (desk.folder / "desktops").mkdir()
    desk.overlay(D1).with_suffix(".new").mkdir()
    done(await desk.place(D1))
    await desk.round()
    found = desk.one(D1)
    assert (found.state, found.step) == (S.BROKEN, "linked clone")
    assert "Is a directory" in found.cause


async def test_a_guest_that_never_answers_breaks_the_desktop_after_the_agreed_time(desk: Desk) -> None:
    done(await desk.do("setting.set", name="build_timeout_s", value=30))
    desk.hypervisor.fail["boot"] = "never"
    done(await desk.place(D1))
    await desk.live(28)
    assert desk.one(D1).state is S.BUILDING
    await desk.live(6)
    found = desk.one(D1)
    assert (found.state, found.step) == (S.BROKEN, "guest")
    assert "within 30 s" in found.cause
    assert "guest agent" in found.cause


async def test_a_guest_that_goes_off_while_it_boots_breaks_the_desktop_at_once(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.round()
    desk.hypervisor.power_off(D1)
    await desk.live(4)
    found = desk.one(D1)
    assert (found.state, found.step) == (S.BROKEN, "guest")
    assert "went off before it answered" in found.cause


async def test_a_disk_that_lies_there_without_a_domain_is_not_trusted(desk: Desk) -> None:
    desk.overlay(D1).write_bytes(b"half of something")
    done(await desk.place(D1))
    await desk.live(14)
    assert desk.one(D1).state is S.READY
    assert desk.overlay(D1).read_bytes()[:4] == b"QFI\xfb"


async def test_one_whose_job_ends_during_a_look_is_judged_by_the_next_round(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.live(8)
    domains = desk.hypervisor.domains

    async def slowly() -> Any:
        desk.hypervisor.domains = domains  # type: ignore[method-assign]
        found = await domains()
        await desk.clock.advance(6, settle=60)  # the guest answers, its job ends
        return found

    desk.hypervisor.domains = slowly  # type: ignore[method-assign]
    assert await desk.agent.run_once() == ()
    assert desk.one(D1).state is S.READY


async def test_three_failures_stop_the_template(desk: Desk) -> None:
    desk.hypervisor.fail["start"] = "no memory left"
    for number in range(3):
        done(await desk.place(f"d-{number}"))
    await desk.live(6)
    with desk.grid.view() as db:
        assert any(event.kind == "alarm" and "no memory left" in event.text for event in events(db, limit=100))


async def test_a_desktop_waits_for_its_image_and_does_not_hold_up_others(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.version("ver-2")
    done(await desk.do("template.publish", template="tpl", version="ver-2"))
    done(await desk.place("d-2", version="ver-2"))
    gone = desk.raw("ver-1").rename(desk.folder / "away")
    await desk.round()
    assert "golden image" in desk.agent.waiting(D1)
    assert desk.states() == {D1: "placed", "d-2": "building"}
    gone.rename(desk.raw("ver-1"))
    await desk.round()
    assert "its turn" in desk.agent.waiting(D1)
    await desk.live(26)
    assert desk.states() == {D1: "ready", "d-2": "ready"}
    assert desk.agent.waiting(D1) == ""


async def test_no_more_desktops_are_built_at_once_than_allowed(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_builds=2)
    await desk.found()
    for number in range(4):
        done(await desk.place(f"d-{number}"))
    await desk.live(6)
    assert len(await running(desk)) == 2
    await desk.live(30)
    assert set(desk.states().values()) == {"ready"}
    await desk.agent.stop()
    desk.grid.close()


async def test_everything_runs_again_after_a_power_cut_on_the_same_disks(desk: Desk) -> None:
    await in_use(desk)
    desk.overlay(D1).write_bytes(b"work of weeks")
    for _ in range(5):  # five power cuts in a row are not the desktop's fault
        await desk.agent.stop()
        desk.hypervisor.power_cut()
        desk.restarted()
        assert [type(action) for action in await desk.round()] == [Restart]
        assert await running(desk) == [DomainStatus(D1, 1, DomainState.RUNNING)]
    assert desk.overlay(D1).read_bytes() == b"work of weeks"
    assert desk.one(D1).user == "bea"


async def test_a_desktop_that_its_user_shut_down_is_powered_on_again(desk: Desk) -> None:
    await in_use(desk)
    await desk.live(2)
    desk.hypervisor.power_off(D1)
    assert [type(action) for action in await desk.round()] == [Restart]
    assert await running(desk) == [DomainStatus(D1, 1, DomainState.RUNNING)]


async def test_one_that_goes_off_three_times_in_five_minutes_is_broken(desk: Desk) -> None:
    await in_use(desk)
    for _ in range(3):
        assert desk.one(D1).state is S.IN_USE
        await desk.live(20)
        desk.hypervisor.power_off(D1)
        await desk.round()
    found = desk.one(D1)
    assert (found.state, found.step) == (S.BROKEN, "run")
    assert "3 times within 5 minutes" in found.cause
    assert await running(desk) == [DomainStatus(D1, 1, DomainState.OFF)]


async def test_one_that_goes_off_right_after_each_start_is_broken_too(desk: Desk) -> None:
    await in_use(desk)
    await desk.round()
    for _ in range(3):
        desk.hypervisor.power_off(D1)
        await desk.round()
    assert desk.one(D1).state is S.BROKEN


async def test_one_that_goes_off_now_and_then_is_not(desk: Desk) -> None:
    await in_use(desk)
    for _ in range(5):
        await desk.live(160)
        desk.hypervisor.power_off(D1)
        await desk.round()
    assert desk.one(D1).state is S.IN_USE


async def test_a_broken_one_tried_again_starts_with_a_clean_slate_and_disk(desk: Desk) -> None:
    await test_one_that_goes_off_right_after_each_start_is_broken_too(desk)
    desk.overlay(D1).write_bytes(b"spoilt")
    done(await desk.do("desktop.retry", desktop=D1))
    await desk.live(20)
    assert (desk.one(D1).state, desk.one(D1).generation) == (S.READY, 2)
    assert desk.overlay(D1).read_bytes()[:4] == b"QFI\xfb"
    desk.hypervisor.power_off(D1)
    assert [type(action) for action in await desk.round()] == [BootAgain]


@pytest.mark.parametrize("what", ["domain", "disk"])
async def test_what_somebody_removed_by_hand_is_told(desk: Desk, what: str) -> None:
    await in_use(desk)
    if what == "domain":
        await desk.hypervisor.remove(D1)
    else:
        desk.hypervisor.power_off(D1)
        desk.overlay(D1).unlink()
    await desk.live(2)
    assert desk.one(D1).state is S.BROKEN
    assert f"its {what} is gone" in desk.one(D1).cause
    assert "by hand" in desk.one(D1).cause


async def test_a_desktop_given_back_is_removed_with_all_that_lay_around_it(desk: Desk) -> None:
    await in_use(desk)
    # virtlogd keeps former parts of a long log beside it.
    for name in ("run/d-1.vnc", "desktops/d-1.log", "desktops/d-1.log.0", "desktops/d-1.log.1"):
        (desk.folder / name).touch()
    done(await desk.do("desktop.release", desktop=D1, user="bea"))
    assert [type(action) for action in await desk.round()] == [Remove]
    assert desk.states() == {}
    assert await running(desk) == []
    assert list((desk.folder / "desktops").iterdir()) == list((desk.folder / "run").iterdir()) == []


async def test_one_retired_while_it_is_built_is_removed_and_not_called_broken(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.round()
    done(await desk.do("desktop.retire", desktop=D1, why="not needed"))
    await desk.live(4)
    assert desk.states() == {}
    assert await running(desk) == []
    with desk.grid.view() as db:
        assert not [event for event in events(db, limit=100) if "broken" in event.text]


async def test_a_domain_and_a_disk_of_nobody_are_removed_after_asking_the_log(desk: Desk) -> None:
    await in_use(desk)
    spec = desk.hypervisor.spec(D1)
    done(await desk.do("desktop.retire", desktop=D1, why="a test"))
    await desk.round()
    await desk.hypervisor.define(spec)
    desk.overlay(D1).touch()
    desk.overlay("d-old").touch()
    begun = await desk.round()
    assert begun == (RemoveStray(D1), RemoveStray(DesktopId("d-old")))
    assert await running(desk) == []
    assert list((desk.folder / "desktops").iterdir()) == []


async def test_nothing_is_removed_by_a_copy_of_the_state_that_is_behind(desk: Desk) -> None:
    await in_use(desk)
    # Another copy of the state, which stopped just before the desktop was placed: as one that is being rebuilt.
    entries = desk.log.entries
    early = next(n for n, entry in enumerate(entries) if b"desktop.place" in entry)
    rest, desk.log.entries = entries[early:], entries[:early]
    await desk.agent.stop()
    (desk.folder / "srv-a.sqlite").rename(desk.folder / "lost.sqlite")
    desk.grid.close()
    desk.grid = desk.member(A)
    desk.grid.catch_up(desk.log.entries)
    agent = desk.restarted()
    assert desk.states() == {}
    desk.log.entries = entries[:early] + rest  # the others have all of it
    assert await agent.run_once() == (RemoveStray(D1),)
    await settle()
    assert await running(desk) == [DomainStatus(D1, 1, DomainState.RUNNING)]
    assert desk.overlay(D1).exists()
    assert await desk.round() == ()


async def test_without_a_majority_nothing_of_nobody_is_removed(desk: Desk) -> None:
    desk.overlay("d-old").touch()
    desk.log.cut_off.add(A)
    for _ in range(3):
        await desk.live(2)
    assert desk.overlay("d-old").exists()
    desk.log.cut_off.clear()
    await desk.round()
    assert not desk.overlay("d-old").exists()


async def test_a_disk_that_is_being_made_is_never_taken_for_an_orphan(desk: Desk) -> None:
    done(await desk.place(D1))
    for _ in range(4):
        begun = await desk.agent.run_once()
        assert not [action for action in begun if isinstance(action, RemoveStray)]
        await settle(1)
    assert desk.overlay(D1).exists()


async def test_a_hypervisor_that_is_down_fails_nothing_and_heals(desk: Desk) -> None:
    await in_use(desk)
    done(await desk.place("d-2"))
    desk.hypervisor.down = "libvirt is not answering: start it"
    await desk.live(30)
    assert desk.states() == {D1: "in_use", "d-2": "placed"}
    assert not desk.agent.can_run()
    assert desk.agent.problems() == ("libvirt is not answering: start it",)
    desk.hypervisor.down = ""
    await desk.live(14)
    assert desk.states() == {D1: "in_use", "d-2": "ready"}
    assert desk.agent.problems() == ()


async def test_a_hypervisor_that_goes_down_during_a_boot_only_delays_it(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.live(4)
    desk.hypervisor.down = "gone for a moment"
    await desk.live(60)
    assert desk.one(D1).state is S.BUILDING
    desk.hypervisor.down = ""
    await desk.live(4)
    assert desk.one(D1).state is S.READY


async def test_a_daemon_that_restarts_at_any_moment_of_a_build_goes_on_with_it(desk: Desk) -> None:
    for turns in range(0, 40, 2):
        name = f"d-{turns}"
        done(await desk.place(name))
        await desk.agent.run_once()
        await settle(turns)
        await desk.agent.stop()
        desk.restarted()
        await desk.live(14)
        assert desk.one(name).state is S.READY
        done(await desk.do("desktop.retire", desktop=name, why="next"))
        await desk.round()


async def test_before_the_grid_knows_this_server_nobody_is_judged(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.overlay("d-old").touch()
    assert await desk.round() == ()
    assert desk.overlay("d-old").exists()
    desk.grid.close()


async def test_desktops_of_other_servers_are_theirs(desk: Desk) -> None:
    done(await desk.place("d-b", server=B))
    assert await desk.round() == ()


async def test_what_is_told_with_the_heartbeat(desk: Desk) -> None:
    told = desk.agent.vitals()
    assert (told["can_run_desktops"], told["accelerator"]) == (False, "tcg")
    assert "just started" in told["problems"][0]
    for name in (D1, "d-2"):
        done(await desk.place(name))
    await desk.round()
    told = desk.agent.vitals()
    assert (told["can_run_desktops"], told["problems"]) == (True, [])
    waits = {"d-2": "waiting for its turn: this server makes 1 desktops at a time"}
    assert told["extra"] == {"waiting": waits, "machines": []}


async def test_a_sick_disk_is_a_problem_of_this_server_and_breaks_no_desktop(desk: Desk) -> None:
    done(await desk.place(D1))

    async def hangs(work: Any) -> Any:
        raise Unavailable("the disk of this server did not answer")

    desk.agent._blocking = hangs
    await desk.live(4)
    assert desk.agent.problems() == ("the disk of this server did not answer",)
    assert desk.one(D1).state is S.PLACED


async def test_the_loop_goes_on_at_each_change_and_after_a_bug(desk: Desk) -> None:
    task = asyncio.create_task(desk.agent.run())
    await settle()
    done(await desk.place(D1))  # no time passes: the change itself wakes the loop
    await settle(60)
    assert desk.one(D1).state is S.BUILDING
    raw = desk.raw
    desk.raw = None  # type: ignore[method-assign, assignment]
    done(await desk.place("d-2"))
    await settle(60)
    desk.raw = raw  # type: ignore[method-assign]
    await desk.clock.advance(30, settle=60)
    assert desk.states() == {D1: "ready", "d-2": "ready"}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_a_failed_report_is_tried_again_after_a_while_and_not_in_a_storm(desk: Desk) -> None:
    await in_use(desk)
    done(await desk.do("desktop.release", desktop=D1, user="bea"))
    desk.log.cut_off.add(A)
    looks = 0
    domains = desk.hypervisor.domains

    async def counted() -> Any:
        nonlocal looks
        looks += 1
        return await domains()

    desk.hypervisor.domains = counted  # type: ignore[method-assign]
    task = asyncio.create_task(desk.agent.run())
    await settle(500)
    assert looks < 3
    desk.log.cut_off.clear()
    await desk.clock.advance(3, settle=60)
    assert desk.states() == {}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_desktops_that_are_halted_again_and_again_are_told_and_never_broken(desk: Desk) -> None:
    await in_use(desk)
    for _ in range(3):
        desk.hypervisor.halt(D1)
        assert desk.agent.problems() == ()
        await desk.round()
    assert "1 desktops of this server are halted again and again (d-1)" in desk.agent.problems()[0]
    assert desk.agent.can_run()
    await desk.round()
    assert desk.agent.problems() == ()
    assert desk.one(D1).state is S.IN_USE


async def test_what_happens_elsewhere_in_the_grid_costs_no_look_at_the_hypervisor(desk: Desk) -> None:
    looks = 0
    domains = desk.hypervisor.domains

    async def counted() -> Any:
        nonlocal looks
        looks += 1
        return await domains()

    desk.hypervisor.domains = counted  # type: ignore[method-assign]
    task = asyncio.create_task(desk.agent.run())
    await settle()
    for number in range(50):
        done(await desk.do("template.update", template="tpl", notes=f"note {number}"))
        await settle(5)
    await settle(200)
    assert looks == 1
    for _ in range(10):
        await desk.clock.advance(2, settle=60)
    assert looks == 11
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_nothing_outlives_a_loop_that_was_ended(desk: Desk) -> None:
    before = asyncio.all_tasks()
    task = asyncio.create_task(desk.agent.run())
    done(await desk.place(D1))
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert asyncio.all_tasks() == before
