"""Desktops restored from a saved memory: how one comes to be, what may go wrong with it, and that it goes again."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.ids import DesktopId, TemplateId
from kmgr.provision import domainxml
from kmgr.provision.hypervisor import DomainState, DomainStatus
from kmgr.provision.model import Origin
from kmgr.provision.warm import AGAIN_S, MOST_TRIES, again_s
from tests.lab.provision import done
from tests.lab.warmed import Warmed

WARM, COLD = Origin.WARM, Origin.COLD


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Warmed]:
    desk = Warmed(tmp_path)
    await desk.found()
    yield desk
    await desk.agent.stop()
    desk.grid.close()


async def test_the_first_boots_the_others_are_restored_from_what_was_saved_meanwhile(desk: Warmed) -> None:
    names = await desk.several(5)
    await desk.live(12)
    assert desk.origins() == {names[0]: COLD}
    assert "waiting for a memory to be saved" in desk.agent.waiting(names[1])
    await desk.live(8)
    assert desk.origins() == {names[0]: COLD, **dict.fromkeys(names[1:], WARM)}
    assert desk.kept() == ["ver-1"]
    assert await desk.builders() == []
    assert [status.provisional for status in await desk.hypervisor.domains()] == [False] * 5
    assert desk.notes() == {}
    assert desk.agent.vitals()["extra"]["warm"]["n"] == 1
    assert desk.agent.vitals()["extra"]["warm"]["checked"] == ["ver-1"]


async def test_one_more_is_ready_without_booting_as_itself_on_its_own_disk(desk: Warmed) -> None:
    await desk.several(1)
    await desk.live(20)
    desk.guest.calls.clear()
    (name,) = await desk.several(1, first=7)
    await desk.live(2)
    assert desk.origins()[name] is WARM
    spec = desk.hypervisor.spec(name)
    (program,) = [arguments for _, command, arguments in desk.guest.calls if command == "guest-exec"]
    assert program["arg"][3:5] == [spec.name, domainxml.spec_mac(spec)]
    assert int(program["arg"][6]) == round(desk.clock.now_ms() / 1000) - 2
    (saved,) = desk.lying()
    gold = desk.folder / "warm" / saved / "disk.qcow2"
    assert desk.overlay(name).read_bytes() == gold.read_bytes()
    assert not desk.overlay(name).samefile(gold)


async def test_a_desktop_that_was_restored_boots_from_its_own_disk_when_it_was_off(desk: Warmed) -> None:
    names = await desk.several(2)
    await desk.live(20)
    desk.hypervisor.power_off(names[1])
    await desk.live(4)
    assert desk.states()[names[1]] == "building"
    await desk.live(10)
    assert desk.origins()[names[1]] is COLD


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda desk: desk.guest.refuses.update({"guest-exec": "it is switched off here"}), "does not do guest-exec"),
        (lambda desk: desk.guest.refuses.update({"guest-exec-status": "no"}), "does not do guest-exec-status"),
        (lambda desk: desk.hypervisor.fail.update(save_warm="no space"), "no space"),
        (lambda desk: desk.hypervisor.fail.update(restore_warm="wrong machine"), "wrong machine"),
        (lambda desk: desk.guest.programs.extend(["name=warm-1\nmac=\nsample=1"] * 2), "network address is unknown"),
        (lambda desk: desk.guest.programs.extend(["garbage"] * 2), "calls itself nothing"),
    ],
)
async def test_where_it_cannot_be_done_desktops_boot_as_before_and_the_reason_is_told(
    desk: Warmed, spoil: Any, why: str
) -> None:
    spoil(desk)
    names = await desk.several(4)
    await desk.live(60)
    assert desk.origins() == dict.fromkeys(names, COLD)
    assert why in desk.notes()["tpl"]
    assert desk.lying() == []
    assert await desk.builders() == []


@pytest.mark.parametrize("command", ["guest-exec", "guest-exec-status"])
async def test_a_guest_that_runs_no_programs_keeps_the_others_waiting_for_one_boot_only(
    desk: Warmed, command: str
) -> None:
    desk.guest.refuses[command] = "Failed to execute child process"
    names = await desk.several(3)
    await desk.live(24)
    assert desk.saved == []
    assert desk.origins() == dict.fromkeys(names, COLD)


async def test_two_that_draw_the_same_random_numbers_are_not_let_near_anybody(desk: Warmed) -> None:
    class Twins:
        def __init__(self) -> None:
            self.asked: list[str] = []

        def __call__(self, desktop: DesktopId, command: str, arguments: Any) -> dict[str, Any]:
            told = dict(desk.guest(desktop, command, arguments))
            if command == "guest-exec":
                name, mac = [*arguments["arg"], ""][3:5]
                desk.guest._printed[told["pid"]] = f"name={name}\nmac={mac}\nclock=set\nsample=4711\n"
            return told

    desk.hypervisor.guest = Twins()
    names = await desk.several(3)
    await desk.live(60)
    assert desk.origins() == dict.fromkeys(names, COLD)
    assert "same random numbers" in desk.notes()["tpl"]


async def test_memory_that_cannot_be_shared_is_copied(desk: Warmed) -> None:
    saved = desk.hypervisor.save_warm

    async def only_plain(desktop: DesktopId, to: str) -> None:
        if desk.hypervisor.spec(desktop).ram:
            desk.hypervisor.fail["save_warm"] = "memory-backend-file: permission denied"
        else:
            desk.hypervisor.fail.clear()
        await saved(desktop, to)

    desk.hypervisor.save_warm = only_plain  # type: ignore[method-assign]
    await desk.several(2)
    await desk.live(40)
    assert WARM in desk.origins().values()
    assert desk.notes() == {}
    (saved_as,) = desk.lying()
    assert not (desk.folder / "warm" / saved_as / "ram").exists()


async def test_what_did_not_work_is_tried_again_after_a_while(desk: Warmed) -> None:
    desk.hypervisor.fail["save_warm"] = "no space"
    await desk.several(1)
    await desk.live(40)
    desk.hypervisor.fail.clear()
    await desk.live(40)
    assert desk.kept() == []
    await desk.clock.advance(AGAIN_S)
    await desk.live(20)
    assert desk.kept() == ["ver-1"]


async def test_what_fails_is_tried_less_and_less_often_and_in_the_end_not_any_more(desk: Warmed) -> None:
    desk.hypervisor.fail["save_warm"] = "no space"
    await desk.several(1)
    await desk.live(40)
    tries = 1
    for failures in range(1, MOST_TRIES):
        await desk.clock.advance(again_s(failures) - 60)
        await desk.live(40)
        assert len(desk.saved) == 2 * tries, "not before its time"
        await desk.clock.advance(60)
        await desk.live(40)
        tries += 1
        assert len(desk.saved) == 2 * tries, "shared and plain"
    assert desk.stopped() == ["tpl"]
    assert "no space. It was tried 4 times and is not tried any more" in desk.notes()["tpl"]
    desk.restarted()
    await desk.live(4)
    await desk.clock.advance(10 * again_s(MOST_TRIES - 1))
    await desk.live(40)
    assert len(desk.saved) == 2 * tries, "nor after a restart"
    assert desk.stopped() == ["tpl"]
    desk.hypervisor.fail.clear()
    await desk.agent.try_clones(TemplateId("tpl"))
    await desk.round()
    assert desk.notes() == {}
    await desk.live(40)
    assert desk.kept() == ["ver-1"]
    assert desk.stopped() == []


async def test_nobody_waits_for_a_memory_that_could_not_be_made_the_last_time(desk: Warmed) -> None:
    desk.hypervisor.fail["save_warm"] = "no space"
    await desk.several(1)
    await desk.live(40)
    await desk.clock.advance(AGAIN_S)
    names = await desk.several(2, first=2)
    await desk.live(2)
    assert await desk.builders() != [], "it is tried again beside them"
    assert [desk.states()[name] for name in names] == ["building"] * 2
    await desk.live(10)
    assert desk.origins() == dict.fromkeys([DesktopId("d-1"), *names], COLD)


async def test_another_version_is_tried_at_once_whatever_failed_before(desk: Warmed) -> None:
    desk.hypervisor.fail["save_warm"] = "no space"
    await desk.several(1)
    await desk.live(40)
    desk.hypervisor.fail.clear()
    await desk.version("ver-2")
    done(await desk.do("template.publish", template="tpl", version="ver-2"))
    await desk.several(1, first=2, version="ver-2")
    await desk.live(40)
    assert desk.kept() == ["ver-2"]


@pytest.mark.parametrize("printed", ["no base64 at all!", "abc", "é", 17, None, {"a": 1}])
async def test_whatever_a_guest_prints_is_its_own_failure(desk: Warmed, printed: Any) -> None:
    sane = desk.hypervisor.guest

    def odd(desktop: DesktopId, command: str, arguments: Any) -> dict[str, Any]:
        told = dict(sane(desktop, command, arguments))
        return {**told, "out-data": printed} if command == "guest-exec-status" else told

    desk.hypervisor.guest = odd
    names = await desk.several(2)
    await desk.live(60)
    assert desk.origins() == dict.fromkeys(names, COLD)
    assert "a bug" not in desk.notes()["tpl"]
    assert "printed" in desk.notes()["tpl"] or "calls itself" in desk.notes()["tpl"]


async def test_one_that_prints_nonsense_when_it_is_restored_boots(desk: Warmed) -> None:
    await desk.several(1)
    await desk.live(20)
    sane = desk.hypervisor.guest

    def odd(desktop: DesktopId, command: str, arguments: Any) -> dict[str, Any]:
        told = dict(sane(desktop, command, arguments))
        return {**told, "out-data": "abc"} if command == "guest-exec-status" else told

    desk.hypervisor.guest = odd
    (name,) = await desk.several(1, first=7)
    await desk.live(14)
    assert desk.origins()[name] is COLD
    assert "it is not base64" in desk.notes()["tpl"]


async def test_a_guest_that_says_much_is_quoted_briefly(desk: Warmed) -> None:
    desk.guest.programs.extend([f"name={'x' * 100_000}"] * 2)
    await desk.several(2)
    await desk.live(60)
    assert len(desk.notes()["tpl"]) < 500


async def test_a_memory_that_does_not_load_any_more_is_deleted_and_the_desktop_boots(desk: Warmed) -> None:
    await desk.several(1)
    await desk.live(20)
    desk.hypervisor.fail["restore_warm"] = "another QEMU wrote it"
    (name,) = await desk.several(1, first=7)
    await desk.live(14)
    assert desk.origins()[name] is COLD
    assert desk.lying() == []
    assert "another QEMU wrote it" in desk.notes()["tpl"]


async def test_other_hardware_makes_another_memory_and_deletes_the_old_one(desk: Warmed) -> None:
    await desk.several(1)
    await desk.live(20)
    before = desk.lying()
    desk.hypervisor.processor = "fake 2"
    await desk.live(20)
    assert len(desk.lying()) == 1
    assert desk.lying() != before


async def test_a_memory_goes_with_its_version(desk: Warmed) -> None:
    (name,) = await desk.several(1)
    await desk.live(20)
    await desk.version("ver-2")
    done(await desk.do("template.publish", template="tpl", version="ver-2"))
    await desk.several(1, first=2, version="ver-2")
    await desk.live(40)
    assert sorted(desk.kept()) == ["ver-1", "ver-2"], "as long as desktops of it are here"
    done(await desk.do("desktop.retire", desktop=name, why="it is old"))
    await desk.live(4)
    assert desk.kept() == ["ver-2"]


async def test_a_server_that_boots_all_saves_nothing_and_deletes_what_it_had(tmp_path: Path) -> None:
    desk = Warmed(tmp_path, mode="never")
    await desk.found()
    names = await desk.several(2)
    await desk.live(30)
    assert desk.origins() == dict.fromkeys(names, COLD)
    assert desk.lying() == []
    await desk.agent.stop()
    desk.grid.close()


@pytest.mark.parametrize("cut", range(0, 44, 2))
async def test_killed_at_any_moment_the_next_one_puts_it_right(tmp_path: Path, cut: int) -> None:
    desk = Warmed(tmp_path, max_builds=2)
    await desk.found()
    names = await desk.several(3)
    for _ in range(cut):
        await desk.round()
        await desk.clock.advance(0.5)
    await desk.agent.stop()  # like a kill: nothing of what it was at is brought to an end
    desk.restarted()
    await desk.live(60)
    assert set(desk.origins()) == set(names)
    assert await desk.builders() == []
    assert [status.provisional for status in await desk.hypervisor.domains()] == [False] * 3
    assert desk.kept() == ["ver-1"]
    assert len(desk.lying()) == 1
    await desk.agent.stop()
    desk.grid.close()


async def test_one_that_was_half_restored_by_a_daemon_that_died_is_made_anew(desk: Warmed) -> None:
    await desk.several(1)
    await desk.live(20)
    (name,) = await desk.several(1, first=7)
    spec = desk.hypervisor.spec(DesktopId("d-1"))
    (saved,) = desk.lying()
    half = type(spec)(**{**{f: getattr(spec, f) for f in spec.__slots__}, "desktop": name})
    await desk.hypervisor.restore_warm(half, str(desk.folder / "warm" / saved))
    assert DomainStatus(name, 1, DomainState.RUNNING, provisional=True) in await desk.hypervisor.domains()
    desk.guest.calls.clear()
    await desk.live(4)
    assert desk.origins()[name] is WARM
    assert name in [desktop for desktop, command, _ in desk.guest.calls if command == "guest-exec"]


async def test_standbys_sleep_by_policy_and_wake_when_they_are_claimed(desk: Warmed) -> None:
    done(await desk.do("template.update", template="tpl", policy={"suspend_standby": True}))
    names = await desk.several(2)
    await desk.live(100)
    assert [await desk.domain(name) for name in names] == [DomainState.PAUSED] * 2
    assert desk.states() == dict.fromkeys(names, "ready")
    assert desk.agent.problems() == ()
    claimed = done(await desk.do("desktop.claim", user="bea", template="tpl"))["desktop"]
    desk.guest.calls.clear()
    await desk.round()
    assert await desk.domain(claimed) is DomainState.RUNNING
    assert (claimed, "guest-set-time") in [(desktop, command) for desktop, command, _ in desk.guest.calls]
    done(await desk.do("template.update", template="tpl", policy={"suspend_standby": False}))
    await desk.live(4)
    assert [await desk.domain(name) for name in names] == [DomainState.RUNNING] * 2


async def test_a_standby_that_sleeps_is_not_taken_for_one_that_the_disk_halted(desk: Warmed) -> None:
    done(await desk.do("template.update", template="tpl", policy={"suspend_standby": True}))
    (name,) = await desk.several(1)
    await desk.live(100)
    assert await desk.domain(name) is DomainState.PAUSED
    await desk.live(20)
    assert desk.agent.problems() == ()
    desk.restarted()  # the next daemon finds it asleep
    await desk.live(4)
    assert await desk.domain(name) is DomainState.PAUSED
