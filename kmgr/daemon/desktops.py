"""The part of a server that runs desktops: chooses KVM or emulation, then keeps the desktops.

Trying KVM takes seconds, so the daemon does not wait for it: until the choice
is made this server says that it cannot run desktops yet, and why.
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.config import Config
from kmgr.daemon.moves import Moves
from kmgr.daemon.personal import PersonalParts
from kmgr.grid.identity import Identity
from kmgr.grid.port import Grid, Requests
from kmgr.ids import DesktopId, ServerId, TemplateId, VersionId
from kmgr.provision import accelerator, guest
from kmgr.provision.agent import ProvisionAgent, Shape
from kmgr.provision.attendance import Attendance
from kmgr.provision.canary_watch import CanaryWatch
from kmgr.provision.capturing import Capturing
from kmgr.provision.display import serve_display, socket_finder
from kmgr.provision.libvirt_driver import connect
from kmgr.provision.libvirt_events import events
from kmgr.provision.logons import LogOns
from kmgr.provision.pressure import Meter
from kmgr.provision.storm import bounds_of
from kmgr.provision.storm_watch import StormWatch
from kmgr.provision.timely import disk_calls
from kmgr.provision.warming import AGAIN
from kmgr.replica.images import Images
from kmgr.replica.mirror_send import Slow
from kmgr.templates.importer import Importer

logger = logging.getLogger(__name__)

_CHOOSING = "This server is finding out whether KVM works here; that takes a few seconds after a start."


class Desktops:
    """This server's desktops. `run()` goes on until it is cancelled; domains run on after it."""

    def __init__(
        self,
        config: Config,
        own: Identity,
        grid: Grid,
        requests: Requests,
        images: Images,
        importer: Importer,
        *,
        log: Grid,
        clock: Clock,
        slow: Slow,
    ) -> None:
        self._config = config
        self._own = own
        self._grid = grid
        self._images = images
        self._clock = clock
        self._hypervisor = connect(config.libvirt_uri, grid=own.grid)
        self._events = events(config.libvirt_uri)
        self._display = socket_finder(config.data_dir)
        self.personal = PersonalParts(config, own, log, requests, images, self._hypervisor, clock=clock, slow=slow)
        self.moves = Moves(
            log,
            requests,
            self._hypervisor,
            data_dir=config.data_dir,
            clock=clock,
            may_run=self.personal.work.lease.allows,
            owe=self.personal.owe,
            last=self.personal.last,
        )
        self._capturing = Capturing(
            grid, self._hypervisor, importer, clock=clock, data_dir=config.data_dir, backing=self._backing
        )
        self._storm = StormWatch(
            bounds_of(os.cpu_count() or 1, config.max_builds),
            Meter(config.data_dir / "desktops", clock=clock).read,
            clock=clock,
            blocking=disk_calls().call,
        )
        self._agent: ProvisionAgent | None = None
        self.attendance = Attendance(
            grid, clock=clock, tell=lambda desktop, text: guest.tell(self._hypervisor, desktop.id, text)
        )
        requests.serve(AGAIN, self._try_clones)
        self.log_ons = LogOns(grid, self._hypervisor, clock=clock)
        self.attendance.serve(requests)
        serve_display(requests, grid, self._hypervisor, socket=self._display, attendance=self.attendance)

    def vitals(self) -> Mapping[str, Any]:
        """Return what this part adds to the heartbeat."""
        if self._agent is None:
            return {"can_run_desktops": False, "problems": [_CHOOSING]}
        return self._agent.vitals()

    def waiting(self, desktop: DesktopId) -> str:
        """Return what a desktop on this server waits for, empty if nothing."""
        return "" if self._agent is None else self._agent.waiting(desktop)

    async def run(self) -> None:
        """Choose the accelerator, then keep the desktops."""
        if self._agent is None:
            self._agent = await self._made()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._agent.run())
            group.create_task(self._storm.run())
            group.create_task(CanaryWatch(self._grid, self._hypervisor, clock=self._clock).run())
            group.create_task(self.moves.run(self._agent.making))
            group.create_task(self._capturing.run())

    async def close(self) -> None:
        """Let go of the hypervisor."""
        if self._events is not None:
            await self._events.close()
        await self._hypervisor.close()

    async def _try_clones(self, _: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        logger.info("instant clones are tried again", extra={"template": body["template"], "by": str(body.get("by"))})
        if self._agent is not None:
            await self._agent.try_clones(TemplateId(str(body["template"])))
        return {}

    async def _made(self) -> ProvisionAgent:
        config = self._config
        chosen = await accelerator.choose(
            config.accelerator if config.libvirt_uri else "tcg", memory=config.data_dir / "run" / "accelerator.json"
        )
        if config.libvirt_uri:
            logger.info("desktops run here", extra={"accelerator": chosen.name, "why": chosen.reason})
        shape = Shape(
            data_dir=config.data_dir,
            grid_id=self._own.grid,
            backing=self._backing,
            display=self._display,
            accelerator=chosen.name,
            network=config.network,
            instant_clones=config.instant_clones,
        )
        return ProvisionAgent(
            self._grid,
            self._hypervisor,
            clock=self._clock,
            shape=shape,
            personal=self.personal.work,
            elsewhere=lambda: {*self.moves.holds(), *self._capturing.holds()},
            events=self._events,
            storm=self._storm,
        )

    def _backing(self, version: VersionId) -> Path | None:
        path = self._images.path(version)
        return path if path.exists() else None
