"""Reading what lies in memory already, without ever waiting for a disk: so it may be done in the daemon's loop.

Handing the reading of a piece over to a thread costs more than the reading: two hand-overs, Python's lock, and bytes
that are then in the other core's cache.

* `preadv2` with `RWF_NOWAIT` gives what is in memory, or says that it would have to wait. Disk file systems know it.
* Those that do not (tmpfs among them) are asked by `cachestat` (Linux 6.5) whether all is in memory, and then read.
  That it is thrown out between the two is possible, and would cost one waiting.
"""

import ctypes
import errno
import os
from collections.abc import Sequence

_CACHESTAT = 451
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Where(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Found(ctypes.Structure):
    _fields_ = (
        ("cached", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("on_its_way", ctypes.c_uint64),
        ("thrown_out", ctypes.c_uint64),
        ("thrown_out_lately", ctypes.c_uint64),
    )


# Not by `CDLL`: letting go of Python's lock for a microsecond costs several.
_C = ctypes.PyDLL(None, use_errno=True)


def at_hand(opened: int, stretches: Sequence[tuple[int, int]], room: memoryview) -> bool:
    """Fill `room` with the bytes at some places of a file; False if not all of them lie in memory."""
    at = 0
    for offset, length in stretches:
        if not _filled(opened, room[at : at + length], offset):
            return False
        at += length
    return True


def _filled(opened: int, room: memoryview, offset: int) -> bool:
    try:
        return os.preadv(opened, [room], offset, os.RWF_NOWAIT) == len(room)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            return False
    return _in_memory(opened, offset, len(room)) and os.preadv(opened, [room], offset) == len(room)


def _in_memory(opened: int, offset: int, length: int) -> bool:
    where, found = _Where(offset, length), _Found()
    if _C.syscall(_CACHESTAT, opened, ctypes.byref(where), ctypes.byref(found), 0):
        return False
    return bool(found.cached >= (offset + length - 1) // _PAGE - offset // _PAGE + 1)
