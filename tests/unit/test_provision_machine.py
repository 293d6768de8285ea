"""A desktop keeps the kind of machine that it was made with, from its firmware to the version that is made of it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.ids import DesktopId, VersionId
from kmgr.provision import firmware
from kmgr.provision.capture_queries import variables
from kmgr.provision.causes import Trouble
from kmgr.provision.warm import why_boots
from kmgr.templates.machine import MACHINES, Firmware, Machine, System
from kmgr.templates.queries import template
from tests.lab.outcomes import rejected
from tests.lab.provision import Desk, done
from tests.unit.test_provision_capture import EDIT, TPL, Bench
from tests.unit.test_provision_firmware import FRESH, fittings

D1 = DesktopId("dsk-1")
OWN = b"\x07" * len(FRESH)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Bench]:
    desk = Bench(tmp_path)
    desk.fittings = fittings(tmp_path)
    await desk.open()
    await rule(desk, firmware="uefi")
    yield desk
    await desk.agent.stop()
    desk.grid.close()


async def rule(desk: Bench, **machine: Any) -> None:
    done(await desk.do("template.update", template=TPL, policy={"machine": machine}))


def own(desk: Bench, desktop: DesktopId = D1) -> Path:
    return firmware.variables_path(desk.folder, desktop)


async def test_it_is_made_with_firmware_and_variables_of_its_own_which_go_with_it(desk: Bench) -> None:
    done(await desk.place(D1))
    await desk.live(14)
    spec = desk.hypervisor.spec(D1)
    assert (spec.machine, spec.variables) == (Machine(Firmware.UEFI), str(own(desk)))
    assert spec.loader.endswith("OVMF_CODE_4M.fd")
    assert own(desk).read_bytes() == FRESH
    assert desk.agent.vitals()["extra"]["machines"] == ["secure", "tpm", "uefi"]
    done(await desk.do("desktop.retire", desktop=D1, why="it is enough"))
    await desk.live(4)
    assert not own(desk).exists()


async def test_another_kind_counts_for_desktops_that_are_made_from_then_on(desk: Bench) -> None:
    done(await desk.place(D1))
    await desk.live(14)
    done(await desk.do("desktop.claim", user="anna", template=TPL))
    own(desk).write_bytes(OWN)
    await rule(desk, firmware="secure", tpm=True, hardware="plain")
    done(await desk.do("template.update", template=TPL, vcpus=4))
    desk.hypervisor.power_off(D1)
    await desk.live(10)
    spec = desk.hypervisor.spec(D1)
    assert (spec.vcpus, spec.machine) == (4, Machine(Firmware.UEFI)), "its disk starts by nothing else"
    assert own(desk).read_bytes() == OWN
    done(await desk.place("dsk-2"))
    await desk.live(14)
    assert desk.hypervisor.spec(DesktopId("dsk-2")).machine == MACHINES[System.WINDOWS]


async def test_where_the_firmware_is_missing_it_is_broken_by_a_name_and_comes_up_once_it_is_there(
    desk: Bench,
) -> None:
    whole, desk.fittings = desk.fittings, firmware.Fittings()
    done(await desk.place(D1))
    await desk.live(6)
    broken = desk.one(D1)
    assert (broken.state, broken.trouble) == ("broken", Trouble.NO_FIRMWARE)
    assert "apt-get install ovmf" in broken.cause
    with desk.grid.view() as db:
        known = template(db, TPL)
    assert known is not None and not known.broken_cause, "it is the server's fault, not the template's"
    desk.fittings = whole
    done(await desk.do("desktop.retry", desktop=D1))
    await desk.live(20)
    assert desk.states()[D1] == "ready"


async def test_what_is_installed_is_looked_for_once_a_minute_and_told(tmp_path: Path) -> None:
    desk, looks, whole = Desk(tmp_path), list[float](), fittings(tmp_path)

    def look() -> firmware.Fittings:
        looks.append(desk.clock.monotonic())
        return whole if len(looks) > 1 else firmware.Fittings()

    desk.look = look
    desk.restarted()
    await desk.found()
    await desk.live(firmware.LOOK_S - 2)
    assert desk.agent.vitals()["extra"]["machines"] == []
    await desk.live(2)
    assert desk.agent.vitals()["extra"]["machines"] == ["secure", "tpm", "uefi"]
    assert len(looks) == 2
    await desk.agent.stop()
    desk.grid.close()


async def test_a_version_takes_along_what_its_disk_is_started_from(desk: Bench) -> None:
    await desk.working()
    own(desk, EDIT).write_bytes(OWN)
    done(await desk.capture(publish={}))
    assert await desk.made() == 1
    with desk.grid.view() as db:
        kept = variables(db, VersionId("ver-made"), "uefi")
        assert variables(db, VersionId("ver-made"), "secure") == "", "other firmware begins with its own"
    assert firmware.unpacked(kept) == OWN
    desk.raw("ver-made").write_bytes(bytes(1 << 20))
    done(await desk.place(D1, version="ver-made"))
    await desk.live(16)
    assert own(desk).read_bytes() == OWN


async def test_its_desktops_boot_by_themselves_and_say_why(desk: Bench) -> None:
    with desk.grid.view() as db:
        assert "starts by UEFI" in why_boots(template(db, TPL))


async def test_a_machine_that_there_is_not_is_refused_with_the_words(desk: Bench) -> None:
    body = {"template": TPL, "policy": {"machine": {"tpm": True}}}
    assert "a TPM needs UEFI" in rejected(await desk.do("template.update", **body), "refused")
