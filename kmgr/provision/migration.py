"""What a live move needs from the two hypervisors, in kmgr's words. Pure: a protocol and its records.

The desktop is never described by the other server: each makes the domain from
the log. What the running one has besides, and must keep, are a few names
(`Traits`), checked here. Memory and disk go over two open connections that
kmgr hands in; how they get from server to server is not the hypervisor's business.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from kmgr.errors import Refused, Unavailable
from kmgr.grid.model import Processor
from kmgr.ids import DesktopId
from kmgr.provision.hypervisor import DomainSpec

_FORMS: Mapping[str, re.Pattern[str]] = {
    "uuid": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "genid": re.compile(r"([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?"),
    "mac": re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}"),
    "machine": re.compile(r"pc-q35-[0-9]{1,3}\.[0-9]{1,3}"),
    "emulation": re.compile(r"kvm|qemu"),
}


@dataclass(frozen=True, slots=True)
class Traits:
    """What a running domain must keep when it moves. `named_memory`: it was restored from another's memory."""

    uuid: str
    genid: str
    mac: str
    machine: str
    emulation: str
    named_memory: bool

    def to_json(self) -> Mapping[str, Any]:
        """Return it as it is sent to the other server."""
        return asdict(self)


def traits_from(told: Any) -> Traits:
    """Read what another server sent; raise `Refused` for anything but plain values of their forms."""
    if not isinstance(told, Mapping) or set(told) != {*_FORMS, "named_memory"}:
        raise Refused("these are not the traits of a running desktop")
    for name, form in _FORMS.items():
        if not isinstance(told[name], str) or form.fullmatch(told[name]) is None:
            raise Refused(f"the other server names a {name} that this one does not take: {told[name]!r:.60}")
    return Traits(**{name: told[name] for name in _FORMS}, named_memory=told["named_memory"] is True)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one of the two copies is, in bytes. `ready`: all but what changes from now on is there."""

    done: int
    total: int
    ready: bool


class Migrations(Protocol):
    """Live moves on one server's hypervisor: `Refused` tells why one failed, `Unavailable` that nothing is known."""

    async def processor(self) -> Processor | None:
        """Return what desktops see of this server's processors, None if that is not told."""
        ...

    async def traits(self, desktop: DesktopId) -> Traits:
        """Return what a running desktop must keep."""
        ...

    async def begun(self, desktop: DesktopId) -> bool:
        """Tell whether an earlier life of this daemon had begun to move it from here."""
        ...

    async def arrive(self, spec: DomainSpec, traits: Traits, generation: int, *, disk_door: str) -> None:
        """Make the domain, standing still and empty, and open its disk for writing at the unix socket `disk_door`."""
        ...

    async def load(self, desktop: DesktopId, descriptor: int) -> None:
        """Begin to take its memory from an open connection."""
        ...

    async def loaded(self, desktop: DesktopId) -> bool:
        """Tell whether all of the memory has arrived."""
        ...

    async def close_disk(self, desktop: DesktopId) -> None:
        """Let nobody else write to its disk any more: only then may it run."""
        ...

    async def copy_disk(self, desktop: DesktopId, disk_door: str) -> None:
        """Begin to copy its own disk, and all that it writes from now on, to the unix socket `disk_door`."""
        ...

    async def disk(self, desktop: DesktopId) -> Progress:
        """Tell how far the disk is."""
        ...

    async def send(self, desktop: DesktopId, descriptor: int) -> None:
        """Begin to send its memory over an open connection; at the end it stands still (`memory` is ready)."""
        ...

    async def memory(self, desktop: DesktopId) -> Progress:
        """Tell how far the memory is."""
        ...

    async def finish(self, desktop: DesktopId) -> None:
        """Bring the last of disk and memory over, standing still; it does not go on here by itself."""
        ...

    async def stay(self, desktop: DesktopId) -> None:
        """End whatever was begun, and let it go on here."""
        ...


class NoMigrations:
    """Stands where a hypervisor cannot move desktops."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __getattr__(self, name: str) -> Any:
        raise Unavailable(self.reason)
