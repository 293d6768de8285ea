"""What can break a desktop: each trouble with its cause in plain words, whose fault it is, and the cure.

Rule 1: whoever reports a broken desktop names the step and says what he saw; what
that is called, whom it is held against and what helps stands here, once.
Rule 2: only what speaks against the golden image or the template is counted
against them. A full disk of one server stops no template on the others.
Rule 3: a server whose own fault it was is given no new desktops for a while
(`provision.pause`): the next one would fail like this one.

Pure: no I/O, no clock.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Trouble(StrEnum):
    """What a desktop can be broken by. The values are in the log: none is ever given another meaning."""

    GUEST_SILENT = "guest_silent"
    AGENT_SILENT = "agent_silent"
    GUEST_OFF = "guest_off"
    GOES_OFF = "goes_off"
    REBOOTS = "reboots"
    AGENT_FLOODS = "agent_floods"
    NO_IMAGE = "no_image"
    NO_DISK = "no_disk"
    NO_DOMAIN = "no_domain"
    FOREIGN_DOMAIN = "foreign_domain"
    DISK_FULL = "disk_full"
    DISK_SICK = "disk_sick"
    NO_MEMORY = "no_memory"
    NO_CPU = "no_cpu"
    NO_KVM = "no_kvm"
    NO_NETWORK = "no_network"
    NO_FIRMWARE = "no_firmware"
    NO_TPM = "no_tpm"
    NO_HYPERVISOR = "no_hypervisor"
    NOT_BEGUN = "not_begun"
    NO_COPY = "no_copy"
    BAD_COPY = "bad_copy"
    BAD_DISK = "bad_disk"
    TOO_LARGE = "too_large"
    REFUSED = "refused"


class Fault(StrEnum):
    """Whose fault a trouble is: what the next desktop has to differ in so that it does not fail as well."""

    TEMPLATE = "template"  # or the golden image that it uses
    SERVER = "server"
    DESKTOP = "desktop"


@dataclass(frozen=True, slots=True)
class Cure:
    """What a trouble means and what a person can do about it, in sentences; whose `fault` it is."""

    what: str
    advice: str
    fault: Fault


CURES: Mapping[Trouble, Cure] = {
    Trouble.GUEST_SILENT: Cure(
        "Its guest was started and never answered.",
        "Look at its screen: does the golden image boot, and does it run the QEMU guest agent? A slow guest needs "
        "a larger build_timeout_s.",
        Fault.TEMPLATE,
    ),
    Trouble.AGENT_SILENT: Cure(
        "Its guest answered when it had started, and then no more.",
        "Look at its screen: does the guest hang, or does something in the golden image stop the QEMU guest agent?",
        Fault.TEMPLATE,
    ),
    Trouble.GUEST_OFF: Cure(
        "Its guest went off before it answered.",
        "Does the golden image boot? Its serial console on the server has the last words.",
        Fault.TEMPLATE,
    ),
    Trouble.GOES_OFF: Cure(
        "Its guest goes off again and again.",
        "Look at what its user does to it, and at its serial console; then make it anew.",
        Fault.DESKTOP,
    ),
    Trouble.REBOOTS: Cure(
        "Its guest reboots again and again.",
        "It is halted so that it takes nothing from others. Look at its screen; if others of this version do the "
        "same, go back to the version before.",
        Fault.TEMPLATE,
    ),
    Trouble.AGENT_FLOODS: Cure(
        "Its guest agent sends more than it was asked for.",
        "Something in the guest writes to the agent's channel. Repair that in the golden image, or make the desktop "
        "anew if it is the only one.",
        Fault.TEMPLATE,
    ),
    Trouble.NO_IMAGE: Cure(
        "Its golden image is not on its server.",
        "Look at Golden images: is the version still there, does its copy to this server go on? Publish a version "
        "that is there, or make the desktop anew when the copy is done.",
        Fault.SERVER,
    ),
    Trouble.NO_DISK: Cure(
        "Its disk was deleted from its server.",
        "Somebody removed it by hand. A pooled desktop is made anew; a personal one can be started from a safe copy "
        "or a backup of the file, put back in its place.",
        Fault.DESKTOP,
    ),
    Trouble.NO_DOMAIN: Cure(
        "Its domain was removed from libvirt.",
        "Somebody removed it by hand. Make it anew; kmgr makes the domain by itself.",
        Fault.DESKTOP,
    ),
    Trouble.FOREIGN_DOMAIN: Cure(
        "A domain that is not kmgr's has its name.",
        "kmgr touches no domain of others: rename or remove that one (virsh list --all), then make the desktop anew.",
        Fault.SERVER,
    ),
    Trouble.DISK_FULL: Cure(
        "The disk of its server is full.",
        "Make room on the server, or drain it. Other servers are given its desktops meanwhile.",
        Fault.SERVER,
    ),
    Trouble.DISK_SICK: Cure(
        "The disk of its server failed.",
        "dmesg and smartctl on the server tell more. Drain the server before it gets worse.",
        Fault.SERVER,
    ),
    Trouble.NO_MEMORY: Cure(
        "Its server has too little memory left for it.",
        "Something else on the server took it, or the template asks for more than a server has: give the template "
        "less memory, or the server more.",
        Fault.SERVER,
    ),
    Trouble.NO_CPU: Cure(
        "The processor of its server lacks something that it needs.",
        "Let it run on a server with a newer processor, or look at what the server's firmware has switched off.",
        Fault.SERVER,
    ),
    Trouble.NO_KVM: Cure(
        "KVM does not work on its server.",
        "Is virtualisation on in the firmware, is /dev/kvm there? With accelerator \"auto\" in kmgr.toml the server "
        "finds out when kmgr starts, and emulates if it must.",
        Fault.SERVER,
    ),
    Trouble.NO_NETWORK: Cure(
        "The network that it is to have is not known on its server.",
        "Look at network in the server's kmgr.toml and at the template's, and at virsh net-list or ip link there: "
        "make the network, or name another one.",
        Fault.SERVER,
    ),
    Trouble.NO_FIRMWARE: Cure(
        "Its server has no firmware to start it by UEFI.",
        "Install it there (apt-get install ovmf) and make the desktop anew, or let a server make it that has it. "
        "A disk that was installed by UEFI does not start by BIOS.",
        Fault.SERVER,
    ),
    Trouble.NO_TPM: Cure(
        "Its server cannot give it a TPM.",
        "Install the emulator there (apt-get install swtpm swtpm-tools) and make the desktop anew, or let a server "
        "make it that has it. The log of the emulator is in /var/log/swtpm/libvirt/qemu.",
        Fault.SERVER,
    ),
    Trouble.NO_HYPERVISOR: Cure(
        "libvirt on its server did not answer for too long.",
        "Look at the server: systemctl status libvirtd. The desktop can be made anew when it answers again.",
        Fault.SERVER,
    ),
    Trouble.NOT_BEGUN: Cure(
        "Its server did not get on with it in time.",
        "Look at the problems of the server and at its log (journalctl -u kmgr). Others are made elsewhere.",
        Fault.SERVER,
    ),
    Trouble.NO_COPY: Cure(
        "It could not be started from its safe copy.",
        "The former disk may still be on the server that was lost. Try again when that server is back.",
        Fault.DESKTOP,
    ),
    Trouble.BAD_COPY: Cure(
        "Its safe copy has gone bad: it is not what was copied.",
        "If its former server comes back, put its former disk back here: it has all. Try again starts it from the "
        "bad copy as it is. Look after the disk of this server: smartctl and dmesg tell more.",
        Fault.DESKTOP,
    ),
    Trouble.BAD_DISK: Cure(
        "Its disk cannot be read: it is damaged, or something else lies in its place.",
        "A pooled desktop is made anew. Of a personal one look at the file with qemu-img check, or put back a copy.",
        Fault.DESKTOP,
    ),
    Trouble.TOO_LARGE: Cure(
        "Its template asks for more than a virtual machine can have.",
        "Give the template fewer CPUs or less memory.",
        Fault.TEMPLATE,
    ),
    Trouble.REFUSED: Cure(
        "libvirt or QEMU refused it.",
        "Their own words are above; the log of the domain is in /var/log/libvirt/qemu on the server.",
        Fault.TEMPLATE,
    ),
}  # fmt: skip

# How libvirt, QEMU, the kernel and kmgr itself word it; the first that is found counts.
_WORDS: Mapping[Trouble, tuple[str, ...]] = {
    Trouble.BAD_COPY: ("its safe copy on this server has gone bad",),
    Trouble.DISK_FULL: ("no space left on device", "disk quota exceeded", "enospc"),
    Trouble.DISK_SICK: ("input/output error", "read-only file system", "structure needs cleaning"),
    Trouble.FOREIGN_DOMAIN: ("that is not kmgr's",),
    Trouble.NO_FIRMWARE: (
        "has no uefi firmware", "(ovmf|edk2).*(no such file|cannot|could not)", "unable to find .*firmware",
    ),
    Trouble.NO_TPM: ("has no tpm emulator", "swtpm", "tpm emulator", "tpm-emulator"),
    Trouble.NO_IMAGE: ("golden image is not on this server", "cannot access backing file"),
    Trouble.BAD_DISK: ("image is not in qcow2 format", r"cannot read header .*\.qcow2", "qcow2: .*(corrupt|invalid)"),
    Trouble.TOO_LARGE: ("maximum cpus greater than", "maximum vcpus .*greater than"),
    Trouble.NO_NETWORK: (
        "network not found", "no network with matching name", "network .*is not active",
        "cannot get interface mtu on", "failed to (get|add) .*bridge", "bridge .*(no such device|does not exist)",
    ),
    Trouble.NO_MEMORY: (
        "cannot set up guest memory", "cannot allocate memory", "out of memory", "failed to allocate",
    ),
    Trouble.NO_CPU: (
        "incompatible with host cpu", "does not provide required features", "unsupported cpu", "unknown cpu model",
        "cpu .*not supported", "host doesn't support requested feature", "cpu doesn't match specification",
    ),
    Trouble.NO_KVM: (
        "could not access kvm", "virt type 'kvm'", "kvm kernel module", "/dev/kvm",
        "'kvm' is not supported", "domaintype=kvm",
        "domain type kvm", "failed to initialize kvm",
    ),
    Trouble.NO_DISK: (
        "its disk is gone", "cannot access storage file .*no such file", r"no such file or directory.*\.qcow2",
        r"\.qcow2.*no such file or directory",
    ),
    Trouble.NO_DOMAIN: ("domain is gone", "there is no domain of desktop"),
    # Before "did not answer": it says why not.
    Trouble.AGENT_FLOODS: ("guest agent (sends|sent) more",),
    Trouble.GUEST_SILENT: (r"did not answer within \d+ s of its start",),
    Trouble.AGENT_SILENT: (r"has been silent for \d+ s since",),
    Trouble.GUEST_OFF: ("went off before it answered",),
    Trouble.GOES_OFF: (r"went off by itself \d+ times",),
    Trouble.REBOOTS: (r"rebooted \d+ times",),
    Trouble.NO_HYPERVISOR: ("libvirt (is not answering|did not answer|hangs)",),
}  # fmt: skip
_PATTERNS = tuple(
    (re.compile("|".join(patterns), re.IGNORECASE | re.DOTALL), trouble) for trouble, patterns in _WORDS.items()
)
_BY_STEP: Mapping[str, Trouble] = {"safe copy": Trouble.NO_COPY, "begin": Trouble.NOT_BEGUN}


def recognise(step: str, cause: str) -> Trouble:
    """Return what a failed step and the words that came with it are a case of."""
    for pattern, trouble in _PATTERNS:
        if pattern.search(cause):
            return trouble
    return _BY_STEP.get(step, Trouble.REFUSED)


def known(name: str) -> Trouble | None:
    """Return a trouble by its name; None for none, or for one of a newer release."""
    return Trouble(name) if name in list(Trouble) else None


def counts(trouble: Trouble) -> bool:
    """Tell whether it speaks against the version of the golden image that the desktop was made from."""
    return CURES[trouble].fault is Fault.TEMPLATE
