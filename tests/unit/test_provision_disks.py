"""Linked clones: what we write is what `qemu-img create` makes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kmgr.errors import Refused
from kmgr.ids import DesktopId
from kmgr.provision import disks

GIB = 1 << 30
SIZES = [512, 1 << 20, 20 * GIB, GIB + 512, GIB - 512, 2**29, 2**29 + 512, 4096 * GIB, 4096 * GIB + 512, 9000 * GIB]
ODD = [1, 511, 513, 65537, 3 * GIB + 1]

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def qemu_img(*words: object) -> str:
    done = subprocess.run(
        ["qemu-img", *(str(word) for word in words)], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def described(path: Path) -> dict[str, Any]:
    told = json.loads(qemu_img("info", "--output=json", path))
    return {name: value for name, value in told.items() if name not in ("filename", "actual-size", "children")}


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "version.raw"
    path.touch()
    return path


@needs_qemu_img
@pytest.mark.parametrize("size", SIZES + ODD)
def test_an_overlay_is_what_qemu_img_makes(tmp_path: Path, backing: Path, size: int) -> None:
    with backing.open("r+b") as file:
        try:
            file.truncate(size)
        except OSError:
            pytest.skip("the file system here has no files of that size")
    ours, theirs = tmp_path / "ours.qcow2", tmp_path / "theirs.qcow2"
    disks.make_overlay(ours, backing)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, theirs)
    assert described(ours) == described(theirs)
    checked = json.loads(qemu_img("check", "--output=json", ours))
    assert checked["check-errors"] == 0
    assert not {"corruptions", "leaks"} & set(checked)


@needs_qemu_img
def test_a_clone_shows_its_image_and_keeps_what_is_written(tmp_path: Path, backing: Path) -> None:
    backing.write_bytes(b"golden" * 100_000)
    before = backing.read_bytes()
    clone = tmp_path / "clone.qcow2"
    disks.make_overlay(clone, backing)
    compared = ["compare", "-f", "qcow2", "-F", "raw", clone, backing]
    assert "identical" in qemu_img(*compared)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 65536 4096", str(clone)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    raw = tmp_path / "out.raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", clone, raw)
    assert raw.read_bytes()[65536 : 65536 + 4096] == bytes([7]) * 4096
    assert backing.read_bytes() == before
    assert json.loads(qemu_img("check", "--output=json", clone))["check-errors"] == 0


def test_a_clone_is_small_and_made_anew_over_an_old_one(tmp_path: Path, backing: Path) -> None:
    backing.write_bytes(bytes(1 << 20))
    clone = tmp_path / "clone.qcow2"
    clone.write_bytes(b"old" * 1_000_000)
    disks.make_overlay(clone, backing)
    assert clone.stat().st_size == 4 << 16
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".new"] == []


def test_a_path_that_qcow2_cannot_hold_is_refused_in_words() -> None:
    with pytest.raises(Refused, match="too long for an overlay"):
        disks.overlay_bytes(Path("/" + "x" * 1023), GIB)


def test_overlays_are_listed_unfinished_ones_too_and_removed_twice(tmp_path: Path) -> None:
    folder = tmp_path / "desktops"
    folder.mkdir()
    for name in ("d-1.qcow2", "d-1.log", "d-2.new", "d-3.log"):
        (folder / name).touch()
    assert disks.overlays(tmp_path) == {"d-1", "d-2"}
    for _ in range(2):
        for desktop in ("d-1", "d-2"):
            disks.remove_overlay(disks.overlay_path(tmp_path, DesktopId(desktop)))
    assert disks.overlays(tmp_path) == frozenset()
