"""The files of a safe copy: a disk that refuses at the worst moment leaves a point, and nothing that stays open."""

import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Conflict, Unavailable
from kmgr.grid.local import LocalNetwork
from kmgr.ids import DesktopId, ServerId, VersionId
from kmgr.replica import mirror_receive
from kmgr.replica.grains import GRAIN, GrainSet
from kmgr.replica.images import Images, Room
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.mirror_copy import Copy
from kmgr.replica.mirror_promote import Promotion, promote
from kmgr.replica.mirror_send import DiskMirror, _Read, _Source
from kmgr.replica.mirror_state import Identity, State, grains_of
from kmgr.replica.mirror_take import Taking
from kmgr.replica.mirror_wire import Offer
from tests.lab.mirrors import PoweredOff

IDENTITY = Identity(DesktopId("dsk-1"), 1, VersionId("ver-1"), "hash", 20 * GRAIN)


def state(number: int) -> State:
    return State(CopyPoint(DesktopId("dsk-1"), 1, number, 0, False, False), f"kmgr-{number}", "")


def bring(copy: Copy, *grains: int, fill: int) -> GrainSet:
    """Write grains, as a cycle does that was offered them."""
    offered, data = GrainSet(grains_of(copy.identity)), bytes([fill]) * GRAIN
    for grain in grains:
        offered.add(grain)
        copy.write(grain, data, hashlib.sha256(data).digest())
    return offered


def made(folder: Path) -> Copy:
    copy = Copy.created(folder, IDENTITY)
    copy.commit(state(1), offered=bring(copy, 1, 2, 3, fill=1), everything=True)
    return copy


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_point_that_stands_in_the_index_loses_nothing_to_a_disk_that_is_full_right_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = made(tmp_path / "copy")

    def full(_self: Copy, _end: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Copy, "_finish", full)
    offered = bring(copy, 2, 7, 8, fill=2)
    with pytest.raises(OSError, match="No space"):
        copy.commit(state(2), offered=offered, everything=False)
    copy.forget()  # as whoever takes a cycle does on a full disk
    copy.close()
    monkeypatch.undo()
    again = Copy.opened(tmp_path / "copy")
    assert again.state == state(2)
    assert (again.lacks(), again.wrong_grains()) == ("", [])
    # And the next cycle goes on from there.
    again.commit(state(3), offered=bring(again, 3, 9, fill=3), everything=False)
    assert again.wrong_grains() == []
    again.close()


@pytest.mark.parametrize("name", ["sums", "pending"])
def test_a_copy_that_its_disk_cannot_open_stays_open_nowhere(tmp_path: Path, name: str) -> None:
    made(tmp_path / "copy").close()
    (tmp_path / "copy" / name).unlink(missing_ok=True)
    (tmp_path / "copy" / name).mkdir()
    before = open_files()
    for _ in range(3):
        with pytest.raises(OSError, match=name):
            Copy.opened(tmp_path / "copy")
    assert open_files() == before


def test_a_copy_that_cannot_be_distrusted_on_a_full_disk_stays_open_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "copy").close()
    os.truncate(tmp_path / "copy" / "disk", GRAIN)

    def full(_self: Copy) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Copy, "distrust", full)
    before = open_files()
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            mirror_receive._open(tmp_path / "copy", IDENTITY)
    assert open_files() == before


@pytest.mark.parametrize("full", ["desktops", "images"])
def test_what_a_guest_writes_over_meanwhile_needs_room_on_the_disk_of_the_desktops_and_on_no_other(
    tmp_path: Path, full: str
) -> None:
    def measure(folder: Path) -> Room:
        return Room(0 if folder.name == full else 1 << 40, 1 << 40)

    off, requests = PoweredOff(), LocalNetwork().port(ServerId("srv-a"))
    mirror = DiskMirror(requests, Images(tmp_path, measure=measure), off, clock=ManualClock(), measure=measure)
    batches = iter([_Read()])
    held = _Source(batches, True, 0, cycle="kmgr-1", kept_in=tmp_path / "desktops")
    if full == "desktops":
        with pytest.raises(Unavailable, match="the disk is full: copying a running desktop's disk"):
            mirror._next(held)
    else:
        assert mirror._next(held) is not None


