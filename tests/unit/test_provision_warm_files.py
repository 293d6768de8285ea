"""Saved memories on the disk: whole or of no use, and nothing in between."""

import json
import shutil
from pathlib import Path

import psutil
import pytest

from kmgr.errors import Refused
from kmgr.ids import VersionId
from kmgr.provision import disks, warm_files
from kmgr.provision.warm import Warm

ONE = Warm("k1", VersionId("ver-1"), 2, 64, samples=("a", "b"))


def made(folder: Path) -> Warm:
    where = warm_files.begin(folder, ONE.key, memory_mib=64, shared=True)
    (where / "state").write_bytes(b"x" * 9000)
    return warm_files.finish(folder, ONE)


def test_one_counts_from_the_moment_its_note_is_written(tmp_path: Path) -> None:
    assert warm_files.kept(tmp_path) == ()
    where = warm_files.begin(tmp_path, ONE.key, memory_mib=64, shared=False)
    assert (warm_files.kept(tmp_path), warm_files.unfinished(tmp_path)) == ((), ("k1",))
    assert list(where.iterdir()) == []
    whole = made(tmp_path)
    assert whole.bytes >= 9000
    assert (warm_files.kept(tmp_path), warm_files.unfinished(tmp_path)) == ((whole,), ())


def test_beginning_anew_leaves_nothing_of_what_was_there(tmp_path: Path) -> None:
    made(tmp_path)
    where = warm_files.begin(tmp_path, ONE.key, memory_mib=64, shared=True)
    assert [path.name for path in where.iterdir()] == ["ram"]
    assert warm_files.kept(tmp_path) == ()


@pytest.mark.parametrize(
    "note", [b"", b"{", b"[]", b'{"key": "k1"}', b'{"version": 5}', b"\xff\xfe", b'{"key": "k1", "samples": 3}']
)
def test_a_note_that_says_nothing_makes_it_unfinished(tmp_path: Path, note: bytes) -> None:
    made(tmp_path)
    (tmp_path / "warm" / "k1" / "warm.json").write_bytes(note)
    assert (warm_files.kept(tmp_path), warm_files.unfinished(tmp_path)) == ((), ("k1",))


def test_a_folder_that_somebody_renamed_is_not_used(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "warm" / "k1").rename(tmp_path / "warm" / "k2")
    assert (warm_files.kept(tmp_path), warm_files.unfinished(tmp_path)) == ((), ("k2",))


def test_removing_is_done_once_however_often_it_is_asked(tmp_path: Path) -> None:
    made(tmp_path)
    for _ in range(2):
        warm_files.remove(tmp_path, "k1")
    assert list((tmp_path / "warm").iterdir()) == []


def test_a_disk_without_room_is_told_in_numbers(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"MiB to spare: too little to save 999999999 MiB"):
        warm_files.begin(tmp_path, "k1", memory_mib=999_999_999, shared=False)


def test_a_server_without_memory_is_told_in_numbers(tmp_path: Path) -> None:
    free = psutil.virtual_memory().available >> 20
    disk_free = shutil.disk_usage(tmp_path).free >> 20
    if disk_free < 3 * free:
        pytest.skip("the disk is the narrower one here")
    with pytest.raises(Refused, match=r"MiB of memory free: too little for a builder"):
        warm_files.begin(tmp_path, "k1", memory_mib=free, shared=False)


def test_what_a_newer_kmgr_noted_besides_makes_a_memory_of_no_use_here(tmp_path: Path) -> None:
    made(tmp_path)
    note = tmp_path / "warm" / "k1" / "warm.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "compressed": True}))
    assert warm_files.kept(tmp_path) == ()


def test_a_copied_disk_is_the_same_with_the_same_holes(tmp_path: Path) -> None:
    source, copy = tmp_path / "a.qcow2", tmp_path / "b.qcow2"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(8 << 20)
        file.write(b"middle")
        file.truncate(32 << 20)
    for _ in range(2):
        disks.copy_overlay(copy, source)
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks * 512 < 1 << 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.qcow2", "b.qcow2"]
