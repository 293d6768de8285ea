"""Server a of the office with real QEMU, real disks, real time."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt

from kmgr.clock import SystemClock
from kmgr.grid.local import LocalNetwork
from kmgr.ids import DesktopId
from kmgr.provision import domainxml
from kmgr.provision.agent import ProvisionAgent, Shape
from kmgr.provision.attendance import Attendance
from kmgr.provision.display import serve_display, socket_finder
from kmgr.provision.hypervisor import DomainState, Hypervisor
from kmgr.provision.libvirt_driver import connect
from kmgr.provision.libvirt_events import events
from tests.lab.provision import A, Office

BOOT_S = 120


class Real(Office):
    """`mode` says whether desktops are restored from saved memories, as in `kmgr.toml`.

    `image` is version ver-1, `images` has others. One that `listens` hears libvirt's events, as the daemon does.
    """

    def __init__(
        self,
        folder: Path,
        uri: str,
        image: Path,
        *,
        mode: str = "never",
        max_builds: int = 1,
        deadline_s: float = 5,
        listens: bool = False,
    ) -> None:
        self.real = SystemClock()
        self.uri = uri
        self.listens, self.deadline_s = listens, deadline_s
        self.images: dict[str, Path] = {}
        super().__init__(folder, real_clock=self.real)
        self.hypervisor: Hypervisor = connect(uri, grid="grid-1", deadline_s=deadline_s)
        self.image = image
        self.mode, self.max_builds = mode, max_builds
        self.socket = socket_finder(folder)
        self.network = LocalNetwork()
        attendance = Attendance(self.grid, clock=self.real)
        serve_display(self.network.port(A), self.grid, self.hypervisor, socket=self.socket, attendance=attendance)
        self.start()

    def start(self) -> None:
        """Start the agent's loop, as the daemon does."""
        shape = Shape(
            data_dir=self.folder,
            grid_id="grid-1",
            backing=lambda version: self.image if version == "ver-1" else self.images.get(version),
            display=self.socket,
            instant_clones=self.mode,
            max_builds=self.max_builds,
        )
        ear = events(self.uri, deadline_s=self.deadline_s) if self.listens else None
        self.agent = ProvisionAgent(self.grid, self.hypervisor, clock=self.real, shape=shape, events=ear)
        self.task = asyncio.create_task(self.agent.run())

    async def stop(self) -> None:
        """Stop the agent; its desktops run on."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def end(self) -> None:
        """Stop the agent, remove the desktops and let go of everything."""
        await self.stop()
        for status in await self.hypervisor.domains():
            await self.hypervisor.remove(status.desktop)
        await self.hypervisor.close()
        self.grid.close()

    async def until(self, wanted: Callable[[], object], limit_s: float = BOOT_S) -> float:
        """Wait until something is so; returns how long it took."""
        started = time.monotonic()
        while not wanted():
            assert time.monotonic() - started < limit_s, f"still {self.states()}, {self.agent.problems()}"
            await asyncio.sleep(0.1)
        return time.monotonic() - started

    async def domain(self) -> DomainState | None:
        """Return how the hypervisor finds the one desktop."""
        return next((status.state for status in await self.hypervisor.domains()), None)

    async def _state(self, desktop: DesktopId) -> DomainState | None:
        found = {status.desktop: status.state for status in await self.hypervisor.domains()}
        return found.get(desktop)

    async def found_as(self, desktop: DesktopId, state: DomainState, limit_s: float = BOOT_S) -> None:
        """Wait until the hypervisor finds a desktop like that."""
        async with asyncio.timeout(limit_s):
            while state is not await self._state(desktop):  # noqa: ASYNC110 - it is asked, nobody tells
                await asyncio.sleep(0.2)

    async def by_hand(self, desktop: DesktopId, deed: str, *values: Any) -> None:
        """Do to a desktop's domain what an administrator does with virsh."""

        def do() -> None:
            connection = libvirt.open(self.uri)
            getattr(connection.lookupByName(domainxml.domain_name(desktop)), deed)(*values)
            connection.close()

        await asyncio.to_thread(do)
