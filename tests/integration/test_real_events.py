"""A real agent hears what a real libvirtd tells: reboot loops, edits by hand, a desktop that went off."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import libvirt
import pytest

from appliance.lab.node import PrivateLibvirt
from kmgr.ids import DesktopId
from kmgr.provision.causes import Trouble
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.listening import MOST_REBOOTS
from tests.lab.provision import done
from tests.lab.real_desk import BOOT_S, Real

pytestmark = pytest.mark.libvirt

D1 = DesktopId("dsk-000000000001")


@pytest.fixture
async def real(libvirtd: PrivateLibvirt, raw: Path, tmp_path: Path) -> AsyncIterator[Real]:
    libvirtd.start()
    made = Real(tmp_path, libvirtd.uri, raw, deadline_s=10, listens=True)
    await made.found(memory_mib=128)
    yield made
    libvirtd.start()
    await made.end()


async def standing_by(real: Real) -> None:
    done(await real.place(D1))
    await real.until(lambda: real.states().get(D1) == "ready")


async def test_a_guest_that_reboots_in_a_loop_is_broken_halted_and_made_anew_on_retry(real: Real) -> None:
    await standing_by(real)
    for _ in range(MOST_REBOOTS):
        await real.by_hand(D1, "reset")
        await asyncio.sleep(1)
    await real.until(lambda: real.states()[D1] == "broken", 60)
    assert real.one(D1).trouble is Trouble.REBOOTS
    await real.found_as(D1, DomainState.PAUSED)
    done(await real.do("desktop.retry", desktop=D1))
    await real.until(lambda: real.states()[D1] == "ready")
    assert real.one(D1).generation == 2


async def test_a_desktop_in_use_that_goes_off_is_back_and_an_edit_by_hand_undone_also_after_libvirtd_was_restarted(
    real: Real, libvirtd: PrivateLibvirt
) -> None:
    await standing_by(real)
    done(await real.do("desktop.claim", user="bea", template="tpl"))
    await asyncio.to_thread(libvirtd.restart_libvirtd)
    await real.by_hand(D1, "setVcpusFlags", 2, libvirt.VIR_DOMAIN_AFFECT_CONFIG | libvirt.VIR_DOMAIN_VCPU_MAXIMUM)
    await real.until(lambda: real.agent.waiting(D1), 60)
    assert "it has 2 CPUs instead of 1" in real.agent.waiting(D1)
    assert real.states()[D1] == "in_use"
    await real.by_hand(D1, "destroy")
    await real.until(lambda: not real.agent.waiting(D1), BOOT_S)
    await real.found_as(D1, DomainState.RUNNING)
    (status,) = await real.hypervisor.domains()
    assert status.edited == ""
