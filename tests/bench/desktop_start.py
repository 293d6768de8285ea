"""A desktop from nothing to a running domain: kmgr's linked clone and driver, against the same by hand."""

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import libvirt

from appliance.image import tiny
from appliance.lab.node import PrivateLibvirt
from kmgr.ids import DesktopId
from kmgr.provision import disks, domainxml
from kmgr.provision.hypervisor import DomainSpec
from kmgr.provision.libvirt_driver import connect
from tests.bench.harness import Figure, Limit, Stopwatch, alternate, figure

GRID = "grid-bench"
MEMORY_MIB = 192


# Makes and starts the domain of a spec on a raw file without kmgr; returns it and how long what counts took (ms).
ByHand = Callable[[libvirt.virConnect, DomainSpec, Path], tuple[libvirt.virDomain, float]]


async def measure(folder: Path, runs: int) -> list[Figure]:
    """Return the figure of clone + define + start."""
    return [await compared(folder, runs, _all_by_hand, "desktop: clone + define + start")]


async def compared(folder: Path, runs: int, by_hand: ByHand, name: str, *, limit: Limit | None = None) -> Figure:
    """Return how long overlay, definition and start take by kmgr, beside what is done by hand, in turn."""
    server = PrivateLibvirt(folder / "libvirt", "bench")
    await asyncio.to_thread(server.start)
    try:
        mine, low = await _compared(server, folder, runs, by_hand)
    finally:
        await asyncio.to_thread(server.stop)
    return figure(name, mine, unit="ms", floor=low, limit=limit)


async def _compared(
    server: PrivateLibvirt, folder: Path, runs: int, by_hand: ByHand
) -> tuple[list[float], list[float]]:
    raw = await asyncio.to_thread(image, folder)
    driver = connect(server.uri, grid=GRID)
    bare = libvirt.open(server.uri)

    async def ours(turn: int) -> float:
        made = spec(folder, f"dsk-ours{turn}")
        watch = Stopwatch()
        await asyncio.to_thread(disks.make_overlay, Path(made.disk), raw)
        await driver.define(made)
        await driver.start(made.desktop)
        took = watch.ms()
        await driver.remove(made.desktop)
        return took

    def done_by_hand(turn: int) -> float:
        domain, took = by_hand(bare, spec(folder, f"dsk-hand{turn}"), raw)
        domain.destroy()
        domain.undefine()
        return took

    async def floor(turn: int) -> float:
        return await asyncio.to_thread(done_by_hand, turn)

    try:
        return await alternate(runs, ours, floor)
    finally:
        await driver.close()
        bare.close()


def _all_by_hand(bare: libvirt.virConnect, made: DomainSpec, raw: Path) -> tuple[libvirt.virDomain, float]:
    xml = domainxml.render(made)
    watch = Stopwatch()
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(raw), made.disk]
    subprocess.run(create, check=True)
    domain = bare.defineXML(xml)
    domain.create()
    return domain, watch.ms()


def image(folder: Path) -> Path:
    """Return the test guest as a raw file, in a folder made for its desktops."""
    (folder / "desktops").mkdir()
    raw = folder / "image.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", tiny.cached(), raw], check=True)
    return raw


def spec(folder: Path, desktop: str) -> DomainSpec:
    """Return what the domain of one is made from."""
    return DomainSpec(
        desktop=DesktopId(desktop),
        generation=1,
        name=desktop,
        grid=GRID,
        template="bench",
        vcpus=1,
        memory_mib=MEMORY_MIB,
        disk=str(folder / "desktops" / f"{desktop}.qcow2"),
        display=str(folder / f"{desktop}.vnc"),
        log=str(folder / f"{desktop}.log"),
        accelerator="tcg",
        network="user",
    )
