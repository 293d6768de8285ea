"""Tell what an offered disk image is from its first bytes, before any other program opens it.

A qcow2 may name other files (a backing file, an external data file) that whoever
opens it would read too, a VMDK may be spread over several, a VDI may be the
difference to another: those are found here, in the header itself. A raw
disk has no mark of its own: it must at least begin like a disk, with a boot
sector, a partition table or a file system. Whatever is something else is named.

Pure: bytes in, findings out.
"""

import re
import struct
from dataclasses import dataclass

from kmgr.templates.machine import System

# As many bytes of the beginning as the marks below need.
HEAD_BYTES = 128 * 1024
SMALLEST_BYTES = 1 << 20
SECTOR = 512

_QCOW2 = struct.Struct(">4sIQIIQIIQQI")
_QCOW2_MAGIC = b"QFI\xfb"
_DIRTY, _CORRUPT, _DATA_FILE = 1, 2, 4
_VMDK = struct.Struct("<4sIIQQQQ")
_VMDK_MAGIC = b"KDMV"
_VMDK_EXTENT = re.compile(rb"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)", re.MULTILINE)
_VMDK_KINDS = (b"monolithicSparse", b"streamOptimized")
_VDI_MAGIC = b"\x7f\x10\xda\xbe"
_VDI_KINDS = (1, 2)  # dynamic, fixed; the others are differences to another disk
_VHDX_MAGIC = b"vhdxfile"
# What a CD or DVD that boots is called here: no format of qemu-img's.
ISO = "iso"
# One from which nothing boots: what lies beside an installer, drivers above all.
DRIVERS = "drivers"
_ISO_SECTOR = 2048
_DESCRIPTORS = 16 * _ISO_SECTOR
_LAST_DESCRIPTOR = 255
_EL_TORITO = b"EL TORITO SPECIFICATION"
# Who made a volume stands in its descriptor: publisher, preparer, application.
_MAKERS = slice(318, 702)
_UEFI = 0xEF

