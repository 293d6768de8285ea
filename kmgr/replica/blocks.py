"""Blocks of a version in a file: reading, checking, writing and sharing them between files.

Blocking: called in threads.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from typing import TypeAlias

from kmgr.replica.manifest import Block, digest

Data: TypeAlias = bytes | bytearray | memoryview

# <linux/fs.h>: _IOW(0x94, 13, struct file_clone_range {s64 src_fd; u64 src_offset, src_length, dest_offset})
_FICLONERANGE = 0x4020940D
_CLONE_RANGE = struct.Struct("=qQQQ")
_CANNOT_SHARE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS}


class Stretch:
    """Where a file has data, asked for places in ascending order."""

    def __init__(self, opened: int) -> None:
        self._opened = opened
        self._start = self._end = 0

    def reaches(self, offset: int, length: int) -> bool:
        """Tell whether the file system may have anything in this place."""
        if self._end <= offset:
            try:
                self._start = os.lseek(self._opened, offset, os.SEEK_DATA)
                self._end = os.lseek(self._opened, self._start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                self._start = self._end = 1 << 62  # nothing but a hole from here on
        return self._start < offset + length


def read_blocks(opened: int, blocks: tuple[Block, ...]) -> bytes:
    """Return the bytes of some blocks of a file; fewer if the file is shorter than it should be."""
    return read_stretches(opened, together(blocks))


def read_stretches(opened: int, stretches: Sequence[tuple[int, int]]) -> bytes:
    """Return the bytes at some places (offset, length) of a file; fewer if it is shorter than it should be."""
    parts = [os.pread(opened, length, offset) for offset, length in stretches]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def right(blocks: tuple[Block, ...], data: Data) -> bool:
    """Tell whether these bytes are those blocks, one after the other."""
    if len(data) != sum(block.length for block in blocks):
        return False
    view, at = memoryview(data), 0
    for block in blocks:
        if digest(view[at : at + block.length]) != block.digest:
            return False
        at += block.length
    return True


def together(blocks: tuple[Block, ...]) -> list[tuple[int, int]]:
    """Return (offset, length) with neighbouring blocks joined: fewer, larger reads and writes."""
    joined: list[tuple[int, int]] = []
    for block in blocks:
        if joined and sum(joined[-1]) == block.offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + block.length)
        else:
            joined.append((block.offset, block.length))
    return joined


def write_all(opened: int, data: memoryview, offset: int) -> None:
    """Write all of it, however little the system takes at a time."""
    while data:
        written = os.pwrite(opened, data, offset)
        data, offset = data[written:], offset + written


def side_by_side(blocks: Sequence[tuple[Block, Block]]) -> list[tuple[int, int, int]]:
    """Return (their offset, our offset, length) with those joined that are neighbours in both files."""
    joined: list[tuple[int, int, int]] = []
    for theirs, ours in blocks:
        if joined:
            source, target, length = joined[-1]
            if (source + length, target + length) == (theirs.offset, ours.offset):
                joined[-1] = (source, target, length + ours.length)
                continue
        joined.append((theirs.offset, ours.offset, ours.length))
    return joined


def share(source: int, target: int, theirs: int, ours: int, length: int) -> None:
    """Let two files share some bytes; where the file system cannot, copy them within the kernel."""
    try:
        fcntl.ioctl(target, _FICLONERANGE, _CLONE_RANGE.pack(source, theirs, length, ours))
        return
    except OSError as error:
        if error.errno not in _CANNOT_SHARE:
            raise
    while length:
        try:
            copied = os.copy_file_range(source, target, length, theirs, ours)
        except OSError as error:
            if error.errno not in _CANNOT_SHARE:
                raise
            data = os.pread(source, length, theirs)
            write_all(target, memoryview(data), ours)
            copied = len(data)
        if not copied:
            raise OSError(errno.EIO, "an older version's file became shorter")
        theirs, ours, length = theirs + copied, ours + copied, length - copied
