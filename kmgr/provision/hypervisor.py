"""What kmgr needs from a hypervisor, in kmgr's words.

Every method may be called twice with the same arguments and ends in the same
place. No libvirt object, XML or error code crosses this line. A hypervisor that
does not answer raises `Unavailable`: nothing is known about its domains then. A
step that it refuses raises `Refused` with the cause in plain words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId


class DomainState(StrEnum):
    """How a domain is found."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """All that makes a desktop's domain. `network` is `user`, `bridge:NAME` or `network:NAME`; memory in MiB.

    A `personal` one is marked as such: it runs only under a lease, whoever looks at it.
    """

    desktop: DesktopId
    generation: int
    name: str
    grid: str
    template: str
    vcpus: int
    memory_mib: int
    disk: str
    display: str
    log: str
    accelerator: str
    network: str
    personal: bool = False


@dataclass(frozen=True, slots=True)
class DomainStatus:
    """One of kmgr's domains on this server, as found now."""

    desktop: DesktopId
    generation: int
    state: DomainState
    personal: bool = False


class Hypervisor(Protocol):
    """The hypervisor of this server."""

    async def domains(self) -> Sequence[DomainStatus]:
        """Return every domain of this grid on this server, and none of anybody else's."""
        ...

    async def define(self, spec: DomainSpec) -> None:
        """Make the domain on its existing disk, powered off; replaces an older generation's definition."""
        ...

    async def start(self, desktop: DesktopId) -> None:
        """Power the domain on, or let a paused one go on."""
        ...

    async def suspend(self, desktop: DesktopId) -> None:
        """Halt a running domain, losing nothing; `start` lets it go on. One that does not run is fine."""
        ...

    async def remove(self, desktop: DesktopId) -> None:
        """Pull the plug and forget the domain; its disk stays."""
        ...

    async def answers(self, desktop: DesktopId) -> bool:
        """Tell whether the guest agent answers right now."""
        ...

    async def screenshot(self, desktop: DesktopId) -> bytes:
        """Return a PNG of the guest's screen; `Unavailable` if it has none."""
        ...

    async def close(self) -> None:
        """Let go of the connection; domains run on."""
        ...


class NoHypervisor:
    """Stands where a server has no hypervisor: the daemon runs, the reason is told, desktops are not placed here."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    async def domains(self) -> Sequence[DomainStatus]:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def define(self, spec: DomainSpec) -> None:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def start(self, desktop: DesktopId) -> None:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def suspend(self, desktop: DesktopId) -> None:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def remove(self, desktop: DesktopId) -> None:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def answers(self, desktop: DesktopId) -> bool:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def screenshot(self, desktop: DesktopId) -> bytes:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def close(self) -> None:
        """Nothing to let go of."""
