"""Tell what an offered disk image is from its first bytes, before any other program opens it.

A qcow2 may name other files (a backing file, an external data file) that whoever
opens it would read too, a VMDK may be spread over several, a VDI may be the
difference to another: those are found here, in the header itself. A raw
disk has no mark of its own: it must at least begin like a disk, with a boot
sector, a partition table or a file system. Whatever is something else is named, and what to do with it.

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

# What is to be done with what cannot be taken.
AGAIN = "Copy or download it again, and compare its size (better: its SHA-256) with the original's"
_WHOLE = "Make it whole with: qemu-img convert -f {} -O qcow2 OLD NEW"
_ANEW = "Make a qcow2 of it first: qemu-img convert -f {} -O qcow2 OLD NEW"
_UNPACK = "Unpack it first, and import the disk image that is in it"
_ITSELF = "Choose the disk image itself (qcow2, VMDK, VDI, VHDX, raw or ISO)"

# offset, bytes there, what it is, what to do: things that people try and that must be something else first.
_OTHERS = (
    (0, b"COWD", "an old VMware disk (VMDK version 3)", _ANEW.format("vmdk")),
    (
        *(0, b"# Disk DescriptorFile", "the description of a VMware disk (VMDK) whose data lie in other files"),
        _WHOLE.format("vmdk"),
    ),
    (0, b"conectix", "an old Hyper-V disk (VHD)", _ANEW.format("vpc")),
    (0, b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (0, b"\xfd7zXZ\0", "compressed with xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (0, b"BZh", "compressed with bzip2", _UNPACK),
    (0, b"PK\x03\x04", "a ZIP archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (257, b"ustar", "a tar archive (an OVA?)", _UNPACK),
    (0, b"\x7fELF", "a program", _ITSELF),
    (0, b"%PDF", "a PDF document", _ITSELF),
    (0, b"LUKS\xba\xbe", "encrypted (LUKS)", "Make an image of the disk in it first, without encryption"),
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


@dataclass(frozen=True, slots=True)
class Finding:
    """What a file is: `format` as qemu-img calls it, or empty with the reason why it can't be taken."""

    format: str
    text: str


def _refused(what: str, advice: str) -> Finding:
    return Finding("", f"{what}. {advice}")


def recognise(head: bytes, size: int) -> Finding:
    """Say what a file of `size` bytes that begins with `head` is."""
    if not size:
        return _refused("it is empty", AGAIN)
    if head.startswith(_QCOW2_MAGIC):
        return _qcow2(head, size)
    for mine in (_vmdk, _vdi, _vhdx, _iso):
        if (found := mine(head, size)) is not None:
            return found
    for offset, mark, text, advice in _OTHERS:
        if head[offset : offset + len(mark)] == mark:
            return _refused(f"it is {text}", advice)
    for offset, mark, text in _DISKS:
        if head[offset : offset + len(mark)] == mark:
            return _raw(text, size)
    if _is_text(head):
        return _refused(
            "it is a text file",
            f"{_ITSELF}. If it was downloaded, look into it: it may be an error or a log-in page instead of the file",
        )
    return _refused(
        "it is neither qcow2, VMDK, VDI or VHDX nor an installer (ISO) nor a raw disk: it begins with no boot sector"
        " and no file system",
        f"{_ITSELF}. What another program made can be exported from there, or converted to qcow2 with qemu-img",
    )


def _vmdk(head: bytes, _: int) -> Finding | None:
    if not head.startswith(_VMDK_MAGIC):
        return None
    if len(head) < _SECTORS_OF_DESCRIPTOR * SECTOR:
        return _refused("it is a truncated VMware disk (VMDK)", AGAIN)
    _, _, _, capacity, _, descriptor_at, descriptor_sectors = _VMDK.unpack_from(head)
    # Whoever opens it looks for a parent in the twenty sectors behind the header, whatever the header says.
    begin, end = descriptor_at * SECTOR, (descriptor_at + min(max(descriptor_sectors, 20), 64)) * SECTOR
    text = head[begin:end] if descriptor_at else b""
    either = text + head[SECTOR : _SECTORS_OF_DESCRIPTOR * SECTOR]
    extents = _VMDK_EXTENT.findall(text)
    if not capacity or len(extents) > 1 or any(kind != b"SPARSE" for kind in extents):
        return _refused("it is a VMware disk (VMDK) whose data lie in other files", _WHOLE.format("vmdk"))
    if not any(b'"' + kind + b'"' in text for kind in _VMDK_KINDS):
        return _refused("it is one part of a VMware disk (VMDK)", _WHOLE.format("vmdk"))
    if b"parentFileNameHint" in either or re.search(rb"parentCID=(?!ffffffff)", either, re.IGNORECASE):
        return _refused("it is a snapshot of a VMware disk (VMDK) and needs its parent", _WHOLE.format("vmdk"))
    return Finding("vmdk", "a VMware disk (VMDK)")


