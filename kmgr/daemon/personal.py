"""What personal desktops need on a server, put together: lease and guard, safe copies, former disks.

All of it works on the log itself, never on an island's stand-in: without a
majority there is no lease, and nothing about personal desktops is decided.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.config import Config
from kmgr.daemon.guarding import Guarding
from kmgr.daemon.supervise import Loop
from kmgr.grid.identity import Identity
from kmgr.grid.port import Grid, Requests
from kmgr.grid.queries import settings
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.copy_rights import may_send
from kmgr.provision.halting import Halting
from kmgr.provision.hypervisor import Hypervisor
from kmgr.provision.lease import Lease
from kmgr.provision.libvirt_backup import backups
from kmgr.provision.personal_disks import PersonalDisks
from kmgr.provision.protection import Protection
from kmgr.provision.queries import desktops
from kmgr.provision.tenure import Tenure, this_boot
from kmgr.provision.timely import disk_calls
from kmgr.provision.work import Personal
from kmgr.replica.copies_again import CopiesAgain
from kmgr.replica.images import Images
from kmgr.replica.mirror_receive import Copies
from kmgr.replica.mirror_send import DiskMirror, Slow
from kmgr.replica.protect import BAD_COPIES
from kmgr.replica.scrub import Rules

_ASK_S = 2.0


class PersonalParts:
    """The parts of one server: `loops` to be run, and what its provision agent works with."""

    def __init__(
        self,
        config: Config,
        own: Identity,
        log: Grid,
        requests: Requests,
        images: Images,
        hypervisor: Hypervisor,
        *,
        clock: Clock,
        slow: Slow,
    ) -> None:
        self._log = log
        data_dir = config.data_dir
        blocking = disk_calls()
        guarding = Guarding(data_dir, config.libvirt_uri, own.grid, needed=self._needed, clock=clock)
        tenure = Tenure(log, folder=data_dir / "run", boot=this_boot(), clock=clock)
        lease = Lease(log, clock=clock, tenured=tenure.lasts, guarded=guarding.guarded, told=guarding.told)
        self._lease = lease
        store = Copies(requests, images, clock=clock, seed=self._seed, admit=self._admits)
        self._disks = PersonalDisks(log, store, hypervisor, data_dir=data_dir, clock=clock, blocking=blocking.call)
        self._store = store
        self._again = CopiesAgain(store, folder=data_dir / "copies", rules=self._rules, clock=clock)
        self._halting = Halting(hypervisor, lease.holds, clock=clock)
        lent = backups(hypervisor, data_dir=data_dir, clock=clock)
        self.owe = lent.owe
        mirror = DiskMirror(requests, images, lent, clock=clock, slow=slow)
        self._protection = Protection(
            log, mirror, data_dir=data_dir, clock=clock, holds=lease.holds, blocking=blocking.call
        )
        self.last = self._protection.last
        self.work = Personal(lease, self._disks)
        self.loops: Mapping[str, Loop] = {"former disks": self._disks.run}
        if not config.libvirt_uri:
            return  # no desktops run here
        self.loops = {
            "guard": guarding.run,
            "lease": lease.run,
            "tenure": tenure.run,
            "halting": self._halting.run,
            "former disks": self._disks.run,
            "safe copies": self._protection.run,
            "copies again": self._again.run,
        }

    def vitals(self) -> Mapping[str, Any]:
        """Return what these parts add to the heartbeat."""
        told = dict(self._protection.vitals())
        own: list[str] = []
        if self._needed() and not self._lease.holds():
            own = [problem for problem in (self._halting.problem, self._lease.why_not) if problem]
        extra = {**told["extra"], BAD_COPIES: sorted(self._store.distrusted() | self._disks.missing)}
        return {**told, "extra": extra, "problems": [*own, *told["problems"], *self._again.problems(self._names())]}

    def _names(self) -> Mapping[DesktopId, str]:
        with self._log.view() as db:
            return {desktop.id: desktop.name for desktop in desktops(db)}

    def _rules(self) -> Rules:
        with self._log.view() as db:
            values = settings(db)
        return Rules(values["scrub_days"], values["scrub_mib_s"])

    def _needed(self) -> bool:
        with self._log.view() as db:
            return any(desktop.personal for desktop in desktops(db, server=self._log.server))

    async def _admits(self, sender: ServerId, desktop: DesktopId, generation: int) -> bool:
        """Tell whether points of a desktop's copy are taken from a server."""
        if self._may_send(sender, desktop, generation):
            return True
        # What gave it the right may be a moment old.
        await self._log.barrier(_ASK_S)
        return self._may_send(sender, desktop, generation)

    def _may_send(self, sender: ServerId, desktop: DesktopId, generation: int) -> bool:
        with self._log.view() as db:
            return may_send(db, sender, desktop, generation, to=self._log.server)

    def _seed(self, desktop: DesktopId) -> Path | None:
        return self._disks.seed(desktop)
