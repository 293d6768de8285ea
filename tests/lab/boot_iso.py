"""The smallest installer there is: an ISO whose program writes a boot sector onto the first disk and starts again.

That boot sector is the installed system: it notes on the disk that it ran, waits for a key and switches off. A few
dozen bytes of processor code stand for gigabytes of an operating system; all that kmgr sees of one happens.
"""

import struct

from kmgr.provision.iso import SECTOR

_SECTOR = 512
_PROGRAM, _CATALOG = 20, 19
# Segments to zero, the stack below the program, then write one sector (INT 13h, 43h) by the packet at `si`.
_WRITE = "31c0 8ed8 8ec0 8ed0 bc007c be{packet} b80043 b280 cd13"
# Reset the machine; if the write failed (carry), stop instead.
_START_AGAIN = "7206 baf90c b006 ee f4 ebfd"
# Wait for a key (INT 16h), switch off by ACPI (QEMU's q35), stop.
_WAIT_AND_GO_OFF = "31c0 cd16 ba0406 b80020 ef f4 ebfd"
_AT, _PACKET = 0x7C00, 0x100


def system() -> bytes:
    """Return the boot sector that is installed; it writes a copy of itself onto the next sector when it runs."""
    code = _code(_WAIT_AND_GO_OFF).ljust(_PACKET, b"\0") + _packet(source=_AT, sector=1)
    return code.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"


def image(*, bootable: bool = True) -> bytes:
    """Return the ISO; without its boot record it is any CD."""
    program = _code(_START_AGAIN).ljust(_PACKET, b"\0") + _packet(source=_AT + _SECTOR, sector=0)
    sectors = {
        16: volume(_PROGRAM + 1),
        17: b"\0CD001\x01" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", _CATALOG),
        18: b"\xffCD001\x01",
        _CATALOG: _catalog(),
        _PROGRAM: program.ljust(_SECTOR, b"\0") + system(),
    }
    if not bootable:
        sectors[17] = sectors.pop(18)
    return b"".join(sectors.get(n, b"").ljust(SECTOR, b"\0") for n in range(_PROGRAM + 1))


def _code(then: str) -> bytes:
    packet = struct.pack("<H", _AT + _PACKET).hex()
    return bytes.fromhex(_WRITE.format(packet=packet) + then)


def _packet(*, source: int, sector: int) -> bytes:
    return struct.pack("<BBHHHQ", 16, 0, 1, source, 0, sector)


def volume(sectors: int) -> bytes:
    """Return the descriptor of a volume of so many sectors."""
    size = struct.pack("<I", sectors) + struct.pack(">I", sectors)
    return b"\x01CD001\x01\0" + b" " * 32 + b"INSTALLER".ljust(32) + bytes(8) + size


def _catalog() -> bytes:
    check = bytearray(b"\x01".ljust(30, b"\0") + b"\x55\xaa")
    total = sum(struct.unpack("<16H", check))
    check[28:30] = struct.pack("<H", -total & 0xFFFF)
    return bytes(check) + struct.pack("<BBHBBHI", 0x88, 0, 0, 0, 0, SECTOR // _SECTOR, _PROGRAM)
