"""What lets desktops come from and go to other servers while they run, put together. All of it on the log itself."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.grid.port import Grid, Requests
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.arriving import Arriving, Making
from kmgr.provision.cold_moves import ColdMoves
from kmgr.provision.hypervisor import Hypervisor
from kmgr.provision.libvirt_migration import migrations
from kmgr.provision.model import Desktop
from kmgr.provision.moving import Moving
from kmgr.provision.timely import disk_calls
from kmgr.replica.mirror import CopyPoint


class Moves:
    """The moves of one server. Before `run` nothing arrives and nothing leaves."""

    def __init__(
        self,
        log: Grid,
        requests: Requests,
        hypervisor: Hypervisor,
        *,
        data_dir: Path,
        clock: Clock,
        may_run: Callable[[Desktop], bool],
        owe: Callable[[DesktopId], None],
        last: Callable[[Desktop, ServerId], Awaitable[CopyPoint]],
    ) -> None:
        self._log = log
        self._requests = requests
        self._hypervisor = hypervisor
        self._data_dir = data_dir
        self._clock = clock
        self._may_run = may_run
        self._owe = owe
        self._able = migrations(hypervisor)
        cold = ColdMoves(log, hypervisor, last, clock=clock, may_run=may_run)
        self._moving = Moving(
            log, requests, self._able, run_dir=data_dir / "run", clock=clock, may_run=may_run, cold=cold
        )
        self._arriving: Arriving | None = None

    def holds(self) -> frozenset[DesktopId]:
        """Return the desktops that are on their way from or to this server."""
        coming = self._arriving.holds() if self._arriving is not None else frozenset()
        return self._moving.holds() | coming

    def vitals(self) -> Mapping[str, Any]:
        """Return what this part adds to the heartbeat."""
        return self._moving.vitals()

    async def run(self, making: Making) -> None:
        """Let desktops come and go until cancelled; `making` is how this server makes them."""
        if self._arriving is None:
            self._arriving = Arriving(
                self._log,
                self._requests,
                self._hypervisor,
                self._able,
                making=making,
                data_dir=self._data_dir,
                clock=self._clock,
                blocking=disk_calls().call,
                may_run=self._may_run,
                owe=self._owe,
            )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._moving.run())
            group.create_task(self._arriving.run())
