"""A Linux kernel file that need not unpack itself: in emulation that takes half of a small guest's boot.

Debian packs its kernels with xz, and those for clouds with lz4. Without KVM the guest's own unpacking of xz
costs 3 to 4 s of a processor, of 8 from power on to an answering agent. Here it is
unpacked once, and a few instructions (`appliance/guest/plain-kernel.s`) stand where
the unpacking stood. For BIOS only: the EFI stub is part of what is left out, and so
is moving the kernel elsewhere in memory (boot with nokaslr).

Facts of the file format are from the kernel's Documentation/x86/boot.rst.
"""

import lzma
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "appliance" / "guest" / "plain-kernel.s"

# Where boot loaders put the part of the file that is not real mode; the instructions and the page tables come first.
_BASE = 0x100000
_TABLES = _BASE + 0x1000
_BODY = _TABLES + 6 * 0x1000
_PAGE = 4096
_XZ, _LZ4 = b"\xfd7zXZ\0", b"\x02!L\x18"


@dataclass(frozen=True, slots=True)
class Flat:
    """A kernel in memory: `body` begins at `start`, zeros follow up to `end`; it is entered at `entry`."""

    start: int
    end: int
    entry: int
    body: bytes


def plain(packed: Path, target: Path, work: Path) -> Path:
    """Write the kernel of `packed` (a bzImage packed with xz or lz4) to `target` so that it starts without unpacking.

    Raises:
        ValueError: It is no such kernel.

    """
    image = packed.read_bytes()
    setup, payload = _parts(image)
    flat = _flat(unpacked(payload))
    target.write_bytes(_header(setup, len(flat.body)) + _code(flat, work) + _tables() + flat.body)
    return target


def _parts(image: bytes) -> tuple[bytes, bytes]:
    """Return the real-mode part with the header, and the packed kernel."""
    if image[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", image, 0x206)[0] < 0x208:
        raise ValueError("this is no Linux kernel of the boot protocol 2.08 or later")
    size = (image[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    return image[:size], image[size + offset : size + offset + length]


def unpacked(payload: bytes) -> bytes:
    """Return a kernel as it was before it was packed.

    Raises:
        ValueError: It is packed in a way that is not known here.

    """
    if payload.startswith(_XZ):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(_LZ4):
        # Four bytes at the end tell the unpacked size, which lz4 would take for another block.
        done = subprocess.run(["lz4", "-dc"], input=payload[:-4], capture_output=True, check=True, timeout=60)
        return done.stdout
    raise ValueError("this kernel is packed neither with xz nor with lz4")


def _flat(elf: bytes) -> Flat:
    """Return the loaded segments of the unpacked kernel, side by side as in memory."""
    entry, table = struct.unpack_from("<QQ", elf, 24)
    size, count = struct.unpack_from("<HH", elf, 54)
    segments = []
    for number in range(count):
        kind, _, offset, _, address, in_file, in_memory = struct.unpack_from("<IIQQQQQ", elf, table + size * number)
        if kind == 1:
            segments.append((address, elf[offset : offset + in_file], in_memory))
    start = min(address for address, _, _ in segments)
    end = max(address + in_memory for address, _, in_memory in segments)
    memory = bytearray(end - start)
    for address, data, _ in segments:
        memory[address - start : address - start + len(data)] = data
    body = bytes(memory).rstrip(b"\0")
    return Flat(start, end, entry, body + bytes(-len(body) % _PAGE))


def _header(setup: bytes, body: int) -> bytes:
    """Return the real-mode part, telling a loader what follows now."""
    changed = bytearray(setup)
    struct.pack_into("<I", changed, 0x1F4, (_BODY - _BASE + body) // 16)  # syssize
    changed[0x234] = 0  # relocatable_kernel
    (flags,) = struct.unpack_from("<H", changed, 0x236)
    struct.pack_into("<H", changed, 0x236, flags & ~0b1101)  # xloadflags: no 64-bit entry, no EFI handover
    struct.pack_into("<II", changed, 0x248, 0, 0)  # payload_offset, payload_length
    struct.pack_into("<I", changed, 0x264, 0)  # handover_offset
    return bytes(changed)


def _code(flat: Flat, work: Path) -> bytes:
    """Return the instructions, a page long."""
    size = len(flat.body)
    values = {
        "BASE": _BASE, "TABLES": _TABLES, "ENTRY": flat.entry, "WORDS": size // 4,
        "SOURCE_LAST": _BODY + size - 4, "TARGET_LAST": flat.start + size - 4, "TARGET_END": flat.start + size,
        "ZEROS": max(0, flat.end - flat.start - size) // 4,
    }  # fmt: skip
    source, made, code = work / "plain-kernel.s", work / "plain-kernel.o", work / "plain-kernel.bin"
    source.write_text("".join(f".set {name}, {value}\n" for name, value in values.items()) + SOURCE.read_text())
    subprocess.run(["as", "--64", "-o", str(made), str(source)], check=True, timeout=60)
    into = ["--oformat", "binary", "-Ttext", hex(_BASE), "-e", hex(_BASE), "-o", str(code)]
    subprocess.run(["ld", "-m", "elf_x86_64", *into, str(made)], check=True, timeout=60)
    return code.read_bytes().ljust(_TABLES - _BASE, b"\0")


def _tables() -> bytes:
    """Return page tables that map the first 4 GiB to themselves in steps of 2 MiB: one, one, four pages."""
    top = struct.pack("<Q", (_TABLES + _PAGE) | 3).ljust(_PAGE, b"\0")
    middle = struct.pack("<4Q", *((_TABLES + (2 + n) * _PAGE) | 3 for n in range(4))).ljust(_PAGE, b"\0")
    return top + middle + struct.pack("<2048Q", *((n << 21) | 0x83 for n in range(2048)))
