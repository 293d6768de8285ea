"""Disks that stand still for a copy: libvirt's pull backups and checkpoints behind the `Backups` protocol.

Facts about libvirt and QEMU that shape this file, each checked by tests/integration:

* A checkpoint is a dirty bitmap in the overlay. An orderly end of QEMU writes it
  down; a power cut leaves it broken, and libvirt then neither counts from it nor
  deletes it other than from its own books: QEMU is told to drop it.
* The lent disk shows everything, the base included. What the overlay holds is
  read from its own tables; pausing the desktop makes QEMU write them down.
* The backup runs in QEMU: it survives this daemon, and libvirt's restart.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kmgr.clock import Clock
from kmgr.errors import NotFound, Refused, Unavailable
from kmgr.ids import DesktopId
from kmgr.provision import backupxml, libvirt_freeze
from kmgr.provision.hypervisor import Hypervisor
from kmgr.provision.libvirt_driver import LibvirtDriver
from kmgr.provision.libvirt_freeze import Freeze
from kmgr.provision.stillness import Told
from kmgr.provision.thawing import Thaws
from kmgr.replica.mirror_port import Backups, CountLost, Moment

try:
    import libvirt
    import libvirt_qemu
except ImportError:  # a server without libvirt still belongs to the grid
    libvirt = None

logger = logging.getLogger(__name__)


class Lender(Backups, Protocol):
    """Backups, and a word about a guest that came from another server without having thawed there."""

    def owe(self, desktop: DesktopId) -> None:
        """Ask a guest on for its thaw, if it is noted that one is owed (`provision.thawing`)."""
        ...


def backups(hypervisor: Hypervisor, *, data_dir: Path, clock: Clock) -> Lender:
    """Return what copies disks of a hypervisor's desktops, or the reason why it can't."""
    if isinstance(hypervisor, LibvirtDriver):
        return LibvirtBackups(hypervisor, data_dir=data_dir, clock=clock)
    return NoBackups(getattr(hypervisor, "reason", "This server's hypervisor cannot lend disks for copies."))


class LibvirtBackups:
    """Backups of the domains of one driver. Sockets lie in `run`, what is written over meanwhile in `desktops`."""

    def __init__(self, driver: LibvirtDriver, *, data_dir: Path, clock: Clock) -> None:
        self._driver = driver
        self._clock = clock
        self._run = data_dir / "run"
        self._disks = data_dir / "desktops"
        self._thaws = Thaws(_Guests(driver), self._run, clock=clock)

    async def running(self, desktop: DesktopId) -> bool:
        """Tell whether QEMU has the disk open."""
        try:
            return await self._driver.with_domain(desktop, lambda domain: bool(domain.isActive()))
        except NotFound:
            return False

    async def points(self, desktop: DesktopId) -> Sequence[str]:
        """Return the checkpoints, oldest first."""
        return await self._driver.with_domain(desktop, _points)

    async def begin(self, desktop: DesktopId, *, since: str, point: str) -> Moment:
        """Freeze, begin a backup and a new checkpoint, thaw."""
        socket, scratch = self._files(desktop)
        now_ms = self._clock.now_ms()

        def begin(domain: Any) -> Moment:
            _end(domain)
            for left in (socket, scratch):
                left.unlink(missing_ok=True)
            backup = backupxml.backup(socket=str(socket), scratch=str(scratch), since=since)
            freeze = Freeze(domain, self._thaws.mark(desktop), now_ms=now_ms)
            try:
                with freeze:
                    _begin(domain, backup, backupxml.checkpoint(point), since=since)
                    frozen = freeze.holds()
            finally:  # on this thread: whoever waits for it may have gone
                self._thaws.owe(desktop)
            return Moment(socket, backupxml.EXPORT, backupxml.BITMAP if since else "", frozen)

        return await self._driver.with_domain(desktop, begin)

    async def end(self, desktop: DesktopId) -> None:
        """Abort the backup; that is how a pull backup ends."""
        with contextlib.suppress(NotFound):  # it went, and its backup with it
            await self._driver.with_domain(desktop, _end)
        for left in self._files(desktop):
            left.unlink(missing_ok=True)

    async def keep(self, desktop: DesktopId, point: str) -> None:
        """Delete all checkpoints but one."""
        with contextlib.suppress(NotFound):
            await self._driver.with_domain(desktop, lambda domain: _keep(domain, point))

    async def recover(self) -> None:
        """Thaw and end whatever an earlier life left: it wrote a note of either on the disk."""
        await self._thaws.recover()
        for socket in sorted(self._run.glob("*.backup")):
            await self._recovered(DesktopId(socket.stem), _end)
            for left in self._files(DesktopId(socket.stem)):
                left.unlink(missing_ok=True)

    async def run(self) -> None:
        """Ask guests that did not say that they thawed, until cancelled."""
        await self._thaws.run()

    def still(self) -> Mapping[DesktopId, int]:
        """Return whose guests have not said so for long, since when."""
        return self._thaws.still()

    def owe(self, desktop: DesktopId) -> None:
        """Ask it on, if it is noted."""
        self._thaws.owe(desktop)

    async def _recovered(self, desktop: DesktopId, work: Callable[[Any], None]) -> None:
        try:
            await self._driver.with_domain(desktop, work)
            logger.info("a copy that was cut short was ended", extra={"desktop": desktop})
        except (NotFound, Refused) as error:
            logger.info("a copy that was cut short is over", extra={"desktop": desktop, "cause": error.message})

    def _files(self, desktop: DesktopId) -> tuple[Path, Path]:
        return self._run / f"{desktop}.backup", self._disks / f"{desktop}.scratch"


class NoBackups:
    """Stands where a server has no hypervisor that could lend disks."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def running(self, desktop: DesktopId) -> bool:
        """Raise the reason."""
        raise Unavailable(self._reason)

    async def points(self, desktop: DesktopId) -> Sequence[str]:
        """Raise the reason."""
        raise Unavailable(self._reason)

    async def begin(self, desktop: DesktopId, *, since: str, point: str) -> Moment:
        """Raise the reason."""
        raise Unavailable(self._reason)

    async def end(self, desktop: DesktopId) -> None:
        """Nothing was begun."""

    async def keep(self, desktop: DesktopId, point: str) -> None:
        """Nothing is kept."""

    async def recover(self) -> None:
        """Nothing was left."""

    async def run(self) -> None:
        """Nothing is to be done."""

    def still(self) -> Mapping[DesktopId, int]:
        """Nobody was told to hold still."""
        return {}

    def owe(self, desktop: DesktopId) -> None:
        """Nobody came here."""


