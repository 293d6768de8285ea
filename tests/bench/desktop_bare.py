"""A desktop from nothing to a running domain through kmgr, against libvirt's bare `create()` of the same domain."""

import asyncio
from pathlib import Path

import libvirt

from appliance.lab.node import PrivateLibvirt
from kmgr.provision import disks, domainxml
from kmgr.provision.libvirt_driver import connect
from tests.bench.desktop_start import GRID, image, spec
from tests.bench.harness import Figure, Stopwatch, alternate, figure


async def measure(folder: Path, short: bool) -> list[Figure]:
    """Return the figure: overlay, definition and start are ours, the floor is a start alone."""
    server = PrivateLibvirt(folder / "libvirt", "bench")
    await asyncio.to_thread(server.start)
    try:
        return [await _measured(server, folder, 6 if short else 20)]
    finally:
        await asyncio.to_thread(server.stop)


async def _measured(server: PrivateLibvirt, folder: Path, runs: int) -> Figure:
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

    def by_hand(turn: int) -> float:
        made = spec(folder, f"dsk-hand{turn}")
        disks.make_overlay(Path(made.disk), raw)
        domain = bare.defineXML(domainxml.render(made))
        watch = Stopwatch()
        domain.create()
        took = watch.ms()
        domain.destroy()
        domain.undefine()
        return took

    async def floor(turn: int) -> float:
        return await asyncio.to_thread(by_hand, turn)

    try:
        mine, low = await alternate(runs, ours, floor)
    finally:
        await driver.close()
        bare.close()
    return figure("desktop: clone + define + start (floor: bare create)", mine, unit="ms", floor=low)
