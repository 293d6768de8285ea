"""A desktop's domain as libvirt XML, and back: what of it is ours. Pure.

A domain belongs to kmgr if its metadata says so in our namespace, never by its
name alone: an administrator's own machines are left alone whatever they are called.
"""

import hashlib
from xml.etree import ElementTree as ET

from kmgr.ids import DesktopId
from kmgr.provision import drift
from kmgr.provision.hypervisor import DomainSpec
from kmgr.templates.machine import Firmware, Hardware

NAMESPACE = "urn:kmgr:desktop:1"
# Translated code QEMU keeps in emulation; the default of a gigabyte would dwarf a small guest.
_TB_CACHE_MIB = 128
_PERSONAL = "personal"
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
# The name of the block that the memory of a restored domain is, in QEMU's own words.
RAM = "kmgr-ram"
# Of the SATA ports: those before it are of CD drives.
_DISK_UNIT = "4"
_AGENT = "org.qemu.guest_agent.0"
_VDAGENT = "com.redhat.spice.0"


def domain_name(desktop: DesktopId) -> str:
    """Return the name of a desktop's domain, as `virsh list` shows it."""
    return f"kmgr-{desktop}"


def mac_address(desktop: DesktopId, generation: int) -> str:
    """Return a desktop's network address: always the same for the same generation, in QEMU's own range.

    A personal desktop keeps the one of generation 0, on whatever server it goes on.
    """
    digest = hashlib.sha256(f"{desktop}/{generation}".encode()).hexdigest()
    return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"


def spec_mac(spec: DomainSpec) -> str:
    """Return the network address that a domain of this spec has."""
    return mac_address(spec.desktop, 0 if spec.personal else spec.generation)


def machine_uuid(desktop: DesktopId, generation: int, kind: str) -> str:
    """Return one of a desktop's machine ids, by `kind`: always the same for the same generation."""
    digest = hashlib.sha256(f"{kind}/{desktop}/{generation}".encode()).hexdigest()
    # The form of a random one (version 4).
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"


def render(spec: DomainSpec) -> str:
    """Return the XML that defines a desktop's domain, to be started by booting."""
    root = _domain(spec)
    if spec.ram:
        _memory_file(root, spec.memory_mib, spec.ram, shared=True)
    return _written(root)


def render_restored(spec: DomainSpec, ram: str) -> str:
    """Return the XML of the same domain whose memory is the file `ram`, copied on write; it waits for its state.

    It is only ever started like that; what is defined, for later starts, is `render`'s.
    """
    root = _domain(spec)
    _memory_file(root, spec.memory_mib, ram, shared=False)
    return _written(root)


def _domain(spec: DomainSpec) -> ET.Element:
    root = ET.Element("domain", type="kvm" if spec.accelerator == "kvm" else "qemu")
    _text(root, "name", domain_name(spec.desktop))
    generation = 0 if spec.personal else spec.generation
    _text(root, "uuid", machine_uuid(spec.desktop, generation, "machine"))
    # Tells a guest that was restored from another's memory that it is a fork: it takes new random numbers then.
    _text(root, "genid", machine_uuid(spec.desktop, spec.generation, "genid"))
    _text(root, "title", spec.name)
    _metadata(root, spec)
    _text(root, "memory", str(spec.memory_mib), unit="MiB")
    _text(root, "vcpu", str(spec.vcpus))
    system = ET.SubElement(root, "os")
    _text(system, "type", "hvm", arch="x86_64", machine="q35")
    if spec.machine.has_uefi:
        secure = "yes" if spec.machine.firmware is Firmware.SECURE else "no"
        _text(system, "loader", spec.loader, readonly="yes", secure=secure, type="pflash")
        _text(system, "nvram", spec.variables)
    _features(root, spec)
    # `maximum`: all that emulation can do. On KVM the host processor, until moves between servers need a common one.
    ET.SubElement(root, "cpu", mode="host-passthrough" if spec.accelerator == "kvm" else "maximum")
    ET.SubElement(root, "clock", offset="utc")
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _text(root, event, action)
    _devices(ET.SubElement(root, "devices"), spec)
    mark = root.find(f"metadata/{{{NAMESPACE}}}desktop")
    if mark is not None:
        mark.set("defined", drift.facts(root))
    return root