class _Guests:
    """The guests of one driver, for `Thaws`."""

    def __init__(self, driver: LibvirtDriver) -> None:
        self._driver = driver

    async def thaw(self, desktop: DesktopId) -> Told:
        """Ask the agent."""
        return await self._driver.with_domain(desktop, libvirt_freeze.thaw)

    async def press(self, desktop: DesktopId) -> None:
        """Press the keys."""
        await self._driver.with_domain(desktop, libvirt_freeze.press)


def _begin(domain: Any, backup: str, checkpoint: str, *, since: str) -> None:
    pause = not since and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    try:
        if pause:
            domain.suspend()
        domain.backupBegin(backup, checkpoint, 0)
    except libvirt.libvirtError as error:
        if since:
            raise CountLost(f"libvirt cannot count changes from {since}: {error.get_error_message()}") from error
        raise
    finally:
        if pause:
            with contextlib.suppress(libvirt.libvirtError):  # gone, or somebody let it go on
                domain.resume()


def _end(domain: Any) -> None:
    if not domain.isActive():
        return
    try:
        domain.backupGetXMLDesc(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
            return
        raise
    try:
        domain.abortJob()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:  # it ended by itself
            raise


def _points(domain: Any) -> tuple[str, ...]:
    listed = domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
    return tuple(name for name in (each.getName() for each in listed) if name.startswith(backupxml.PREFIX))


def _keep(domain: Any, point: str) -> None:
    broken = False
    # The youngest first: what it counted goes to the one before.
    for name in reversed(_points(domain)):
        if name == point:
            continue
        checkpoint = domain.checkpointLookupByName(name)
        try:
            checkpoint.delete()
        except libvirt.libvirtError:
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
            broken = True
    if broken and domain.isActive():
        _drop_bitmaps(domain, point)


def _drop_bitmaps(domain: Any, point: str) -> None:
    """Have QEMU drop what libvirt cannot delete: bitmaps that a power cut left broken."""
    answer = libvirt_qemu.qemuMonitorCommand(domain, backupxml.QUERY_NODES, 0)
    for command in backupxml.drop_broken(answer, keep=point):
        libvirt_qemu.qemuMonitorCommand(domain, command, 0)
