"""The smallest installer that only UEFI starts: an ISO with a FAT disk in it, on that one program, which says hello.

It speaks on the serial port, waits, and does nothing else. It is signed by nobody: secure boot refuses it.
"""

import struct

from kmgr.provision.iso import SECTOR
from tests.lab.boot_iso import volume

HELLO = "kmgr was started by UEFI"
_SECTOR = 512
_CATALOG, _DISK = 19, 20
_ALIGN = 0x200
# Sectors of the FAT disk: its boot sector, two tables, the root folder, then clusters of one sector.
_SECTORS, _TABLE, _ROOT_ENTRIES = 64, 1, 16
_BEGIN = 1 + 2 * _TABLE + _ROOT_ENTRIES * 32 // _SECTOR
# lea rsi, [rip + text]; mov dx, 3f8h; next: lodsb; test al, al; jz end; out dx, al; jmp next; end: hlt; jmp end
_SAY = bytes.fromhex("488d3511000000 66baf803 ac 84c0 7403 ee ebf8 f4 ebfd 90909090")


def image(*, publisher: str = "") -> bytes:
    """Return the ISO; `publisher` stands in it as who made it."""
    disk = _disk(_program())
    last = _DISK + -(-len(disk) // SECTOR)
    head = bytearray(volume(last).ljust(SECTOR, b"\0"))
    head[318 : 318 + 128] = publisher.ljust(128).encode()
    sectors = {
        16: bytes(head),
        17: b"\0CD001\x01" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", _CATALOG),
        18: b"\xffCD001\x01",
        _CATALOG: _catalog(len(disk)),
    }
    front = b"".join(sectors.get(n, b"").ljust(SECTOR, b"\0") for n in range(_DISK))
    return (front + disk).ljust(last * SECTOR, b"\0")


def _catalog(size: int) -> bytes:
    check = bytearray(b"\x01\xef".ljust(30, b"\0") + b"\x55\xaa")
    total = sum(struct.unpack("<16H", check))
    check[28:30] = struct.pack("<H", -total & 0xFFFF)
    return bytes(check) + struct.pack("<BBHBBHI", 0x88, 0, 0, 0, 0, size // _SECTOR, _DISK)


def _program() -> bytes:
    """Return a PE32+ program for UEFI of one section, which runs wherever it is loaded."""
    code = _SAY + f"{HELLO}\r\n".encode() + b"\0"
    code = code.ljust(-(-len(code) // _ALIGN) * _ALIGN, b"\0")
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 112, 0x0022)
    optional = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII",
        *(0x20B, 0, 0, len(code), 0, 0, _ALIGN, _ALIGN),  # sizes, then where it begins and where its code does
        *(0, _ALIGN, _ALIGN, 0, 0, 0, 0, 0, 0, 0),  # the address that it wishes for, alignments, versions
        *(2 * _ALIGN + len(code) - _ALIGN, _ALIGN, 0, 10, 0),  # its size in memory, of its head; an EFI application
        *(0, 0, 0, 0, 0, 0),
    )
    section = struct.pack("<8sIIIIIIHHI", b".text", len(code), _ALIGN, len(code), _ALIGN, 0, 0, 0, 0, 0x60000020)
    return (dos + coff + optional + section).ljust(_ALIGN, b"\0") + code


def _disk(program: bytes) -> bytes:
    """Return a FAT12 disk with EFI/BOOT/BOOTX64.EFI on it."""
    clusters = -(-len(program) // _SECTOR)
    boot = (
        b"\xeb\x3c\x90"
        + b"KMGR".ljust(8)
        + struct.pack("<HBHBHHBHHHII", _SECTOR, 1, 1, 2, _ROOT_ENTRIES, _SECTORS, 0xF8, _TABLE, 1, 1, 0, 0)
    )
    boot += struct.pack("<BBBI", 0x80, 0, 0x29, 1) + b"KMGR".ljust(11) + b"FAT12".ljust(8)
    # Folder EFI is cluster 2, BOOT 3, the program begins at 4.
    chain = [0xFF8, 0xFFF, 0xFFF, 0xFFF, *range(5, 4 + clusters), 0xFFF]
    table = bytearray(_TABLE * _SECTOR)
    for n, value in enumerate(chain):
        at = n * 3 // 2
        (old,) = struct.unpack_from("<H", table, at)
        struct.pack_into("<H", table, at, old | (value << 4 if n % 2 else value))
    root = _entry("EFI", 2, folder=True)
    efi = _entry(".", 2, folder=True) + _entry("..", 0, folder=True) + _entry("BOOT", 3, folder=True)
    last = _entry(".", 3, folder=True) + _entry("..", 2, folder=True) + _entry("BOOTX64 EFI", 4, size=len(program))
    parts = [
        boot.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa",
        *(bytes(table), bytes(table)),
        root.ljust(_ROOT_ENTRIES * 32, b"\0"),
        *(efi.ljust(_SECTOR, b"\0"), last.ljust(_SECTOR, b"\0")),
        program,
    ]
    return b"".join(parts).ljust(_SECTORS * _SECTOR, b"\0")


def _entry(name: str, cluster: int, *, folder: bool = False, size: int = 0) -> bytes:
    return struct.pack(
        "<11sBBBHHHHHHHI", name.ljust(11).encode(), 0x10 if folder else 0x20, 0, 0, 0, 0, 0, 0, 0, 0, cluster, size
    )
