"""Desktops restored from a saved memory against the same guest booting: seconds, memory and disk of each.

One server's agent as the daemon runs it, on real QEMU. Two templates of the same
shape: one restores, one says that every desktop boots by itself.
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from appliance.lab.node import PrivateLibvirt
from kmgr.ids import DesktopId
from kmgr.provision import disks, domainxml, warm_files
from kmgr.provision.model import Origin
from tests.bench.desktop_start import image
from tests.bench.harness import Figure, Limit, figure
from tests.lab.provision import A, done
from tests.lab.real_desk import Real

MEMORY_MIB = 192
CROWD = 20
# VMware's published figure for Horizon's instant clones: 100 in 1.4 minutes, on other hardware and with Windows.
HORIZON_PER_MINUTE = 71.0
LIMIT_S = 600.0
CALM_S = 10.0
COMPARED = 3


async def measure(folder: Path, short: bool) -> list[Figure]:
    """Return the figures of both kinds of desktops."""
    server = PrivateLibvirt(folder / "libvirt", "bench")
    await asyncio.to_thread(server.start)
    real: Real | None = None
    try:
        raw = await asyncio.to_thread(image, folder)
        builds = (os.cpu_count() or 1) + 1
        real = Real(folder, server.uri, raw, mode="shared", max_builds=builds, deadline_s=60)
        await real.found(memory_mib=MEMORY_MIB, standby=0, maximum=200)
        return await Clones(real).figures(3 if short else 10, crowds=1 if short else 5)
    finally:
        if real is not None:
            await real.stop()
            for status in await real.hypervisor.domains():
                await real.hypervisor.remove(status.desktop)
            await real.hypervisor.close()
            real.grid.close()
        await asyncio.to_thread(server.stop)


class Clones:
    """The runs, one after the other."""

    def __init__(self, real: Real) -> None:
        self._real = real
        self._made = 0

    async def figures(self, runs: int, *, crowds: int) -> list[Figure]:
        """Boot and restore in turn, then many at once, some times; look at what they take."""
        real = self._real
        shape = {"image": "img", "version": "ver-1", "vcpus": 1, "memory_mib": MEMORY_MIB, "standby": 0}
        more = {"maximum": 200, "refresh": "on_logout", "policy": {"instant_clone": "never"}}
        done(await real.do("template.create", template="cold", name="cold", notes="", **shape, **more))
        first = await self._place("tpl")
        await self._ready([first])
        await self._until(lambda: warm_files.kept(real.folder))
        saved = warm_files.kept(real.folder)[0]
        booted: list[float] = []
        restored: list[float] = []
        cold: list[DesktopId] = []
        for _ in range(runs):
            name = await self._place("cold")
            booted.append(await self._ready([name]))
            cold.append(name)
            name = await self._place("tpl")
            restored.append(await self._ready([name]))
            await self._gone([name])
        # Ten booted guests that stand by take a twentieth of this machine; three are enough to compare memory with.
        await self._gone([first, *cold[COMPARED:]])
        del cold[COMPARED:]
        crowd: list[DesktopId] = []
        took: list[float] = []
        for _ in range(crowds):
            await self._gone(crowd)
            started = time.monotonic()
            crowd = [await self._place("tpl") for _ in range(CROWD)]
            await self._ready(crowd)
            took.append(time.monotonic() - started)
            origins = [real.one(name).origin for name in crowd]
            assert origins == [Origin.WARM] * CROWD, f"not all were restored: {origins}, {real.agent.vitals()}"
            await asyncio.sleep(CALM_S)
        return [
            figure(
                "instant clone to ready (floor: booted to ready)",
                restored,
                unit="s",
                floor=booted,
                limit=Limit(1 / 5, "floor"),
            ),
            figure(f"{CROWD} instant clones, all ready", took, unit="s", limit=Limit(10)),
            figure(
                "instant clones per minute (peer: Horizon, as published)",
                [60 * CROWD / one for one in took],
                unit="/min",
                peer=[HORIZON_PER_MINUTE],
                limit=Limit(1, "peer", at_least=True),
            ),
            figure(
                "private memory of a clone (floor: booted)",
                _private(crowd),
                unit="MiB",
                floor=_private(cold),
                limit=Limit(1 / 3, "floor"),
            ),
            figure(
                "disk of a clone (floor: booted)",
                self._disk(crowd),
                unit="MiB",
                floor=self._disk(cold),
            ),
            figure("disk of the saved memory, once", [saved.bytes / (1 << 20)], unit="MiB"),
        ]

    async def _place(self, template: str) -> DesktopId:
        self._made += 1
        name = DesktopId(f"dsk-{self._made:012}")
        done(await self._real.do("desktop.place", desktop=name, template=template, version="ver-1", server=A))
        return name

    async def _ready(self, names: list[DesktopId]) -> float:
        started = time.monotonic()
        await self._until(lambda: all(self._real.states()[name] == "ready" for name in names))
        return time.monotonic() - started

    async def _gone(self, names: list[DesktopId]) -> None:
        for name in names:
            done(await self._real.do("desktop.retire", desktop=name, why="it was measured"))
        await self._until(lambda: not set(names) & set(self._real.states()))

    async def _until(self, wanted: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not wanted():
            assert time.monotonic() < deadline, f"{self._real.states()} {self._real.agent.vitals()}"
            await asyncio.sleep(0.02)

    def _disk(self, names: list[DesktopId]) -> list[float]:
        paths = [disks.overlay_path(self._real.folder, name) for name in names]
        return [path.stat().st_blocks * 512 / (1 << 20) for path in paths]


def _private(names: list[DesktopId]) -> list[float]:
    """Return the memory that belongs to each desktop's QEMU alone."""
    wanted = {f"guest={domainxml.domain_name(name)}," for name in names}
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if any(one in line for one in wanted):
            found.append(process.memory_full_info().uss / (1 << 20))
    assert len(found) == len(names)
    return found