# offset, bytes there, what it is: things that people try and that must be something else first.
_OTHERS = (
    (0, b"COWD", "an old VMware disk (VMDK version 3)"),
    (0, b"# Disk DescriptorFile", "the description of a VMware disk (VMDK) whose data lie in other files"),
    (0, b"conectix", "an old Hyper-V disk (VHD)"),
    (0, b"\x1f\x8b", "compressed with gzip"),
    (0, b"\xfd7zXZ\0", "compressed with xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (0, b"BZh", "compressed with bzip2"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (257, b"ustar", "a tar archive (an OVA?)"),
    (0, b"\x7fELF", "a program"),
    (0, b"%PDF", "a PDF document"),
    (0, b"LUKS\xba\xbe", "encrypted (LUKS)"),
)
# How a raw disk may begin.
_DISKS = (
    (510, b"\x55\xaa", "a boot sector"),
    (512, b"EFI PART", "a partition table (GPT)"),
    (4096, b"EFI PART", "a partition table (GPT)"),
    (0x438, b"\x53\xef", "an ext file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a Btrfs file system"),
    (512, b"LABELONE", "an LVM volume"),
)


_SECTORS_OF_DESCRIPTOR = 21
_WHOLE = "Make it whole with: qemu-img convert -f {} -O qcow2 OLD NEW"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a file is: `format` as qemu-img calls it, or empty with the reason why it can't be taken."""

    format: str
    text: str


def recognise(head: bytes, size: int) -> Finding:
    """Say what a file of `size` bytes that begins with `head` is."""
    if not size:
        return Finding("", "it is empty")
    if head.startswith(_QCOW2_MAGIC):
        problem = _qcow2_problem(head, size)
        return Finding("", problem) if problem else Finding("qcow2", "a qcow2 image")
    for mine in (_vmdk, _vdi, _vhdx, _iso):
        if (found := mine(head, size)) is not None:
            return found
    for offset, mark, text in _OTHERS:
        if head[offset : offset + len(mark)] == mark:
            advice = "" if "PDF" in text else ". Make a qcow2 or raw image of it first"
            return Finding("", f"it is {text}{advice}")
    for offset, mark, text in _DISKS:
        if head[offset : offset + len(mark)] == mark:
            problem = _raw_problem(size)
            return Finding("", problem) if problem else Finding("raw", f"a raw disk with {text}")
    if _is_text(head):
        return Finding("", "it is a text file")
    return Finding(
        "",
        "it is neither qcow2, VMDK, VDI or VHDX nor an installer (ISO) nor a raw disk: it begins with no boot sector"
        " and no file system",
    )


def _vmdk(head: bytes, _: int) -> Finding | None:
    if not head.startswith(_VMDK_MAGIC):
        return None
    if len(head) < _SECTORS_OF_DESCRIPTOR * SECTOR:
        return Finding("", "it is a truncated VMware disk (VMDK)")
    _, _, _, capacity, _, descriptor_at, descriptor_sectors = _VMDK.unpack_from(head)
    # Whoever opens it looks for a parent in the twenty sectors behind the header, whatever the header says.
    begin, end = descriptor_at * SECTOR, (descriptor_at + min(max(descriptor_sectors, 20), 64)) * SECTOR
    text = head[begin:end] if descriptor_at else b""
    either = text + head[SECTOR : _SECTORS_OF_DESCRIPTOR * SECTOR]
    extents = _VMDK_EXTENT.findall(text)
    if not capacity or len(extents) > 1 or any(kind != b"SPARSE" for kind in extents):
        return Finding("", f"it is a VMware disk (VMDK) whose data lie in other files. {_WHOLE.format('vmdk')}")
    if not any(b'"' + kind + b'"' in text for kind in _VMDK_KINDS):
        return Finding("", f"it is one part of a VMware disk (VMDK). {_WHOLE.format('vmdk')}")
    if b"parentFileNameHint" in either or re.search(rb"parentCID=(?!ffffffff)", either, re.IGNORECASE):
        return Finding("", f"it is a snapshot of a VMware disk (VMDK) and needs its parent. {_WHOLE.format('vmdk')}")
    return Finding("vmdk", "a VMware disk (VMDK)")


def _vdi(head: bytes, size: int) -> Finding | None:
    if head[0x40:0x44] != _VDI_MAGIC:
        return None
    if len(head) < SECTOR:
        return Finding("", "it is a truncated VirtualBox disk (VDI)")
    (kind,) = struct.unpack_from("<I", head, 0x4C)
    if kind not in _VDI_KINDS or any(head[0x1A8:0x1B8]):
        return Finding(
            "", f"it is a snapshot of a VirtualBox disk (VDI) and needs its parent. {_WHOLE.format('vdi')}"
        )
    _, data_at = struct.unpack_from("<II", head, 0x154)
    block_bytes, extra_bytes, _, allocated = struct.unpack_from("<IIII", head, 0x178)
    # Where such a file ends too early qemu-img would read zeros.
    if data_at + allocated * (block_bytes + extra_bytes) > size:
        return Finding("", "it is a truncated VirtualBox disk (VDI): some of its data lies beyond its end")
    return Finding("vdi", "a VirtualBox disk (VDI)")


def _vhdx(head: bytes, _: int) -> Finding | None:
    return Finding("vhdx", "a Hyper-V disk (VHDX)") if head.startswith(_VHDX_MAGIC) else None


def _iso(head: bytes, size: int) -> Finding | None:
    """Find a CD or DVD; one that can be booted has a boot record among its descriptors (El Torito)."""
    if head[_DESCRIPTORS : _DESCRIPTORS + 6] != b"\x01CD001":
        return None
    if len(head) < _DESCRIPTORS + _ISO_SECTOR:
        return Finding("", f"it is a CD or DVD (ISO) that is cut off after {size} bytes")
    (sectors,) = struct.unpack_from("<I", head, _DESCRIPTORS + 80)
    if size % SECTOR or sectors * _ISO_SECTOR > size:
        return Finding(
            "", f"it is a CD or DVD (ISO) that is cut off: {size} of {sectors * _ISO_SECTOR} bytes are here"
        )
    for at in range(_DESCRIPTORS, len(head) - _ISO_SECTOR + 1, _ISO_SECTOR):
        if head[at + 1 : at + 6] != b"CD001" or head[at] == _LAST_DESCRIPTOR:
            break
        if head[at] == 0 and head[at + 7 : at + 7 + len(_EL_TORITO)] == _EL_TORITO:
            return Finding(ISO, "an installer (ISO)")
    return Finding(DRIVERS, "a CD or DVD (ISO) from which no computer boots")


def _raw_problem(size: int) -> str:
    if size < SMALLEST_BYTES:
        return f"it is too small for a disk: {size} bytes, at least {SMALLEST_BYTES} are needed"
    if size % SECTOR:
        return f"it is cut off: a raw disk is a multiple of {SECTOR} bytes long, this one has {size}"
    return ""


def _qcow2_problem(head: bytes, size: int) -> str:
    if len(head) < 72:
        return "it is a truncated qcow2 image: not even the header is whole"
    _, version, backing, _, cluster_bits, _, crypt, l1_size, l1_at, refcounts_at, _ = _QCOW2.unpack_from(head)
    features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 and len(head) >= 80 else 0
    if version not in (2, 3):
        return f"it is a qcow2 image of version {version}; versions 2 and 3 are known"
    if backing:
        return (
            "it is a qcow2 image that needs another file (its backing file)."
            " Make it whole with: qemu-img convert -O qcow2 OLD NEW"
        )
    if features & _DATA_FILE:
        return (
            "it is a qcow2 image whose data lies in another file."
            " Make it whole with: qemu-img convert -O qcow2 OLD NEW"
        )
    if crypt:
        return "it is an encrypted qcow2 image; kmgr cannot ask desktops for its passphrase"
    if features & _CORRUPT:
        return "it is a qcow2 image that is marked as corrupt. Try: qemu-img check -r all FILE"
    if features & _DIRTY:
        return "it is a qcow2 image that was not closed properly. Mend it with: qemu-img check -r all FILE"
    if not 9 <= cluster_bits <= 21:
        return "it is not a valid qcow2 image: its header is damaged"
    if l1_at + 8 * l1_size > size or refcounts_at >= size:
        return "it is a truncated qcow2 image: its tables lie beyond its end"
    return ""


def _is_text(head: bytes) -> bool:
    sample = head[:4096]
    try:
        text = sample.decode()
    except UnicodeDecodeError as error:
        if error.start < len(sample) - 4:  # a character cut by the sample's end is no proof
            return False
        text = sample[: error.start].decode()
    return all(character.isprintable() or character in "\r\n\t\f" for character in text)


def suggested(head: bytes) -> System:
    """Return what a disk or an installer that begins like this is likely to need.

    Windows by who made the ISO; UEFI where nothing says how a BIOS would start it.
    """
    if head[_DESCRIPTORS : _DESCRIPTORS + 6] == b"\x01CD001":
        if b"MICROSOFT" in head[_DESCRIPTORS:][_MAKERS].upper():
            return System.WINDOWS
        return System.OTHER_UEFI if _platforms(head) == {_UEFI} else System.OTHER
    has_gpt = any(head[at : at + 8] == b"EFI PART" for at in (512, 4096))
    return System.OTHER_UEFI if has_gpt and not any(head[:440]) else System.OTHER


def _platforms(head: bytes) -> set[int]:
    """Return for which platforms an ISO's boot catalog has entries; none if the catalog lies beyond the beginning."""
    for at in range(_DESCRIPTORS, len(head) - _ISO_SECTOR + 1, _ISO_SECTOR):
        if head[at + 1 : at + 6] != b"CD001" or head[at] == _LAST_DESCRIPTOR:
            break
        if head[at] == 0 and head[at + 7 : at + 7 + len(_EL_TORITO)] == _EL_TORITO:
            (sector,) = struct.unpack_from("<I", head, at + 71)
            catalog = head[sector * _ISO_SECTOR : (sector + 1) * _ISO_SECTOR]
            # The first entry's platform, then those of the sections: 0x90 more follow, 0x91 the last.
            return set(catalog[1:2]) | {
                catalog[n + 1] for n in range(64, len(catalog) - 1, 32) if catalog[n] in (0x90, 0x91)
            }
    return set()