def _written(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def ours(xml: str, *, grid: str) -> tuple[DesktopId, int] | None:
    """Return desktop and generation of a domain's XML, or None if it is not this grid's."""
    mark = ET.fromstring(xml).find(f"metadata/{{{NAMESPACE}}}desktop")  # noqa: S314 - libvirt's own output
    if mark is None or mark.get("grid") != grid:
        return None
    desktop, generation = mark.get("id", ""), mark.get("generation", "")
    # A mark that somebody has spoilt by hand says nothing any more.
    return (
        (DesktopId(desktop), int(generation)) if desktop and generation.isascii() and generation.isdigit() else None
    )


def edited(xml: str) -> str:
    """Say what a person has changed in a domain of ours by hand, empty if nothing that counts."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own output
    mark = root.find(f"metadata/{{{NAMESPACE}}}desktop")
    then = "" if mark is None else mark.get("defined", "")
    return drift.difference(then, drift.facts(root)) if then else ""


def personal(xml: str) -> bool:
    """Tell whether a domain of ours is a personal desktop's."""
    mark = ET.fromstring(xml).find(f"metadata/{{{NAMESPACE}}}desktop")  # noqa: S314 - libvirt's own output
    return mark is not None and mark.get("kind") == _PERSONAL


def _metadata(root: ET.Element, spec: DomainSpec) -> None:
    ET.register_namespace("kmgr", NAMESPACE)
    mark = ET.SubElement(
        ET.SubElement(root, "metadata"),
        f"{{{NAMESPACE}}}desktop",
        id=spec.desktop,
        generation=str(spec.generation),
        grid=spec.grid,
        name=spec.name,
        template=spec.template,
    )
    if spec.personal:
        mark.set("kind", _PERSONAL)


def _features(root: ET.Element, spec: DomainSpec) -> None:
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if spec.machine.firmware is Firmware.SECURE:  # else the guest could write the variables past the firmware
        ET.SubElement(features, "smm", state="on")
    if spec.accelerator != "kvm":
        _text(ET.SubElement(features, "tcg"), "tb-cache", str(_TB_CACHE_MIB), unit="MiB")


def _devices(devices: ET.Element, spec: DomainSpec) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="qcow2", discard="unmap")
    ET.SubElement(disk, "source", file=spec.disk)
    plain = spec.machine.hardware is Hardware.PLAIN
    # Called vda on any bus: that is what copies and backups ask libvirt for.
    ET.SubElement(disk, "target", dev="vda", bus="sata" if plain else "virtio")
    if spec.installer:
        # The disk first: once something is installed on it, it boots, whatever lies in the drive.
        ET.SubElement(disk, "boot", order="1")
        _cdrom(devices, spec.installer, "sdb", boot="2")
    if plain:
        ET.SubElement(disk, "address", type="drive", controller="0", bus="0", target="0", unit=_DISK_UNIT)
    if spec.drivers:
        _cdrom(devices, spec.drivers, "sdc")
    if spec.seed:
        _cdrom(devices, spec.seed, "sda")
    _network(devices, spec)
    ET.SubElement(devices, "controller", type="usb", model="qemu-xhci")
    ET.SubElement(devices, "input", type="tablet", bus="usb")
    # No USB keyboard: QEMU would send it all keys, also while the guest has no driver for it. PS/2 works everywhere.
    graphics = ET.SubElement(devices, "graphics", type="vnc")
    ET.SubElement(graphics, "listen", type="socket", socket=spec.display)
    ET.SubElement(ET.SubElement(devices, "video"), "model", type="vga", vram=str(spec.devices.video_mib << 10))
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name=_AGENT)
    if spec.devices.clipboard:
        _clipboard(devices)
    if spec.devices.sound:
        ET.SubElement(devices, "sound", model="ich9")
        ET.SubElement(devices, "audio", id="1", type="none")
    if spec.machine.tpm:
        tpm = ET.SubElement(devices, "tpm", model="tpm-crb")
        ET.SubElement(tpm, "backend", type="emulator", version="2.0")
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=spec.log)
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    ET.SubElement(devices, "memballoon", model="virtio")


def _cdrom(devices: ET.Element, path: str, device: str, *, boot: str = "") -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="cdrom")
    ET.SubElement(disk, "driver", name="qemu", type="raw")
    ET.SubElement(disk, "source", file=path)
    ET.SubElement(disk, "target", dev=device, bus="sata")
    ET.SubElement(disk, "readonly")
    if boot:
        ET.SubElement(disk, "boot", order=boot)


def _clipboard(devices: ET.Element) -> None:
    """Let QEMU's display share its clipboard with the guest's vdagent."""
    channel = ET.SubElement(devices, "channel", type="qemu-vdagent")
    source = ET.SubElement(channel, "source")
    ET.SubElement(source, "clipboard", copypaste="yes")
    ET.SubElement(channel, "target", type="virtio", name=_VDAGENT)


def _network(devices: ET.Element, spec: DomainSpec) -> None:
    kind, _, name = spec.network.partition(":")
    card = ET.SubElement(devices, "interface", type=kind)
    ET.SubElement(card, "mac", address=spec_mac(spec))
    if name:
        ET.SubElement(card, "source", {kind: name})
    ET.SubElement(card, "model", type="e1000e" if spec.machine.hardware is Hardware.PLAIN else "virtio")


def ram_block(memory_mib: int) -> tuple[str, ...]:
    """Return QEMU's arguments for memory of a domain's own under the name that a restored one's has.

    With it a domain can take over the state of a restored one.
    """
    return ("-object", f"memory-backend-ram,id={RAM},size={memory_mib}M", "-machine", f"memory-backend={RAM}")


def has_ram_block(root: ET.Element) -> bool:
    """Tell whether a running domain's memory has that name."""
    arguments = root.iterfind(f"{{{_QEMU}}}commandline/{{{_QEMU}}}arg")
    return any(f"id={RAM}," in one.get("value", "") for one in arguments)


def pass_on(root: ET.Element, *arguments: str) -> None:
    """Have libvirt hand these arguments on to QEMU as they are."""
    ET.register_namespace("qemu", _QEMU)
    command = ET.SubElement(root, f"{{{_QEMU}}}commandline")
    for value in arguments:
        ET.SubElement(command, f"{{{_QEMU}}}arg", value=value)


def _memory_file(root: ET.Element, memory_mib: int, path: str, *, shared: bool) -> None:
    """Have the memory lie in a file of ours: libvirt offers that only with a path of its own choice."""
    memory = f"memory-backend-file,id={RAM},size={memory_mib}M,mem-path={path.replace(',', ',,')}"
    place = ["-object", f"{memory},share={'on' if shared else 'off'}", "-machine", f"memory-backend={RAM}"]
    pass_on(root, *place, *(() if shared else ("-incoming", "defer")))


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
