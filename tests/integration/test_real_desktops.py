"""A real desktop's life: placed, built, ready, seen, shut down by its user, through outages, given back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.lab.node import PrivateLibvirt
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.display import OPERATION, fetch_screenshot
from kmgr.provision.hypervisor import DomainState
from tests.lab.provision import A, B, done
from tests.lab.real_desk import BOOT_S, Real

pytestmark = pytest.mark.libvirt

D1 = DesktopId("dsk-000000000001")


@pytest.fixture
async def real(libvirtd: PrivateLibvirt, raw: Path, tmp_path: Path) -> AsyncIterator[Real]:
    libvirtd.start()
    made = Real(tmp_path, libvirtd.uri, raw)
    await made.found(memory_mib=128)
    yield made
    libvirtd.start()
    await made.end()


async def is_state(real: Real, state: str, limit_s: float = BOOT_S) -> float:
    return await real.until(lambda: real.states().get(D1) == state, limit_s)


async def test_from_placed_to_seen_to_given_back(real: Real) -> None:
    done(await real.place(D1))
    took = await is_state(real, "ready")
    print(f"placed to ready: {took:.1f} s")
    done(await real.do("desktop.claim", user="bea", template="tpl"))

    far = real.network.port(B)
    stream = await far.open(ServerId(A), OPERATION, {"desktop": D1, "generation": 1})
    assert (await stream.reader.readexactly(12)).startswith(b"RFB 003.")
    stream.writer.close()
    assert (await fetch_screenshot(far, ServerId(A), D1, "bea")).startswith(b"\x89PNG")

    done(await real.do("desktop.release", desktop=D1, user="bea"))
    took = await real.until(lambda: not real.states(), 20)
    assert await real.domain() is None
    assert list((real.folder / "desktops").iterdir()) == []
    assert list((real.folder / "run").iterdir()) == []
    print(f"given back to gone: {took:.1f} s")


async def test_it_survives_its_user_its_daemon_its_libvirtd_and_a_power_cut(
    real: Real, libvirtd: PrivateLibvirt
) -> None:
    done(await real.place(D1))
    await is_state(real, "building", 20)
    await asyncio.sleep(1)
    await real.stop()  # the daemon ends in the middle of a boot
    real.start()
    await is_state(real, "ready")
    done(await real.do("desktop.claim", user="bea", template="tpl"))

    await asyncio.to_thread(libvirtd.stop_libvirtd)
    await real.until(lambda: not real.agent.can_run(), 20)
    assert "Start libvirtd" in real.agent.problems()[0]
    await asyncio.to_thread(libvirtd.start_libvirtd)
    await real.until(real.agent.can_run, 20)
    assert await real.domain() is DomainState.RUNNING

    disk = (real.folder / "desktops" / f"{D1}.qcow2").stat()
    await asyncio.to_thread(libvirtd.power_cut)
    await real.until(lambda: not real.agent.can_run(), 20)
    await asyncio.to_thread(libvirtd.start)
    for _ in range(100):
        if real.agent.can_run() and await real.domain() is DomainState.RUNNING:
            break
        await asyncio.sleep(0.2)
    assert await real.domain() is DomainState.RUNNING
    assert (real.folder / "desktops" / f"{D1}.qcow2").stat().st_ino == disk.st_ino
    assert real.one(D1).user == "bea"
    assert real.states() == {D1: "in_use"}


async def test_a_disk_that_boots_nothing_is_called_broken_with_the_step(real: Real, tmp_path: Path) -> None:
    done(await real.do("setting.set", name="build_timeout_s", value=30))
    real.image = tmp_path / "empty.raw"
    with real.image.open("wb") as empty:
        empty.truncate(64 << 20)
    done(await real.place(D1))
    await is_state(real, "broken", 60)
    assert real.one(D1).step == "guest"
    assert "did not answer within 30 s" in real.one(D1).cause
