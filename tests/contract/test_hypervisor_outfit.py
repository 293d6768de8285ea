"""A desktop's domain gets other processors and devices: from its next start on, on every hypervisor."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from kmgr.errors import NotFound
from kmgr.provision import domainxml, iso
from kmgr.provision.hypervisor import DomainStatus
from kmgr.templates.policy import Devices
from tests.lab.hypervisors import D1, OFF, RUNNING, Bench, InMemory, WithLibvirt, domains, until

pytest.importorskip("libvirt")


def found(bench: Bench, *, running: bool) -> tuple[int, bool, str]:
    """Return processors, whether there is a sound card, and the seed, of the running or the stored definition."""
    if isinstance(bench, InMemory):
        spec = bench.hypervisor.spec(D1)  # type: ignore[attr-defined]
        return spec.vcpus, spec.devices.sound, spec.seed
    assert isinstance(bench, WithLibvirt)
    domain: Any = bench.admin.lookupByName(domainxml.domain_name(D1))
    root = ET.fromstring(domain.XMLDesc(0 if running else 2))  # noqa: S314 - libvirt's own output
    seed = root.find("devices/disk[@device='cdrom']/source")
    return (
        int(root.findtext("vcpu") or 0),
        root.find("devices/sound") is not None,
        seed.get("file", "") if seed is not None else "",
    )


async def test_another_outfit_counts_from_the_next_start_on(bench: Bench) -> None:
    it = bench.hypervisor
    with pytest.raises(NotFound):
        await it.redefine(bench.spec(D1))
    await it.define(bench.spec(D1))
    await it.start(D1)
    spec = bench.spec(D1)
    seed = Path(spec.disk).with_suffix(".seed.iso")
    seed.parent.mkdir(exist_ok=True)
    seed.write_bytes(iso.image("CIDATA", {"meta-data": b"{}\n", "user-data": b"#cloud-config\n"}))
    other = replace(spec, vcpus=2, seed=str(seed), devices=Devices(clipboard=True, sound=True, video_mib=64))
    for _ in range(2):
        await it.redefine(other)
    assert await domains(it) == [DomainStatus(D1, 1, RUNNING)], "what runs goes on"
    if isinstance(bench, WithLibvirt):
        assert found(bench, running=True) == (1, False, "")
    assert found(bench, running=False) == (2, True, str(seed))
    bench.power_off(D1)
    assert await domains(it) == [DomainStatus(D1, 1, OFF)]
    await it.start(D1)
    assert found(bench, running=True) == (2, True, str(seed))
    if bench.has_agent:
        await until(lambda: it.answers(D1), 120)
    await it.remove(D1)