def _vdi(head: bytes, size: int) -> Finding | None:
    if head[0x40:0x44] != _VDI_MAGIC:
        return None
    if len(head) < SECTOR:
        return _refused("it is a truncated VirtualBox disk (VDI)", AGAIN)
    (kind,) = struct.unpack_from("<I", head, 0x4C)
    if kind not in _VDI_KINDS or any(head[0x1A8:0x1B8]):
        return _refused("it is a snapshot of a VirtualBox disk (VDI) and needs its parent", _WHOLE.format("vdi"))
    _, data_at = struct.unpack_from("<II", head, 0x154)
    block_bytes, extra_bytes, _, allocated = struct.unpack_from("<IIII", head, 0x178)
    # Where such a file ends too early qemu-img would read zeros.
    if data_at + allocated * (block_bytes + extra_bytes) > size:
        return _refused("it is a truncated VirtualBox disk (VDI): some of its data lies beyond its end", AGAIN)
    return Finding("vdi", "a VirtualBox disk (VDI)")


def _vhdx(head: bytes, _: int) -> Finding | None:
    return Finding("vhdx", "a Hyper-V disk (VHDX)") if head.startswith(_VHDX_MAGIC) else None


def _iso(head: bytes, size: int) -> Finding | None:
    """Find a CD or DVD; one that can be booted has a boot record among its descriptors (El Torito)."""
    if head[_DESCRIPTORS : _DESCRIPTORS + 6] != b"\x01CD001":
        return None
    if len(head) < _DESCRIPTORS + _ISO_SECTOR:
        return _refused(f"it is a CD or DVD (ISO) that is cut off after {size} bytes", AGAIN)
    (sectors,) = struct.unpack_from("<I", head, _DESCRIPTORS + 80)
    if size % SECTOR or sectors * _ISO_SECTOR > size:
        whole = sectors * _ISO_SECTOR
        return _refused(f"it is a CD or DVD (ISO) that is cut off: {size} of {whole} bytes are here", AGAIN)
    for at in range(_DESCRIPTORS, len(head) - _ISO_SECTOR + 1, _ISO_SECTOR):
        if head[at + 1 : at + 6] != b"CD001" or head[at] == _LAST_DESCRIPTOR:
            break
        if head[at] == 0 and head[at + 7 : at + 7 + len(_EL_TORITO)] == _EL_TORITO:
            return Finding(ISO, "an installer (ISO)")
    return Finding(DRIVERS, "a CD or DVD (ISO) from which no computer boots")


def _raw(text: str, size: int) -> Finding:
    if size < SMALLEST_BYTES:
        return _refused(f"it is too small for a disk: {size} bytes, at least {SMALLEST_BYTES} are needed", _ITSELF)
    if size % SECTOR:
        return _refused(f"it is cut off: a raw disk is a multiple of {SECTOR} bytes long, this one has {size}", AGAIN)
    return Finding("raw", f"a raw disk with {text}")


def _qcow2(head: bytes, size: int) -> Finding:
    if len(head) < 72:
        return _refused("it is a truncated qcow2 image: not even the header is whole", AGAIN)
    _, version, backing, _, cluster_bits, _, crypt, l1_size, l1_at, refcounts_at, _ = _QCOW2.unpack_from(head)
    features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 and len(head) >= 80 else 0
    if version not in (2, 3):
        known = f"it is a qcow2 image of version {version}; versions 2 and 3 are known"
        return _refused(known, _ANEW.format("qcow2"))
    if backing:
        needs = "it is a qcow2 image that needs another file (its backing file)"
        return _refused(needs, _WHOLE.format("qcow2"))
    if features & _DATA_FILE:
        return _refused("it is a qcow2 image whose data lies in another file", _WHOLE.format("qcow2"))
    if crypt:
        return _refused(
            "it is an encrypted qcow2 image; kmgr cannot ask desktops for its passphrase",
            "Make a copy of it first, without encryption",
        )
    if features & _CORRUPT:
        return _refused("it is a qcow2 image that is marked as corrupt", "Try: qemu-img check -r all FILE")
    if features & _DIRTY:
        mend = "Mend it with: qemu-img check -r all FILE"
        return _refused("it is a qcow2 image that was not closed properly", mend)
    if not 9 <= cluster_bits <= 21:
        return _refused("it is not a valid qcow2 image: its header is damaged", AGAIN)
    if l1_at + 8 * l1_size > size or refcounts_at >= size:
        return _refused("it is a truncated qcow2 image: its tables lie beyond its end", AGAIN)
    return Finding("qcow2", "a qcow2 image")


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
