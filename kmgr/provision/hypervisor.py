"""What kmgr needs from a hypervisor, in kmgr's words.

Every method may be called twice with the same arguments and ends in the same
place. No libvirt object, XML or error code crosses this line. A hypervisor that
does not answer raises `Unavailable`: nothing is known about its domains then. A
step that it refuses raises `Refused` with the cause in plain words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId
from kmgr.templates.machine import USUAL_MACHINE, Machine
from kmgr.templates.policy import NO_DEVICES, Devices


class DomainState(StrEnum):
    """How a domain is found."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """All that makes a desktop's domain. `network` is `user`, `bridge:NAME` or `network:NAME`; memory in MiB.

    A `personal` one is marked as such: it runs only under a lease, whoever looks at it. `ram` is the file that a
    builder's memory lies in, so that the desktops restored from it share that (empty: memory of its own). `seed` is a
    disk for the first boot of the guest, read-only (empty: none). `installer` is an ISO that it boots from as long as
    its disk does not boot (empty: none).
    `loader` is the firmware's file for a machine that starts by UEFI, `variables` the desktop's own; `drivers` is a
    second ISO for the time of an installation (empty: none).
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
    ram: str = ""
    seed: str = ""
    devices: Devices = NO_DEVICES
    installer: str = ""
    drivers: str = ""
    machine: Machine = USUAL_MACHINE
    loader: str = ""
    variables: str = ""


@dataclass(frozen=True, slots=True)
class DomainStatus:
    """One of kmgr's domains on this server, as found now.

    A `provisional` one was restored from another's memory and has not been defined since: it may still believe that
    it is that other one. It ends with a power cut, and nobody else but who restored it may call it a desktop.
    `edited` says what a person has changed in its definition by hand (empty: nothing).
    """

    desktop: DesktopId
    generation: int
    state: DomainState
    personal: bool = False
    provisional: bool = False
    edited: str = ""


class Hypervisor(Protocol):
    """The hypervisor of this server."""

    async def domains(self) -> Sequence[DomainStatus]:
        """Return every domain of this grid on this server, and none of anybody else's."""
        ...

    async def define(self, spec: DomainSpec) -> None:
        """Make the domain on its existing disk, powered off; replaces an older generation's definition."""
        ...

    async def redefine(self, spec: DomainSpec) -> None:
        """Give an existing domain of the same generation this spec, which counts from its next start on."""
        ...

    async def start(self, desktop: DesktopId) -> None:
        """Power the domain on, or let a paused one go on."""
        ...

    async def suspend(self, desktop: DesktopId) -> None:
        """Halt a running domain, losing nothing; `start` lets it go on. One that does not run is fine."""
        ...

    async def shut_down(self, desktop: DesktopId) -> None:
        """Ask a running guest to power off in order: its agent, or as its power button does. It may take its time."""
        ...

    async def remove(self, desktop: DesktopId) -> None:
        """Pull the plug and forget the domain; its disk stays."""
        ...

    async def answers(self, desktop: DesktopId) -> bool:
        """Tell whether the guest agent answers right now."""
        ...

    async def agent(
        self, desktop: DesktopId, command: str, arguments: Mapping[str, Any], timeout_s: float
    ) -> Mapping[str, Any]:
        """Call the guest agent: QEMU's `command` with its arguments, its answer back ({} if it has none to give).

        `Unavailable` if the agent does not answer in time, `Refused` if it will not do this.
        """
        ...

    async def hardware(self) -> str:
        """Return what saved memory depends on besides the domain: the version of the emulator, the processor."""
        ...

    async def save_warm(self, desktop: DesktopId, to: str) -> None:
        """Save a running domain's memory into the folder `to`, synced, and forget the domain; its disk stays.

        Memory and disk belong together: neither may be used with another one of the other.
        """
        ...

    async def restore_warm(self, spec: DomainSpec, memory: str) -> None:
        """Run a domain of this spec from the memory saved in the folder `memory`, on a disk as it was at that moment.

        It runs `provisional` until `define` makes it a domain like any other. Its guest does not know yet that it is
        another one: name, network address, clock and random numbers are those of the saved one.
        """
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

    async def redefine(self, spec: DomainSpec) -> None:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def start(self, desktop: DesktopId) -> None:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def suspend(self, desktop: DesktopId) -> None:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def shut_down(self, desktop: DesktopId) -> None:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def remove(self, desktop: DesktopId) -> None:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def answers(self, desktop: DesktopId) -> bool:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def agent(
        self, desktop: DesktopId, command: str, arguments: Mapping[str, Any], timeout_s: float
    ) -> Mapping[str, Any]:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def hardware(self) -> str:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def save_warm(self, desktop: DesktopId, to: str) -> None:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def restore_warm(self, spec: DomainSpec, memory: str) -> None:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def screenshot(self, desktop: DesktopId) -> bytes:
        """Raise the reason."""
        raise Unavailable(self.reason)

    async def close(self) -> None:
        """Nothing to let go of."""
