"""Hypervisors to try: in memory, libvirt's own test driver, real QEMU under a private libvirtd."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import libvirt

from kmgr.clock import ManualClock
from kmgr.ids import DesktopId
from kmgr.provision import disks, domainxml
from kmgr.provision.fake import FakeHypervisor
from kmgr.provision.hypervisor import DomainSpec, DomainState, DomainStatus, Hypervisor
from kmgr.provision.libvirt_driver import connect

D1, D2, NONE = DesktopId("dsk-1"), DesktopId("dsk-2"), DesktopId("dsk-none")
RUNNING, OFF = DomainState.RUNNING, DomainState.OFF
STRANGER = "<domain type='{kind}'><name>{name}</name><memory>65536</memory><os><type>hvm</type></os></domain>"


class Bench(Protocol):
    """A hypervisor to try, and what a person at that server could do."""

    hypervisor: Hypervisor
    has_agent: bool

    def spec(self, desktop: DesktopId, generation: int = 1) -> DomainSpec: ...
    def power_off(self, desktop: DesktopId) -> None: ...


def plain(folder: Path, desktop: DesktopId, generation: int) -> DomainSpec:
    """Return the spec of a small desktop whose files lie in a folder."""
    return DomainSpec(
        desktop=desktop,
        generation=generation,
        name=f"office-{desktop}",
        grid="grid-1",
        template="office",
        vcpus=1,
        memory_mib=128,
        disk=str(disks.overlay_path(folder, desktop)),
        display=str(folder / "run" / f"{desktop}.vnc"),
        log=str(folder / "desktops" / f"{desktop}.log"),
        accelerator="tcg",
        network="user",
    )


class InMemory:
    has_agent = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hypervisor: Hypervisor = FakeHypervisor(ManualClock(), boot_s=0)

    def spec(self, desktop: DesktopId, generation: int = 1) -> DomainSpec:
        return plain(self.folder, desktop, generation)

    def power_off(self, desktop: DesktopId) -> None:
        assert isinstance(self.hypervisor, FakeHypervisor)
        self.hypervisor.power_off(desktop)


class WithLibvirt:
    """`uri` is the test driver's or a real one's; the latter's desktops get real clones of the test guest."""

    def __init__(self, folder: Path, uri: str, *, backing: Path | None = None, deadline_s: float = 30) -> None:
        self.folder = folder
        self.uri = uri
        self.backing = backing
        self.has_agent = backing is not None
        self.hypervisor = connect(uri, grid="grid-1", deadline_s=deadline_s)
        self.admin = libvirt.open(uri)
        for part in ("desktops", "run"):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def spec(self, desktop: DesktopId, generation: int = 1) -> DomainSpec:
        spec = plain(self.folder, desktop, generation)
        if self.backing is not None and not Path(spec.disk).exists():
            disks.make_overlay(Path(spec.disk), self.backing)
        return spec

    def power_off(self, desktop: DesktopId) -> None:
        self.admin.lookupByName(domainxml.domain_name(desktop)).destroy()

    def stranger(self, name: str) -> Any:
        return self.admin.defineXML(STRANGER.format(name=name, kind="test" if self.backing is None else "qemu"))

    async def close(self) -> None:
        await self.hypervisor.close()
        for domain in self.admin.listAllDomains():
            if domain.name() != "test":  # the test driver's own
                with contextlib.suppress(libvirt.libvirtError):
                    domain.destroy()  # it may be off, or just going
                domain.undefine()
        self.admin.close()


async def domains(hypervisor: Hypervisor) -> list[DomainStatus]:
    return list(await hypervisor.domains())


async def until(look: Callable[[], Any], limit_s: float) -> float:
    started = time.monotonic()
    while not await look():
        assert time.monotonic() - started < limit_s, "that took too long"
        await asyncio.sleep(0.1)
    return time.monotonic() - started
