"""A kernel file that need not unpack itself; that guests boot with one is seen wherever the test guest boots."""

import lzma
import struct
from pathlib import Path

import pytest

from appliance.image.plain_kernel import plain

START, ENTRY = 0x1000000, 0x1000200
SETUP = 3 * 512
TEXT, DATA = bytes(range(1, 256)) * 20, b"data" * 100


def elf() -> bytes:
    """A kernel of two segments and a hole between them; the second needs more memory than the file has."""
    header = bytearray(64)
    header[:4] = b"\x7fELF"
    struct.pack_into("<QQ", header, 24, ENTRY, 64)
    struct.pack_into("<HH", header, 54, 56, 3)
    text = struct.pack("<IIQQQQQQ", 1, 5, 1024, 0, START, len(TEXT), len(TEXT), 4096)
    data = struct.pack("<IIQQQQQQ", 1, 6, 1024 + len(TEXT), 0, START + 0x4000, len(DATA), 0x9000, 4096)
    note = struct.pack("<IIQQQQQQ", 4, 4, 0, 0, 0, 64, 64, 4)
    return (bytes(header) + text + data + note).ljust(1024, b"\0") + TEXT + DATA


def packed(payload: bytes) -> bytes:
    """The file that Debian would bring: setup code with the header, code that unpacks, the packed kernel."""
    setup = bytearray(SETUP)
    setup[0x1F1] = SETUP // 512 - 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    setup[0x234] = 1
    struct.pack_into("<H", setup, 0x236, 0x7F)
    struct.pack_into("<II", setup, 0x248, 700, len(payload))
    return bytes(setup) + b"\xcc" * 700 + payload + b"\xcc" * 300


def made(tmp_path: Path, image: bytes) -> bytes:
    (tmp_path / "vmlinuz").write_bytes(image)
    return plain(tmp_path / "vmlinuz", tmp_path / "linux", tmp_path).read_bytes()


def test_the_kernel_lies_in_the_file_as_it_will_in_memory(tmp_path: Path) -> None:
    image = made(tmp_path, packed(lzma.compress(elf())))
    body = image[SETUP + 7 * 4096 :]
    assert body[: len(TEXT)] == TEXT
    assert body[0x4000 : 0x4000 + len(DATA)] == DATA
    assert not any(body[len(TEXT) : 0x4000])
    assert len(body) == 0x5000, "zeros at the end are written when it starts"


def test_a_loader_is_told_what_follows_and_that_it_goes_to_its_place_only(tmp_path: Path) -> None:
    image = made(tmp_path, packed(lzma.compress(elf())))
    assert struct.unpack_from("<I", image, 0x1F4)[0] * 16 == len(image) - SETUP
    assert image[0x234] == 0
    assert struct.unpack_from("<H", image, 0x236)[0] & 0b1101 == 0
    assert struct.unpack_from("<I", image, 0x264)[0] == 0


def test_the_page_tables_map_memory_to_itself(tmp_path: Path) -> None:
    image = made(tmp_path, packed(lzma.compress(elf())))
    tables = image[SETUP + 4096 : SETUP + 7 * 4096]
    top, first = struct.unpack_from("<Q", tables)[0], struct.unpack_from("<Q", tables, 4096)[0]
    assert (top, first) == (0x102003, 0x103003)
    leaves = struct.unpack_from("<2048Q", tables, 8192)
    assert [leaf & ~0xFFF for leaf in leaves] == [n << 21 for n in range(2048)]


@pytest.mark.parametrize(
    ("image", "why"),
    [(b"MZ" * 600, "no Linux kernel"), (packed(b"\x1f\x8b" * 50), "not packed with xz")],
    ids=["something else", "gzip"],
)
def test_what_is_no_such_kernel_is_refused(tmp_path: Path, image: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        made(tmp_path, image)
