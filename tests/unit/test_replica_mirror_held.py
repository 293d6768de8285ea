"""At which points copies are: read once, then only what was added; whatever is in the middle of being written."""

import os
from array import array
from dataclasses import asdict
from pathlib import Path

import pytest

from kmgr.ids import DesktopId, VersionId
from kmgr.replica import mirror_index
from kmgr.replica.mirror_held import MARK, Points
from kmgr.replica.mirror_state import Identity, spell_finished


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "dsk-1" / "1"
    folder.mkdir(parents=True)
    own = Identity(DesktopId("dsk-1"), 1, VersionId("ver-1"), "hash", 1 << 30)
    (folder / "index").write_bytes(mirror_index.spell(asdict(own), array("I")) + frame(1))
    for name in ("disk", "sums"):
        (folder / name).touch()
    return folder / "index"


def frame(as_of: int, *, pairs: int = 1) -> bytes:
    point = {"desktop": "dsk-1", "generation": 1, "as_of": as_of, "sent_bytes": 1, "full": False, "frozen": True}
    told = {"point": point, "cycle": "kmgr-1", "still": ""}
    return mirror_index.spell(told, array("I", [n for grain in range(pairs) for n in (grain, grain + 1)]))


def add(index: Path, data: bytes) -> None:
    with index.open("ab") as file:
        file.write(data)


def finish(index: Path, end: int) -> None:
    index.with_name("sums").write_bytes(spell_finished(end))


def at(points: Points) -> list[int]:
    return [point.as_of for point in points.look()]


def test_what_has_not_changed_is_not_read_again(index: Path) -> None:
    points = Points(index.parents[2])
    assert at(points) == [1]
    told = index.stat()
    with index.open("r+b") as file:
        file.write(b"x")  # as nobody does: to see whether it is read
    os.utime(index, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert at(points) == [1]
    # Only what was added is looked at.
    add(index, frame(2))
    assert at(points) == [2]


def test_a_frame_that_is_being_written_is_none_yet(index: Path) -> None:
    points = Points(index.parents[2])
    long = frame(3, pairs=2000)
    for cut in (1, 20, 5000, len(long) - 1):
        assert at(points) == [1]
        add(index, long[:cut])
        assert at(points) == [1]
        add(index, long[cut:])
        assert at(points) == [3]
        os.truncate(index, index.stat().st_size - len(long))  # the disk took it, and failed to sync
    assert at(points) == [1]


def test_one_that_was_written_anew_is_read_anew(index: Path) -> None:
    points = Points(index.parents[2])
    add(index, frame(2) + frame(3))
    assert at(points) == [3]
    data = index.read_bytes()
    own = data[: data.index(b"kmgrcopy", 8)]
    for as_of in (4, 5):
        fresh = index.with_name("index.new")
        fresh.write_bytes(own + frame(as_of))
        fresh.replace(index)
        assert at(points) == [as_of]
    # Of the same length, in the same place.
    size = index.stat().st_size
    index.write_bytes(own + frame(6))
    os.utime(index, ns=(1, 1))
    assert index.stat().st_size == size
    assert at(points) == [6]


def test_of_what_is_no_copy_or_a_disk_by_now_there_is_no_point(index: Path) -> None:
    points = Points(index.parents[2])
    index.write_bytes(b"nonsense")
    assert at(points) == []
    index.unlink()
    assert at(points) == []
    index.write_bytes(b"")
    assert at(points) == []
    index.write_bytes(frame(1) + frame(2))
    assert at(points) == [2]
    (index.parent / MARK).touch()
    assert at(points) == []


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", ["disk", "sums", "index"])
def test_one_that_lost_a_file_is_known_to_be_bad(index: Path, name: str, known: bool) -> None:
    points = Points(index.parents[2])
    if known:
        points.look()
        assert points.distrusted() == frozenset()
    (index.parent / name).unlink()
    assert at(points) == ([] if name == "index" else [1])
    assert points.distrusted() == {"dsk-1"}
    (index.parent / MARK).touch()
    points.look()
    assert points.distrusted() == frozenset()


def test_one_whose_index_was_damaged_is_known_to_be_bad(index: Path) -> None:
    add(index, frame(2))
    whole = index.read_bytes()
    finish(index, len(whole))
    points = Points(index.parents[2])
    assert at(points) == [2]
    assert points.distrusted() == frozenset()
    # The last frame rots: what is left is the point before, whose places are written over by now.
    rotten = (whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:], whole[:-1], whole[:100], b"")
    for n, data in enumerate(rotten):
        index.write_bytes(data)
        os.utime(index, ns=(n, n))  # another time, however coarse the clock of files is
        points.look()
        assert points.distrusted() == {"dsk-1"}
    index.write_bytes(whole)
    os.utime(index, ns=(9, 9))
    points.look()
    assert points.distrusted() == frozenset()


def test_a_cycle_that_ends_while_it_is_looked_makes_no_copy_bad(index: Path) -> None:
    points = Points(index.parents[2])
    points.look()
    # The frame is on the disk, and that it is finished is about to be noted.
    add(index, frame(2))
    finish(index, index.stat().st_size - len(frame(2)))
    assert at(points) == [2]
    assert points.distrusted() == frozenset()
    # One that is being written is not finished.
    finish(index, index.stat().st_size)
    add(index, frame(3)[:-1])
    assert at(points) == [2]
    assert points.distrusted() == frozenset()
