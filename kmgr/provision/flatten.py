"""Making a raw file of a desktop's disk: its golden image with all that the desktop changed written into it.

The base is shared block by block where the file system can (reflink), else copied
without its holes; then each cluster that the overlay holds itself is written over
it, and the whole is hashed. The domain must be off. All of it blocks.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from kmgr.errors import Unavailable
from kmgr.replica import manifest as m
from kmgr.replica.grains import GRAIN
from kmgr.replica.images import scan
from kmgr.replica.overlay_file import OverlayFile
from kmgr.templates.absorb import next_data

_FICLONE = 0x40049409
_PIECE = 16 << 20
_ZEROS = bytes(GRAIN)


def flatten(
    overlay: Path, base: Path, target: Path, *, on_bytes: Callable[[int], None], stop: Callable[[], bool]
) -> m.Manifest:
    """Fill `target`, which must not exist, and return its manifest."""
    with OverlayFile(overlay) as top:
        _copy(base, target, top.header.size_bytes, stop=stop)
        with target.open("r+b", buffering=0) as file:
            for grain in top.allocated():
                _go_on(stop)
                data = top.read(grain)
                if data is not None:
                    length = min(GRAIN, top.header.size_bytes - grain * GRAIN)
                    _write(file.fileno(), data or _ZEROS[:length], grain * GRAIN)
            os.fsync(file.fileno())
    return scan(target, on_bytes=on_bytes, stop=stop)


def _copy(base: Path, target: Path, size: int, *, stop: Callable[[], bool]) -> None:
    with base.open("rb", buffering=0) as old, target.open("xb", buffering=0) as new:
        os.fchmod(new.fileno(), 0o600)
        try:
            fcntl.ioctl(new, _FICLONE, old.fileno())
        except OSError:  # not on this file system
            _copy_data(old.fileno(), new.fileno(), stop=stop)
        os.ftruncate(new.fileno(), size)


def _copy_data(old: int, new: int, *, stop: Callable[[], bool]) -> None:
    size = os.fstat(old).st_size
    os.ftruncate(new, size)
    at = next_data(old, 0)
    while at is not None and at < size:
        end = os.lseek(old, at, os.SEEK_HOLE)
        while at < end:
            _go_on(stop)
            copied = os.copy_file_range(old, new, min(_PIECE, end - at), at, at)
            if not copied:
                return
            at += copied
        at = next_data(old, end)


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done


def _go_on(stop: Callable[[], bool]) -> None:
    if stop():
        raise Unavailable("copying the disk was stopped")
