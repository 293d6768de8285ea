"""A real agent hears what a real libvirtd tells: reboot loops, edits by hand, a desktop that went off."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from appliance.lab.node import PrivateLibvirt
from kmgr.ids import DesktopId
from kmgr.provision import domainxml
from kmgr.provision.agent import ProvisionAgent, Shape
from kmgr.provision.causes import Trouble
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.libvirt_events import events
from kmgr.provision.listening import MOST_REBOOTS
from tests.lab.provision import done
from tests.lab.real_desk import BOOT_S, Real

pytestmark = pytest.mark.libvirt

D1 = DesktopId("dsk-000000000001")


class Heard(Real):
    """The same, with libvirt's events."""

    def __init__(self, folder: Path, uri: str, image: Path) -> None:
        self.uri = uri
        super().__init__(folder, uri, image, deadline_s=10)

    def start(self) -> None:
        """Start the agent's loop, as the daemon does."""
        shape = Shape(
            data_dir=self.folder,
            grid_id="grid-1",
            backing=lambda version: self.image if version == "ver-1" else None,
            display=self.socket,
            instant_clones="never",
        )
        self.agent = ProvisionAgent(
            self.grid, self.hypervisor, clock=self.real, shape=shape, events=events(self.uri, deadline_s=10)
        )
        self.task = asyncio.create_task(self.agent.run())

    async def by_hand(self, deed: str, *values: Any) -> None:
        """Do to the domain what an administrator does with virsh."""

        def do() -> None:
            connection = libvirt.open(self.uri)
            getattr(connection.lookupByName(domainxml.domain_name(D1)), deed)(*values)
            connection.close()

        await asyncio.to_thread(do)

    async def found_as(self, state: DomainState) -> None:
        """Wait until the hypervisor finds the domain like that."""
        async with asyncio.timeout(BOOT_S):
            while await self.domain() is not state:  # noqa: ASYNC110 - it is asked, nobody tells
                await asyncio.sleep(0.2)

    async def standing_by(self) -> None:
        done(await self.place(D1))
        await self.until(lambda: self.states().get(D1) == "ready")


@pytest.fixture
async def real(libvirtd: PrivateLibvirt, raw: Path, tmp_path: Path) -> AsyncIterator[Heard]:
    libvirtd.start()
    made = Heard(tmp_path, libvirtd.uri, raw)
    await made.found(memory_mib=128)
    yield made
    libvirtd.start()
    await made.end()


async def test_a_guest_that_reboots_in_a_loop_is_broken_halted_and_made_anew_on_retry(real: Heard) -> None:
    await real.standing_by()
    for _ in range(MOST_REBOOTS):
        await real.by_hand("reset")
        await asyncio.sleep(1)
    await real.until(lambda: real.states()[D1] == "broken", 60)
    assert real.one(D1).trouble is Trouble.REBOOTS
    await real.found_as(DomainState.PAUSED)
    done(await real.do("desktop.retry", desktop=D1))
    await real.until(lambda: real.states()[D1] == "ready")
    assert real.one(D1).generation == 2


async def test_a_desktop_in_use_that_goes_off_is_back_and_an_edit_by_hand_undone_also_after_libvirtd_was_restarted(
    real: Heard, libvirtd: PrivateLibvirt
) -> None:
    await real.standing_by()
    done(await real.do("desktop.claim", user="bea", template="tpl"))
    await asyncio.to_thread(libvirtd.restart_libvirtd)
    await real.by_hand("setVcpusFlags", 2, libvirt.VIR_DOMAIN_AFFECT_CONFIG | libvirt.VIR_DOMAIN_VCPU_MAXIMUM)
    await real.until(lambda: real.agent.waiting(D1), 60)
    assert "it has 2 CPUs instead of 1" in real.agent.waiting(D1)
    assert real.states()[D1] == "in_use"
    await real.by_hand("destroy")
    await real.until(lambda: not real.agent.waiting(D1), BOOT_S)
    await real.found_as(DomainState.RUNNING)
    (status,) = await real.hypervisor.domains()
    assert status.edited == ""
