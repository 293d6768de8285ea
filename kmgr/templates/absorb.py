"""Turning an offered disk into a raw file of ours, hashed on the way: what is written or read is read once.

* A raw file is copied block by block and hashed in the same pass, zeros left out. Where the file system shares
  blocks (reflink) nothing is copied; a file that is ours already (an upload) gets a second name.
* What qemu-img converts is hashed behind it (`follow`): it writes from the beginning to the end, so a block is
  complete as soon as anything lies beyond it, and is read while it is still in memory.

All of it blocks: the loop calls these in threads.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from kmgr.errors import Refused, Unavailable
from kmgr.replica import manifest as m
from kmgr.replica.images import scan

_FICLONE = 0x40049409
_PIECE = 16 * m.BLOCK_BYTES
_ZEROS = bytes(m.BLOCK_BYTES)
_LOOK_AGAIN_S = 0.1
_SHORTER = "the file became shorter while it was read: import it when nothing writes to it any more"

OnBytes = Callable[[int], None]
Stop = Callable[[], bool]


def fresh(target: Path, size: int) -> None:
    """Make an empty sparse file of that size, ours alone."""
    with target.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(size)


def take_over(source: Path, target: Path, *, on_bytes: OnBytes, stop: Stop) -> m.Manifest:
    """Give a raw file that is ours a second name, and hash it."""
    os.link(source, target)
    return scan(target, on_bytes=on_bytes, stop=stop)


def copy_raw(source: Path, target: Path, *, on_bytes: OnBytes, stop: Stop) -> m.Manifest:
    """Copy somebody's raw file to a fresh sparse one, or share its blocks, and hash it."""
    with source.open("rb", buffering=0) as old, target.open("xb", buffering=0) as new:
        os.fchmod(new.fileno(), 0o600)
        size = os.fstat(old.fileno()).st_size
        if not _cloned(old.fileno(), new.fileno()):
            new.truncate(size)
            return m.build(size, _copied(old.fileno(), new.fileno(), size, on_bytes=on_bytes, stop=stop))
    return scan(target, on_bytes=on_bytes, stop=stop)


def follow(path: Path, size: int, *, finished: threading.Event, on_bytes: OnBytes, stop: Stop) -> m.Manifest:
    """Hash a sparse file while another program fills it in order; ends some time after `finished` is set."""
    with path.open("rb", buffering=0) as file:
        return m.build(size, _following(file.fileno(), size, finished, on_bytes=on_bytes, stop=stop))


def knows_holes(path: Path) -> bool:
    """Tell whether the file system can say which parts of a fresh, empty sparse file hold anything."""
    with path.open("rb", buffering=0) as file:
        return next_data(file.fileno(), 0) is None


def next_data(opened: int, offset: int) -> int | None:
    """Return where data lie at or behind an offset, None if there are none."""
    try:
        return os.lseek(opened, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _cloned(old: int, new: int) -> bool:
    try:
        fcntl.ioctl(new, _FICLONE, old)
    except OSError:
        return False
    return True


def _copied(old: int, new: int, size: int, *, on_bytes: OnBytes, stop: Stop) -> Iterator[tuple[int, bytes]]:
    at: int | None = 0
    while at is not None and at < size:
        if (at := next_data(old, at)) is None:
            if os.fstat(old).st_size < size:  # no hole: its end was cut off
                raise Refused(_SHORTER)
            return
        at -= at % m.BLOCK_BYTES
        _go_on(stop)
        data = _read(old, at, min(_PIECE, size - at))
        for number, block in _blocks(data, at):
            _write(new, block, number * m.BLOCK_BYTES)
            yield number, m.digest(block)
        at += len(data)
        on_bytes(at)


def _following(
    opened: int, size: int, finished: threading.Event, *, on_bytes: OnBytes, stop: Stop
) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < size:
        _go_on(stop)
        ended = finished.is_set()  # looked at before the file: what comes in between is seen in the next round
        begin = next_data(opened, at)
        if begin is None and ended:
            return
        end = _complete(opened, begin, size, ended=ended) if begin is not None else 0
        if begin is None or not end:
            finished.wait(_LOOK_AGAIN_S)
            continue
        begin -= begin % m.BLOCK_BYTES
        data = _read(opened, begin, end - begin)
        yield from ((number, m.digest(block)) for number, block in _blocks(data, begin))
        at = end
        on_bytes(at)


def _complete(opened: int, begin: int, size: int, *, ended: bool) -> int:
    """Return the end of a stretch of whole blocks that nobody writes to any more, 0 if there is none yet."""
    begin -= begin % m.BLOCK_BYTES
    for length in (_PIECE, m.BLOCK_BYTES):
        end = min(begin + length, size)
        if ended or (end < size and next_data(opened, end) is not None):
            return end
    return 0


def _blocks(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(data), m.BLOCK_BYTES):
        block = data[start : start + m.BLOCK_BYTES]
        if not _ZEROS.startswith(block):
            yield (offset + start) // m.BLOCK_BYTES, block


def _read(opened: int, offset: int, length: int) -> bytes:
    parts, got = [], 0
    while got < length:
        part = os.pread(opened, length - got, offset + got)
        if not part:
            raise Refused(_SHORTER)
        parts.append(part)
        got += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _write(opened: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(opened, view, offset)
        view, offset = view[done:], offset + done


def _go_on(stop: Stop) -> None:
    if stop():
        raise Unavailable("reading the image was stopped")
