"""Reading a desktop's overlay as a file: which grains it holds itself, and what they say.

Never through the base, and without QEMU's locks: the desktop may be started at
any moment. Of a disk that is in use only *where it holds something* may be
asked, right after QEMU was made to write its tables down; what it holds then
comes from QEMU (`nbd`). All of it blocks.
"""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from kmgr.errors import NotFound, Refused
from kmgr.replica import qcow2
from kmgr.replica.grains import GRAIN, grain_count

_ENTRIES = GRAIN // 8
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_ZERO = 1
_LONGEST_DIRECTORY = 1 << 20


class OverlayFile:
    """An overlay open for reading."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"the desktop's disk {path} is not there") from None
        try:
            self.header = qcow2.overlay(os.pread(self._file, qcow2.HEADER_BYTES, 0))
            at, entries = self.header.first_level
            self._first = _big(os.pread(self._file, 8 * entries, at))
        except BaseException:
            os.close(self._file)
            raise
        self._number, self._table = -1, array("Q")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def allocated(self) -> Iterator[int]:
        """Return the grains that the overlay holds itself, those of zeros included, in order."""
        count = grain_count(self.header.size_bytes)
        for number, entry in enumerate(self._first[: -(-count // _ENTRIES)]):
            if entry & _OFFSET:
                self._load(number)
                for index, place in enumerate(self._table):
                    if place and number * _ENTRIES + index < count:
                        yield number * _ENTRIES + index

    def read(self, grain: int) -> bytes | None:
        """Return a grain that the overlay holds itself, b"" if it reads as zeros; None if the base shows through."""
        number, index = divmod(grain, _ENTRIES)
        if number >= len(self._first) or not self._first[number] & _OFFSET:
            return None
        self._load(number)
        entry = self._table[index]
        if not entry:
            return None
        if entry & _COMPRESSED:
            raise Refused("the desktop's disk has compressed clusters, which kmgr never writes: it cannot be copied")
        if entry & _ZERO:
            return b""
        length = min(GRAIN, self.header.size_bytes - grain * GRAIN)
        data = os.pread(self._file, length, entry & _OFFSET)
        # The file may end within the last cluster that was written: the rest of it is zeros.
        return data + bytes(length - len(data))

    def bitmaps(self) -> list[qcow2.Bitmap]:
        """Return the dirty bitmaps that lie in the file."""
        offset, size, count = self.header.bitmaps
        if not count:
            return []
        if size > _LONGEST_DIRECTORY:
            raise Refused("the directory of dirty bitmaps in the desktop's disk is damaged: it is too long")
        return qcow2.bitmaps(os.pread(self._file, size, offset), count)

    def dirty(self, bitmap: qcow2.Bitmap) -> Iterator[tuple[int, int]]:
        """Return the extents (offset, length) that a bitmap says were written, in order."""
        most = -(-self.header.size_bytes // (GRAIN * 8 * bitmap.granularity))
        table = os.pread(self._file, 8 * min(bitmap.entries, most), bitmap.table_at)
        for number, entry in enumerate(_big(table)):
            base = number * GRAIN * 8
            if entry & _OFFSET:
                bits = os.pread(self._file, GRAIN, entry & _OFFSET)
                for index, byte in enumerate(bits):
                    for bit in range(8) if byte else ():
                        if byte & (1 << bit):
                            yield (base + index * 8 + bit) * bitmap.granularity, bitmap.granularity
            elif entry & 1:
                yield base * bitmap.granularity, GRAIN * 8 * bitmap.granularity

    def _load(self, number: int) -> None:
        if number != self._number:
            table = _big(os.pread(self._file, GRAIN, self._first[number] & _OFFSET))
            self._table = table + array("Q", bytes(8 * (_ENTRIES - len(table))))
            self._number = number


def stamp(path: Path) -> str:
    """Return what changes whenever a file is written."""
    told = path.stat()
    return f"{told.st_ino}:{told.st_size}:{told.st_mtime_ns}"


def _big(data: bytes) -> "array[int]":
    values = array("Q", data[: len(data) // 8 * 8])
    values.byteswap()
    return values
