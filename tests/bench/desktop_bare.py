"""A desktop from nothing to a running domain through kmgr, against libvirt's bare `create()` of the same domain."""

from pathlib import Path

import libvirt

from kmgr.provision import disks, domainxml
from kmgr.provision.hypervisor import DomainSpec
from tests.bench.desktop_start import compared
from tests.bench.harness import Figure, Limit, Stopwatch


async def measure(folder: Path, short: bool) -> list[Figure]:
    """Return the figure: overlay, definition and start are ours, the floor is a start alone."""
    name = "desktop: clone + define + start (floor: bare create)"
    return [await compared(folder, 6 if short else 20, _start_alone, name, limit=Limit(1.05, "floor"))]


def _start_alone(bare: libvirt.virConnect, made: DomainSpec, raw: Path) -> tuple[libvirt.virDomain, float]:
    disks.make_overlay(Path(made.disk), raw)
    domain = bare.defineXML(domainxml.render(made))
    watch = Stopwatch()
    domain.create()
    return domain, watch.ms()
