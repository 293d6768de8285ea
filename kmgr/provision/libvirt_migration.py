"""Live moves with local disks, through QEMU's monitor: no libvirt talks to another server's libvirt.

libvirt's own migration would need its daemons to reach each other, and each would be
root on the other. Here each server speaks to its own QEMU only. Facts about QEMU
that shape this file, each checked by tests/integration:

* The receiving QEMU opens its disk only when it is let go on (`late-block-activate`);
  until then the disk can be lent for writing, and must be taken back before.
* The sending QEMU stops the guest and waits (`pause-before-switchover`): what the disk
  lacks then is brought over, and only after that the last of the memory.
* After all was sent the guest stands still; `cont` would let it go on here.
* libvirt sees none of it but a domain that was started paused, and one that stopped.

Blocking calls run on the driver's threads.
"""

from collections.abc import Mapping
from typing import Any

from kmgr.errors import NotFound, Refused
from kmgr.grid.model import Processor
from kmgr.ids import DesktopId
from kmgr.provision import movexml, processors
from kmgr.provision.hypervisor import DomainSpec, Hypervisor
from kmgr.provision.libvirt_driver import LibvirtDriver
from kmgr.provision.libvirt_monitor import ask, attempt, lend, soon
from kmgr.provision.migration import Migrations, NoMigrations, Progress, Traits

try:
    import libvirt
except ImportError:  # a server without libvirt still belongs to the grid
    libvirt = None

EXPORT = "disk"
_JOB = "kmgr-move"
_NODE = "kmgr-move-disk"
_FD = "kmgr-move-memory"
# What a guest may stand still for while the last of its memory goes over.
_DOWNTIME_MS = 300
_MOST_BYTES_A_SECOND = 1 << 30
_RUNNING = ("active", "setup", "device", "pre-switchover", "wait-unplug")


def migrations(hypervisor: Hypervisor) -> Migrations:
    """Return what moves a hypervisor's desktops, or the reason why it can't."""
    if isinstance(hypervisor, LibvirtDriver):
        return LibvirtMigrations(hypervisor)
    return NoMigrations(getattr(hypervisor, "reason", "This server's hypervisor cannot move desktops."))


