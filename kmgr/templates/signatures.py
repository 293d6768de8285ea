"""Tell what an offered disk image is from its first bytes, before any other program opens it.

A qcow2 may name other files (a backing file, an external data file) that whoever
opens it would read too, so those are found here, in the header itself. A raw
disk has no mark of its own: it must at least begin like a disk, with a boot
sector, a partition table or a file system. Whatever is something else is named.

Pure: bytes in, findings out.
"""

import struct
from dataclasses import dataclass

# As many bytes of the beginning as the marks below need.
HEAD_BYTES = 128 * 1024
SMALLEST_BYTES = 1 << 20
SECTOR = 512

_QCOW2 = struct.Struct(">4sIQIIQIIQQI")
_QCOW2_MAGIC = b"QFI\xfb"
_DIRTY, _CORRUPT, _DATA_FILE = 1, 2, 4

# offset, bytes there, what it is: things that people try and that must be something else first.
_OTHERS = (
    (0, b"KDMV", "a VMware disk (VMDK)"),
    (0, b"COWD", "a VMware disk (VMDK)"),
    (0, b"# Disk DescriptorFile", "the description of a VMware disk (VMDK)"),
    (0x40, b"\x7f\x10\xda\xbe", "a VirtualBox disk (VDI)"),
    (0, b"vhdxfile", "a Hyper-V disk (VHDX)"),
    (0, b"conectix", "a Hyper-V disk (VHD)"),
    (0x8001, b"CD001", "a CD or DVD (ISO 9660), not an installed disk"),
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


@dataclass(frozen=True, slots=True)
class Finding:
    """What a file is: `format` is `qcow2` or `raw`, or empty with the reason why it can't be taken."""

    format: str
    text: str


def recognise(head: bytes, size: int) -> Finding:
    """Say what a file of `size` bytes that begins with `head` is."""
    if not size:
        return Finding("", "it is empty")
    if head.startswith(_QCOW2_MAGIC):
        problem = _qcow2_problem(head, size)
        return Finding("", problem) if problem else Finding("qcow2", "a qcow2 image")
    for offset, mark, text in _OTHERS:
        if head[offset : offset + len(mark)] == mark:
            advice = "" if "CD" in text or "PDF" in text else ". Make a qcow2 or raw image of it first"
            return Finding("", f"it is {text}{advice}")
    for offset, mark, text in _DISKS:
        if head[offset : offset + len(mark)] == mark:
            problem = _raw_problem(size)
            return Finding("", problem) if problem else Finding("raw", f"a raw disk with {text}")
    if _is_text(head):
        return Finding("", "it is a text file")
    return Finding("", "it is neither qcow2 nor a raw disk: it begins with no boot sector and no file system")


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
