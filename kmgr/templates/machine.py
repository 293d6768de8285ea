"""What kind of machine a template's desktops are: firmware, TPM, and how its disk and network card look to the guest.

What is installed on a disk fits one kind: a disk that was installed by UEFI does not boot by BIOS. So a desktop keeps
the kind that it was made with, and a change counts for those that are made from then on.

Pure.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Firmware(StrEnum):
    """What starts a desktop."""

    BIOS = "bios"
    UEFI = "uefi"
    SECURE = "secure"  # UEFI that starts only what is signed: Windows, and most Linux distributions


class Hardware(StrEnum):
    """How disk and network card look to the guest."""

    VIRTIO = "virtio"  # quick; Linux knows them, Windows needs drivers
    PLAIN = "plain"  # a SATA disk and an Intel network card: every installer knows them


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of machine. A `tpm` is a TPM 2.0 of the desktop's own, on the server that it runs on."""

    firmware: Firmware = Firmware.BIOS
    tpm: bool = False
    hardware: Hardware = Hardware.VIRTIO

    @property
    def has_uefi(self) -> bool:
        """True for one that starts by UEFI and has variables of its own."""
        return self.firmware is not Firmware.BIOS

    @property
    def needs(self) -> frozenset[str]:
        """Return what a server must have for it, in the words of its heartbeat."""
        return frozenset(([self.firmware.value] if self.has_uefi else []) + (["tpm"] if self.tpm else []))


USUAL_MACHINE = Machine()


class System(StrEnum):
    """What is to be installed, as people choose it."""

    WINDOWS = "windows"
    WINDOWS_VIRTIO = "windows_virtio"
    OTHER = "other"
    OTHER_UEFI = "other_uefi"


MACHINES: Mapping[System, Machine] = {
    System.WINDOWS: Machine(Firmware.SECURE, tpm=True, hardware=Hardware.PLAIN),
    System.WINDOWS_VIRTIO: Machine(Firmware.SECURE, tpm=True),
    System.OTHER: USUAL_MACHINE,
    System.OTHER_UEFI: Machine(Firmware.UEFI),
}


def machine_of(values: Any, base: Machine = USUAL_MACHINE) -> tuple[Machine, str]:
    """Return a machine from plain values, and what is wrong with them (empty: nothing)."""
    known = asdict(base)
    if not isinstance(values, Mapping) or not set(values) <= set(known):
        return base, f"a machine has {', '.join(known)}, not {values!r}"
    told = {**known, **values}
    for name, words in (("firmware", Firmware), ("hardware", Hardware)):
        if not isinstance(told[name], str) or told[name] not in list(words):
            return base, f"the {name} of a machine is {' or '.join(words)}, not {told[name]!r}"
    if not isinstance(told["tpm"], bool):
        return base, f"a machine has a TPM or not: true or false, not {told['tpm']!r}"
    machine = Machine(Firmware(told["firmware"]), told["tpm"], Hardware(told["hardware"]))
    if machine.tpm and not machine.has_uefi:
        return base, "a TPM needs UEFI: choose the firmware uefi or secure"
    return machine, ""


def limits(machine: Machine) -> tuple[str, ...]:
    """Return what desktops of such a machine cannot do, in sentences for the administrator; none if nothing."""
    told = []
    if machine.has_uefi:
        told.append(
            "Each of its desktops boots by itself: one that starts by UEFI is not restored from a saved memory."
        )
    if machine.tpm:
        told.append(
            "Its desktops are not moved while they run. What a guest keeps in its TPM stays on its server: a "
            "personal desktop that goes on elsewhere finds an empty one, so leave BitLocker off."
        )
    return tuple(told)
