"""Desktops that start by UEFI, with secure boot and a TPM: the real firmware, emulator, and a small installer."""

import shutil
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.lab.node import PrivateLibvirt
from kmgr.clock import SystemClock
from kmgr.errors import Refused
from kmgr.ids import DesktopId
from kmgr.provision import disks, domainxml, firmware
from kmgr.provision.hypervisor import DomainSpec
from kmgr.provision.libvirt_backup import backups
from kmgr.provision.libvirt_migration import migrations
from kmgr.provision.migration import Progress
from kmgr.templates.machine import MACHINES, Machine, System
from tests.lab import efi_iso
from tests.lab.hypervisors import D1, RUNNING, WithLibvirt, domains, until

pytestmark = pytest.mark.libvirt
pytest.importorskip("libvirt")

# Emulated firmware needs ten seconds of a processor that is its own.
PATIENCE_S = 180


def spec_of(bench: WithLibvirt, machine: Machine) -> DomainSpec:
    """Return a desktop that boots from the small installer, its files in place."""
    plain = bench.spec(D1)
    disk, fittings = Path(plain.disk), firmware.look()
    iso = disk.with_name("setup.iso")
    iso.write_bytes(efi_iso.image())
    drivers = disk.with_name("drivers.iso")
    shutil.copy(iso, drivers)
    firmware.provide(disks.variables_of(disk), fittings, machine, "")
    return replace(
        plain,
        memory_mib=256,
        machine=machine,
        installer=str(iso),
        drivers=str(drivers),
        loader=fittings.code(machine),
        variables=str(disks.variables_of(disk)),
    )


def log_of(spec: DomainSpec) -> str:
    """Return what its guest has said on its serial port."""
    log = Path(spec.log)
    return log.read_text(errors="replace") if log.exists() else ""


async def said(spec: DomainSpec, words: str) -> None:
    async def there() -> bool:
        return words in log_of(spec)

    await until(there, PATIENCE_S)


def variables_of(spec: DomainSpec) -> tuple[bytes, bytes]:
    """Return its firmware's variables, and those that it began with."""
    fresh = firmware.look().files[spec.machine.firmware].variables
    return Path(spec.variables).read_bytes(), fresh.read_bytes()


async def test_an_installer_is_started_by_uefi_from_a_plain_machine(qemu: WithLibvirt, tmp_path: Path) -> None:
    spec = spec_of(qemu, replace(MACHINES[System.OTHER_UEFI], hardware=MACHINES[System.WINDOWS].hardware))
    await qemu.hypervisor.define(spec)
    await qemu.hypervisor.start(D1)
    await said(spec, efi_iso.HELLO)
    # Its disk is copied while it runs as any other's, twice: the second time what was written since.
    for part in ("run", "desktops"):
        (tmp_path / part).mkdir(exist_ok=True)
    copies = backups(qemu.hypervisor, data_dir=tmp_path, clock=SystemClock())
    for since, point in (("", "kmgr-1"), ("kmgr-1", "kmgr-2")):
        await copies.begin(D1, since=since, point=point)
        await copies.end(D1)
        await copies.keep(D1, point)
    assert list(await copies.points(D1)) == ["kmgr-2"]
    # It noted what it was started from: that is what a version's desktops begin with.
    qemu.power_off(D1)
    own, fresh = variables_of(spec)
    kept = firmware.packed(Path(spec.variables))
    assert 0 < len(kept) < firmware.MOST_BYTES
    assert firmware.unpacked(kept) == own != fresh
    await qemu.hypervisor.remove(D1)
    assert await domains(qemu.hypervisor) == []
    assert variables_of(spec)[0] == own, "the variables go with the disk, not with the domain"


async def test_secure_boot_refuses_what_nobody_signed_and_a_tpm_keeps_it_on_its_server(qemu: WithLibvirt) -> None:
    spec = spec_of(qemu, MACHINES[System.WINDOWS])
    await qemu.hypervisor.define(spec)
    await qemu.hypervisor.start(D1)
    await said(spec, "Access Denied")
    assert efi_iso.HELLO not in log_of(spec)
    with pytest.raises(Refused, match="it has a TPM, which stays on its server"):
        await migrations(qemu.hypervisor).traits(D1)
    domain: Any = qemu.admin.lookupByName(domainxml.domain_name(D1))
    assert "<tpm model='tpm-crb'" in domain.XMLDesc(0)
    await qemu.hypervisor.remove(D1)
    assert await domains(qemu.hypervisor) == []


async def test_it_moves_while_it_runs_and_takes_its_variables_along(
    libvirtd: PrivateLibvirt, tmp_path_factory: pytest.TempPathFactory, guest: Path
) -> None:
    machine = MACHINES[System.OTHER_UEFI]
    other = PrivateLibvirt(tmp_path_factory.mktemp("libvirt-b") / "s", "contract-b")
    for server in (libvirtd, other):
        server.start()
    near = WithLibvirt(tmp_path_factory.mktemp("a"), libvirtd.uri, backing=guest)
    far = WithLibvirt(tmp_path_factory.mktemp("b"), other.uri, backing=guest)
    ours, its = socket.socketpair()
    try:
        spec, there = spec_of(near, machine), spec_of(far, machine)
        await near.hypervisor.define(spec)
        await near.hypervisor.start(D1)
        await said(spec, efi_iso.HELLO)
        fresh = variables_of(there)[0]
        here, away = migrations(near.hypervisor), migrations(far.hypervisor)
        door = str(far.folder / "run" / "door")
        await away.arrive(there, await here.traits(D1), 2, disk_door=door)
        await here.copy_disk(D1, door)
        await until(lambda: ready(here.disk), PATIENCE_S)
        await away.load(D1, its.fileno())
        await here.send(D1, ours.fileno())
        await until(lambda: ready(here.memory), PATIENCE_S)
        await here.finish(D1)
        await until(lambda: away.loaded(D1), PATIENCE_S)
        await away.close_disk(D1)
        await far.hypervisor.start(D1)
        assert [one.state for one in await domains(far.hypervisor)] == [RUNNING]
        await until(lambda: answer(variables_of(there)[0] != fresh), PATIENCE_S)
        assert variables_of(there)[0] == variables_of(spec)[0], "what the firmware had noted came along"
    finally:
        for bench in (near, far):
            await bench.hypervisor.remove(D1)
            await bench.close()
        ours.close()
        its.close()
        other.stop()


async def ready(look: Callable[[DesktopId], Awaitable[Progress]]) -> bool:
    return (await look(D1)).ready


async def answer(value: bool) -> bool:
    return value
