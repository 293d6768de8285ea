"""Two servers between which desktops move: the real rules and moving parts, fake hypervisors, real connections."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kmgr.clock import Clock, SystemClock
from kmgr.grid.local import LocalGrid, LocalNetwork
from kmgr.ids import DesktopId, ServerId
from kmgr.provision import disks
from kmgr.provision.agent import ProvisionAgent, Shape
from kmgr.provision.arriving import Arriving
from kmgr.provision.fake import FakeHypervisor
from kmgr.provision.fake_migration import FakeMigrations
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.model import Desktop
from kmgr.provision.moving import Moving
from kmgr.provision.timely import at_once
from tests.lab.provision import A, B, Office, done


class Side:
    """One of the two servers."""

    def __init__(self, office: "Movers", server: ServerId, grid: LocalGrid) -> None:
        self.folder = office.folder / server
        for part in ("desktops", "run"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.server, self.grid, self.office = server, grid, office
        self.hypervisor = FakeHypervisor(office.real, boot_s=0)
        self.migrations = FakeMigrations(self.hypervisor)
        self.requests = office.network.port(server)
        self.may_run = True
        self.owed: list[DesktopId] = []
        self.restart()

    def outward(self, part: Any) -> Any:
        """Return something outside of the daemon's process as the daemon sees it."""
        return part

    def restart(self) -> None:
        """Make its parts, or make them anew as another daemon would."""
        grid, requests = self.outward(self.grid), self.outward(self.requests)
        hypervisor, migrations = self.outward(self.hypervisor), self.outward(self.migrations)
        shape = Shape(
            data_dir=self.folder,
            grid_id="grid-1",
            backing=self.office.raw,
            display=lambda desktop: self.folder / "run" / f"{desktop}.vnc",
        )
        self.agent = ProvisionAgent(
            grid,
            hypervisor,
            clock=self.office.real,
            shape=shape,
            blocking=at_once,
            elsewhere=lambda: self.moving.holds() | self.arriving.holds(),
        )
        self.moving = Moving(
            grid,
            requests,
            migrations,
            run_dir=self.folder / "run",
            clock=self.office.real,
            may_run=lambda _: self.may_run,
        )
        self.arriving = Arriving(
            grid,
            requests,
            hypervisor,
            migrations,
            making=self.agent.making,
            data_dir=self.folder,
            clock=self.office.real,
            blocking=at_once,
            may_run=lambda _: self.may_run,
            owe=self.owed.append,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Run its loops."""
        self._tasks = [asyncio.create_task(run()) for run in (self.agent.run, self.moving.run, self.arriving.run)]

    async def kill(self) -> None:
        """End its loops wherever they are; what its hypervisor does goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def state(self, desktop: str) -> DomainState | None:
        """Return what its hypervisor has of a desktop."""
        return {d.desktop: d.state for d in await self.hypervisor.domains()}.get(DesktopId(desktop))

    def disk(self, desktop: str) -> Path:
        """Return where a desktop's own disk lies here."""
        return disks.overlay_path(self.folder, DesktopId(desktop))


class Movers(Office):
    """The office with both servers whole; `dsk-1` is anna's, on server a."""

    side: type[Side] = Side

    def __init__(self, folder: Path, *, clock: Clock | None = None) -> None:
        self.real = clock or SystemClock()
        super().__init__(folder, real_clock=self.real)
        self.network = LocalNetwork()
        self.a, self.b = self.side(self, A, self.grid), self.side(self, B, self.member(B))

    async def open(self, **template: Any) -> None:
        """Found the grid; a desktop runs on a for anna."""
        await self.found(**template)
        done(await self.do("version.here", version="ver-1", server=B))
        done(await self.place("dsk-1"))
        for side in (self.a, self.b):
            side.start()
        await self.until(lambda: self.one("dsk-1").state == "ready")
        done(await self.do("desktop.claim", user="anna", template="tpl"))

    async def close(self) -> None:
        """End all loops."""
        for side in (self.a, self.b):
            await side.kill()
            side.migrations.close()
        await asyncio.sleep(0.01)

    async def move(self, name: str = "dsk-1") -> None:
        """Let it go to b."""
        now = self.one(name)
        body = {"desktop": name, "generation": now.generation, "server": now.server}
        done(await self.do("desktop.move", **body, target=B, why="its server drains"))

    async def until(self, holds: Callable[[], Any], limit_s: float = 20.0) -> None:
        """Wait until something holds, a coroutine's answer included."""
        async with asyncio.timeout(limit_s):
            while True:
                told = holds()
                if await told if asyncio.iscoroutine(told) else told:
                    return
                await asyncio.sleep(0.02)

    def moved(self, name: str = "dsk-1") -> Desktop:
        """Return the record, which must not be on its way any more."""
        now = self.one(name)
        assert now.moving_to is None
        return now