class LibvirtMigrations:
    """Live moves of the domains of one driver."""

    def __init__(self, driver: LibvirtDriver) -> None:
        self._driver = driver
        self._processor: Processor | None = None

    async def processor(self) -> Processor | None:
        """Ask libvirt, until it told once: another one is for another start of this machine."""
        if self._processor is None:
            self._processor = processors.read(await self._driver.with_connection(lambda one: one.getCapabilities()))
        return self._processor

    async def traits(self, desktop: DesktopId) -> Traits:
        """Return what a running desktop must keep."""
        return await self._driver.with_domain(desktop, lambda domain: movexml.traits(domain.XMLDesc(0)))

    async def begun(self, desktop: DesktopId) -> bool:
        """Look for a copy of the disk, memory that is being sent, or a guest that was stopped for it."""

        def look(domain: Any) -> bool:
            if not domain.isActive():
                return False
            status = ask(domain, "query-status")["status"]
            return bool(_jobs(domain)) or _sending(domain) or status in ("postmigrate", "finish-migrate")

        return await self._driver.with_domain(desktop, look)

    async def arrive(self, spec: DomainSpec, traits: Traits, generation: int, *, disk_door: str) -> None:
        """Start a domain that waits for its memory, define it for later, and lend its disk."""
        waiting = movexml.arriving(spec, traits, generation)
        settled = movexml.settled(spec, traits, generation)

        def make(connection: Any) -> None:
            domain = connection.createXML(waiting, libvirt.VIR_DOMAIN_START_PAUSED)
            try:
                connection.defineXML(settled)
                _able(domain, {"late-block-activate": True, "x-ignore-shared": False})
                ask(domain, "nbd-server-start", {"addr": {"type": "unix", "data": {"path": disk_door}}})
                lent = {"type": "nbd", "id": _JOB, "node-name": _disk(domain), "name": EXPORT, "writable": True}
                ask(domain, "block-export-add", lent)
            except BaseException:
                domain.destroy()
                raise

        await self._driver.with_connection(make)

    async def load(self, desktop: DesktopId, descriptor: int) -> None:
        """Hand QEMU the connection that the memory comes from."""

        def load(domain: Any) -> None:
            lend(domain, _FD, descriptor)
            ask(domain, "migrate-incoming", {"uri": f"fd:{_FD}"})

        await self._driver.with_domain(desktop, load)

    async def loaded(self, desktop: DesktopId) -> bool:
        """Ask QEMU."""

        def look(domain: Any) -> bool:
            if not domain.isActive():
                raise Refused("the memory did not arrive whole: QEMU gave up")
            if ask(domain, "query-status")["status"] != "inmigrate":
                return True
            _failed(ask(domain, "query-migrate"), "load the memory")
            return False

        return await self._driver.with_domain(desktop, look)

    async def close_disk(self, desktop: DesktopId) -> None:
        """Take the disk back."""
        await self._driver.with_domain(desktop, lambda domain: attempt(domain, "nbd-server-stop"))

    async def copy_disk(self, desktop: DesktopId, disk_door: str) -> None:
        """Mirror what the overlay holds; the base is there already."""

        def begin(domain: Any) -> None:
            door = {"type": "unix", "path": disk_door}
            ask(domain, "blockdev-add", {"driver": "nbd", "node-name": _NODE, "server": door, "export": EXPORT})
            ask(
                domain,
                "blockdev-mirror",
                {
                    "job-id": _JOB,
                    "device": _disk(domain),
                    "target": _NODE,
                    "sync": "top",
                    "on-target-error": "report",
                },
            )

        await self._driver.with_domain(desktop, begin)

    async def disk(self, desktop: DesktopId) -> Progress:
        """Ask for the mirror; one that is gone broke off."""

        def look(domain: Any) -> Progress:
            for job in _jobs(domain):
                return Progress(job["offset"], job["len"], bool(job["ready"]))
            raise Refused("copying the disk broke off: see whether the other server or its disk failed")

        return await self._driver.with_domain(desktop, look)

    async def send(self, desktop: DesktopId, descriptor: int) -> None:
        """Hand QEMU the connection that the memory goes to."""

        def send(domain: Any) -> None:
            _able(domain, {"pause-before-switchover": True, "auto-converge": True, "x-ignore-shared": False})
            limits = {"downtime-limit": _DOWNTIME_MS, "max-bandwidth": _MOST_BYTES_A_SECOND}
            ask(domain, "migrate-set-parameters", limits)
            lend(domain, _FD, descriptor)
            ask(domain, "migrate", {"uri": f"fd:{_FD}"})

        await self._driver.with_domain(desktop, send)

    async def memory(self, desktop: DesktopId) -> Progress:
        """Ask QEMU; ready is when the guest stands still for the last of it."""

        def look(domain: Any) -> Progress:
            told = ask(domain, "query-migrate")
            _failed(told, "send the memory")
            ram = told.get("ram", {})
            total = int(ram.get("total", 0))
            return Progress(total - int(ram.get("remaining", total)), total, told.get("status") == "pre-switchover")

        return await self._driver.with_domain(desktop, look)

    async def finish(self, desktop: DesktopId) -> None:
        """Bring over what is left. The guest stands still all the time: each step that ends is looked for often."""

        def finish(domain: Any) -> None:
            ask(domain, "block-job-cancel", {"device": _JOB})
            soon(lambda: not _jobs(domain), "bringing over the last of the disk")
            ask(domain, "blockdev-del", {"node-name": _NODE})
            ask(domain, "migrate-continue", {"state": "pre-switchover"})
            soon(lambda: _all_sent(domain), "bringing over the last of the memory")

        await self._driver.with_domain(desktop, finish)

    async def stay(self, desktop: DesktopId) -> None:
        """Undo whatever there is, in the order in which it can be undone."""

        def stay(domain: Any) -> None:
            if not domain.isActive():
                return
            if _sending(domain):
                attempt(domain, "migrate_cancel")
                soon(lambda: not _sending(domain), "ending the move")
            if _jobs(domain):
                attempt(domain, "block-job-cancel", {"device": _JOB, "force": True})
                soon(lambda: not _jobs(domain), "ending the copy of the disk")
            attempt(domain, "blockdev-del", {"node-name": _NODE})
            if ask(domain, "query-status")["status"] in ("postmigrate", "finish-migrate"):
                ask(domain, "cont")

        try:
            await self._driver.with_domain(desktop, stay)
        except NotFound:
            return


def _all_sent(domain: Any) -> bool:
    told = ask(domain, "query-migrate")
    _failed(told, "send the memory")
    return bool(told.get("status") == "completed")


def _sending(domain: Any) -> bool:
    return ask(domain, "query-migrate").get("status") in (*_RUNNING, "cancelling")


def _failed(told: Mapping[str, Any], what: str) -> None:
    if told.get("status") in ("failed", "cancelled", "cancelling"):
        raise Refused(f"QEMU could not {what}: {told.get('error-desc', 'the connection broke')}")


def _jobs(domain: Any) -> list[Mapping[str, Any]]:
    return [job for job in ask(domain, "query-block-jobs") if job.get("device") == _JOB]


def _disk(domain: Any) -> str:
    """Return QEMU's name of the desktop's own disk."""
    for block in ask(domain, "query-block"):
        inserted = block.get("inserted")
        if inserted and inserted.get("drv") == "qcow2":
            return str(inserted["node-name"])
    raise Refused("this domain was changed by hand: it has no linked clone")


def _able(domain: Any, wanted: Mapping[str, bool]) -> None:
    states = [{"capability": name, "state": state} for name, state in wanted.items()]
    ask(domain, "migrate-set-capabilities", {"capabilities": states})
