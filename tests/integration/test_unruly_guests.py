"""What guests, people and disks do to desktops, with real QEMU: each has its name and its cure, others go on.

`KMGR_REBOOTS=1` has a guest reboot by itself again and again; a run of all tests has no time for that.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from appliance.lab.node import PrivateLibvirt
from kmgr.errors import KmgrError
from kmgr.ids import DesktopId
from kmgr.provision import disks
from kmgr.provision.causes import CURES, Fault, Trouble
from kmgr.provision.hypervisor import DomainState
from tests.lab import unruly
from tests.lab.hypervisors import until
from tests.lab.provision import done
from tests.lab.real_desk import BOOT_S, Real

pytestmark = pytest.mark.libvirt

D1, D2, D3 = (DesktopId(f"dsk-00000000000{number}") for number in (1, 2, 3))
MIB = 1 << 20
SMALL_MIB = 40

Open = Callable[[Path], Awaitable[Real]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder in which the desktops' disks lie on a disk that is soon full."""
    folder = tmp_path_factory.mktemp("s")
    desktops = folder / "desktops"
    desktops.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "kmgr-test", desktops], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", desktops], check=True)


@pytest.fixture(scope="module")
def libvirtd(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    """A libvirtd of this file's own, which sees that disk: it has the mounts that there were when it began."""
    assert small.is_dir()
    server = PrivateLibvirt(tmp_path_factory.mktemp("l") / "s", "unruly")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def opened(libvirtd: PrivateLibvirt, raw: Path) -> AsyncIterator[Open]:
    """Returns a function that opens the office in a folder; it is closed at the end."""
    made: list[Real] = []

    async def open_it(folder: Path) -> Real:
        libvirtd.start()
        made.append(Real(folder, libvirtd.uri, raw, deadline_s=10, max_builds=2, listens=True))
        await made[0].found(memory_mib=128)
        return made[0]

    yield open_it
    for real in made:
        await real.end()


async def stand_by(real: Real, *desktops: DesktopId) -> None:
    for desktop in desktops:
        done(await real.place(desktop))
    await real.until(lambda: all(real.states().get(one) == "ready" for one in desktops))


async def is_broken(real: Real, desktop: DesktopId, by: Trouble, fault: Fault) -> None:
    await real.until(lambda: real.states().get(desktop) == "broken")
    found = real.one(desktop)
    assert found.trouble is by, (found.step, found.cause)
    assert CURES[by].fault is fault


async def given(real: Real, user: str) -> DesktopId:
    claimed = done(await real.do("desktop.claim", user=user, template="tpl"))
    return DesktopId(str(claimed["desktop"]))


@pytest.mark.skipif("KMGR_REBOOTS" not in os.environ, reason="takes a minute: KMGR_REBOOTS=1")
async def test_a_guest_whose_init_reboots_is_halted_by_name_while_others_are_given_out(
    opened: Open, raw: Path, tmp_path: Path
) -> None:
    real = await opened(tmp_path)
    loop = await asyncio.to_thread(unruly.beginning_with, unruly.REBOOTS, raw, tmp_path / "loop.raw")
    real.images["ver-2"] = loop
    await stand_by(real, D1)
    await real.version("ver-2")
    done(await real.do("template.publish", template="tpl", version="ver-2"))
    done(await real.place(D2, version="ver-2"))
    await real.until(lambda: real.states()[D2] == "building")
    assert await given(real, "bea") == D1
    await is_broken(real, D2, Trouble.REBOOTS, Fault.TEMPLATE)
    assert real.one(D2).step == "guest"
    await real.found_as(D2, DomainState.PAUSED)
    assert real.states() == {D1: "in_use", D2: "broken"}
    assert await real.hypervisor.answers(D1)
    assert real.agent.can_run(), "that is no fault of this server"


async def test_what_is_taken_away_by_hand_is_named_and_who_works_beside_it_goes_on(
    opened: Open, raw: Path, tmp_path: Path
) -> None:
    real = await opened(tmp_path)
    real.image = tmp_path / "own.raw"
    await asyncio.to_thread(unruly.copied, raw, real.image)
    await stand_by(real, D1, D2)

    done(await real.do("template.update", template="tpl", policy={"network": "none"}))
    done(await real.place(D3))
    await is_broken(real, D3, Trouble.NO_NETWORK, Fault.SERVER)
    assert real.states() == {D1: "ready", D2: "ready", D3: "broken"}
    await real.until(lambda: not real.agent.can_run())  # others are made elsewhere for a while
    assert "network" in " ".join(real.agent.problems())
    done(await real.do("template.update", template="tpl", policy={"network": ""}))
    done(await real.do("desktop.retire", desktop=D3, why="a test"))

    assert {await given(real, user) for user in ("bea", "cleo")} == {D1, D2}
    (real.folder / "desktops" / f"{D1}.qcow2").unlink()
    await asyncio.sleep(3)
    assert real.states()[D1] == "in_use", "who works on it does not notice"
    await real.by_hand(D1, "destroy")
    await is_broken(real, D1, Trouble.NO_DISK, Fault.DESKTOP)
    assert real.states()[D2] == "in_use"
    assert await real.hypervisor.answers(D2)

    away = real.image.rename(tmp_path / "away.raw")
    await real.by_hand(D2, "destroy")
    await is_broken(real, D2, Trouble.NO_IMAGE, Fault.SERVER)
    away.rename(real.image)
    done(await real.do("desktop.retry", desktop=D2))
    await real.until(lambda: real.states()[D2] == "ready")


async def test_on_a_full_disk_a_desktop_is_halted_and_not_broken_and_goes_on_when_there_is_room(
    small: Path, opened: Open
) -> None:
    real = await opened(small)
    await stand_by(real, D1)
    assert await given(real, "bea") == D1
    filler = small / "desktops" / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(filler.parent).free - 6 * MIB))
    writes = unruly.captured("dd if=/dev/urandom of=/dev/vda2 bs=64k count=192 conv=fsync")
    pid = (await real.hypervisor.agent(D1, "guest-exec", writes, 10))["pid"]

    await real.until(lambda: "halted again and again" in " ".join(real.agent.problems()))
    assert D1 in " ".join(real.agent.problems())
    done(await real.place(D2))
    await is_broken(real, D2, Trouble.DISK_FULL, Fault.SERVER)
    assert real.states()[D1] == "in_use"
    assert D2 not in disks.overlays(real.folder), "nothing of it is left on the disk"

    filler.unlink()

    async def written() -> bool:
        try:
            told = await real.hypervisor.agent(D1, "guest-exec-status", {"pid": pid}, 3)
        except KmgrError:
            return False  # it is still halted
        assert told.get("exitcode", 0) == 0, "what it wrote meanwhile is written"
        return bool(told["exited"])

    await until(written, BOOT_S)
    await real.until(lambda: "halted" not in " ".join(real.agent.problems()))
    assert real.states()[D1] == "in_use"
