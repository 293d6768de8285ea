"""Bounds what the serial consoles of desktops take on the disk, where nothing else does: libvirt without virtlogd.

QEMU writes on at its place in the file, whatever is done to that. So what is old is not cut off: it is made a hole,
which takes no room. The last lines stay where they are, and nothing that is being written gets lost. Who reads such a
file sees zeros before them; `tail` shows what is there.
"""

import ctypes
import os
from pathlib import Path

_MIB = 1 << 20
# What a file may take before its beginning goes, and what is kept of it then. virtlogd begins a new one at 2 MiB.
MOST_BYTES = 8 * _MIB
KEPT_BYTES = 1 * _MIB
# Holes are made of whole blocks of the file system; of this size all of them have some.
_BLOCK = 64 << 10
_KEEP_SIZE, _PUNCH_HOLE = 1, 2

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def old_part(size: int, taken: int) -> int:
    """Return how many bytes at the beginning of a file of this size go, when it takes so much on the disk."""
    return 0 if taken <= MOST_BYTES else max(0, size - KEPT_BYTES) // _BLOCK * _BLOCK


def shorten(folder: Path) -> str:
    """Free what is old in the console files of a folder; say in words what cannot be freed, empty if all is well."""
    failed = []
    for file in sorted(folder.glob("*.log")):
        taken = 0
        try:
            there = file.stat()
            taken = there.st_blocks * 512
            if old := old_part(there.st_size, taken):
                _make_hole(file, old)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed.append(f"{file} ({taken // _MIB} MiB: {error.strerror or error})")
    if not failed:
        return ""
    more = f" and {len(failed) - 1} more" * (len(failed) > 1)
    return (
        f"What guests say on their serial consoles grows without a bound here: {failed[0]}{more}. Let libvirt use "
        "virtlogd, or keep the desktops on a file system that can free a part of a file (ext4, XFS, Btrfs)."
    )


def _make_hole(file: Path, length: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if _LIBC.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, 0, length) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
    finally:
        os.close(descriptor)