@pytest.mark.parametrize("everything", [True, False])
def test_a_bad_sector_under_a_copy_costs_one_grain_and_no_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    copy, pread = made(tmp_path / "copy"), os.pread
    file, at = (copy._disk, copy.place(2) * GRAIN) if everything else (copy._sums, copy.place(2) * 32)

    def bad(opened: int, length: int, offset: int) -> bytes:
        if (opened, offset) == (file, at):
            raise OSError(errno.EIO, "Input/output error")
        return pread(opened, length, offset)

    monkeypatch.setattr(os, "pread", bad)
    data = bytes([1]) * GRAIN
    taking = Taking(copy, seed=None, spare=lambda: None)
    taking.everything = everything
    offers = [Offer(grain, hashlib.sha256(data).digest()) for grain in (1, 2, 3)]
    assert taking.wanted(offers) == [False, True, False]
    taking.put(offers[1:2], data)
    taking.commit({"as_of": 2, "sent_bytes": 0, "full": True, "frozen": False, "cycle": "kmgr-2", "still": ""})
    assert copy.wrong_grains() == []
    taking.close()


@pytest.mark.parametrize(("name", "point"), [("index", None), ("pending", state(1))])
def test_a_bad_sector_under_its_index_lets_a_copy_be_made_anew_and_one_under_what_is_pending_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, point: State | None
) -> None:
    copy = made(tmp_path / "copy")
    bring(copy, 5, fill=5)
    copy.save()
    copy.close()
    read = Path.read_bytes

    def bad(path: Path) -> bytes:
        if path.name == name:
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", bad)
    again = mirror_receive._open(tmp_path / "copy", IDENTITY)
    assert again.state == point
    again.close()


class Killed(BaseException):
    """The daemon ended here."""


class Elsewhere:
    """A copy, and a folder for the disk that lies on another file system."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.target = folder / "copy", folder / "desktops" / "dsk-1.qcow2"
        self.target.parent.mkdir()
        made(self.folder).close()
        replace = Path.replace

        def between_disks(path: Path, to: Path) -> Path:
            if path.name == "disk":
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return replace(path, to)

        monkeypatch.setattr(Path, "replace", between_disks)

    def promote(self) -> CopyPoint:
        wanted = Promotion(self.folder, self.target, lambda _: Path("/base.raw"), lambda: False)
        return promote(wanted, program="true")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    return Elsewhere(tmp_path, monkeypatch)


def test_a_kill_between_two_disks_leaves_a_copy_that_still_becomes_a_disk(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def killing(path: Path, missing_ok: bool = False) -> None:
        if path.name == "disk":
            raise Killed
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as until_killed:
        until_killed.setattr(Path, "unlink", killing)
        with pytest.raises(Killed):
            elsewhere.promote()
    assert elsewhere.target.exists()
    assert elsewhere.promote() == state(1).point
    assert not (elsewhere.folder / "disk").exists()
    assert elsewhere.promote() == state(1).point


def test_another_disk_in_the_place_of_the_copied_one_is_left_alone(elsewhere: Elsewhere) -> None:
    shutil.copyfile(elsewhere.folder / "disk", elsewhere.target)
    (elsewhere.folder / "promoted").write_text("{}")
    with (elsewhere.target).open("r+b") as file:
        file.write(b"another")
    with pytest.raises(Conflict, match="is there already"):
        elsewhere.promote()
    assert (elsewhere.folder / "disk").exists()


def test_a_disk_that_fills_up_under_the_copied_one_has_its_room_back(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_source: Path, target: Path) -> None:
        target.write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(OSError, match="No space"):
        elsewhere.promote()
    assert list(elsewhere.target.parent.iterdir()) == []
    monkeypatch.undo()
    assert elsewhere.promote() == state(1).point
