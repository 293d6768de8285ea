"""At which point every copy of a folder is, without opening one: asked every few seconds, beside cycles that write.

An index only grows until it is written anew, so what was read of it once is
remembered, and only the frames behind that are read and hashed. Nothing is
written here: what looks like a torn frame may be one that is just being appended.
A copy that has lost a file, or of whose index a part is no more, is known to be bad.
"""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from kmgr.ids import DesktopId
from kmgr.replica import mirror_index
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.mirror_state import FINISHED_BYTES, finished, point_of

logger = logging.getLogger(__name__)

MARK = "promoted"


@dataclass(frozen=True, slots=True)
class _Read:
    """What an index said: `stamp` is inode, length and time of the file, `end` where its last whole frame ended.

    `bad` tells that the copy was found to be bad since its last complete cycle.
    """

    stamp: tuple[int, int, int]
    end: int
    point: CopyPoint | None
    bad: bool


class Points:
    """The newest complete points of the copies in a folder. Blocks; any number of threads may ask."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, _Read] = {}
        self._bad: frozenset[DesktopId] = frozenset()

    def distrusted(self) -> frozenset[DesktopId]:
        """Return the desktops whose copies were known to be bad when they were last looked at."""
        return self._bad

    def look(self) -> tuple[CopyPoint, ...]:
        """Return them by desktop and generation; of what became a disk, or was never complete, there is none."""
        known, fresh, bad = self._known, dict[Path, _Read](), set[DesktopId]()
        for folder in self._folder.glob("*/*"):
            if folder.name.isdigit() and not (folder / MARK).exists():
                try:
                    end = _finished(folder)
                    fresh[folder] = read = _read(folder / "index", known.get(folder))
                    # One that was written anew meanwhile is shorter, and finished up to elsewhere.
                    whole = 0 < read.end >= min(end, _finished(folder))
                    if read.bad or not whole or not (folder / "disk").exists():
                        bad.add(DesktopId(folder.parent.name))
                except OSError as error:  # it went just now, or its disk fails
                    logger.warning("a copy cannot be read", extra={"folder": str(folder), "cause": str(error)})
                    bad.add(DesktopId(folder.parent.name))
        self._known, self._bad = fresh, frozenset(bad)
        points = [read.point for read in fresh.values() if read.point is not None]
        return tuple(sorted(points, key=lambda point: (point.desktop, point.generation)))


def stamp_of(told: os.stat_result) -> tuple[int, int, int]:
    """Return what changes when an index is written to or replaced: inode, length and time of the file."""
    return told.st_ino, told.st_size, told.st_mtime_ns


def _finished(folder: Path) -> int:
    """Return up to where a copy's index was finished; further than it can be if the file that says so is gone."""
    try:
        with (folder / "sums").open("rb", buffering=0) as file:
            return finished(file.read(FINISHED_BYTES))
    except FileNotFoundError:
        return sys.maxsize


def _read(index: Path, known: _Read | None) -> _Read:
    with index.open("rb") as file:
        told = os.fstat(file.fileno())
        stamp = stamp_of(told)
        if known is not None and known.stamp == stamp:
            return known
        if known is not None and known.stamp[0] == told.st_ino and 0 < known.end < told.st_size:
            file.seek(known.end)
            data = file.read()
            end, point, bad = _newest(data, known.point, bad=known.bad)
            if end == len(data):
                return _Read(stamp, known.end + end, point, bad)
            # A frame is being written, or it is another file by now: nothing of it is known.
            file.seek(0)
        data = file.read()
    end, point, bad = _newest(data, None, bad=False)
    if not end:
        logger.warning("the index of a copy is unreadable", extra={"folder": str(index.parent)})
    return _Read(stamp, end, point, bad)


def _newest(data: bytes, point: CopyPoint | None, *, bad: bool) -> tuple[int, CopyPoint | None, bool]:
    end = 0
    for frame in mirror_index.frames(data):
        end = frame.end
        if "point" in frame.head:
            point = point_of(frame.head)
            bad = not frame.head["cycle"] and not frame.head["still"]
    return end, point, bad
