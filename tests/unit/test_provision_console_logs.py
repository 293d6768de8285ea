"""What a guest writes on its serial console is bounded, and its last lines are not lost."""

import errno
import os
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.provision import console_logs
from kmgr.provision.console_logs import KEPT_BYTES, MOST_BYTES, old_part, shorten
from kmgr.provision.disk_watch import DiskWatch
from kmgr.replica.images import Images, Room

LINE = b"a line of a guest that says too much............................\n"
GIB = 1 << 30


def written(descriptor: int, count: int) -> None:
    at = 0
    data = LINE * (count // len(LINE))
    while at < len(data):
        at += os.write(descriptor, data[at:])


def taken(file: Path) -> int:
    return file.stat().st_blocks * 512


async def test_a_console_that_says_too_much_keeps_its_last_lines_and_the_writer_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "desktops"
    folder.mkdir()
    disk, quiet, file = folder / "dsk-1.qcow2", folder / "dsk-2.log", folder / "dsk-1.log"
    disk.write_bytes(LINE)
    quiet.write_bytes(LINE)
    watch = DiskWatch(tmp_path, Images(tmp_path), ManualClock(), measure=lambda _: Room(20 * GIB, 100 * GIB))
    # As QEMU has it open: it knows where it is, and does not look where the end is.
    writer = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for _ in range(3):
            written(writer, MOST_BYTES + KEPT_BYTES)
            os.write(writer, b"its last words\n")
            await watch.look()
            assert taken(file) <= 2 * KEPT_BYTES
            assert file.read_bytes()[-KEPT_BYTES:].endswith(LINE + b"its last words\n")
            assert b"\0" not in file.read_bytes()[-KEPT_BYTES:]
            os.write(writer, b"and one more\n")
            assert file.read_bytes().endswith(b"its last words\nand one more\n")
    finally:
        os.close(writer)
    assert (disk.read_bytes(), quiet.read_bytes()) == (LINE, LINE)
    assert watch.vitals()["problems"] == []


def test_what_is_small_is_left_alone() -> None:
    assert old_part(MOST_BYTES, MOST_BYTES) == 0
    assert old_part(100 * MOST_BYTES, KEPT_BYTES) == 0
    assert old_part(2 * MOST_BYTES, 2 * MOST_BYTES) == 2 * MOST_BYTES - KEPT_BYTES
    assert old_part(0, 2 * MOST_BYTES) == 0


def test_a_disk_that_cannot_free_a_part_of_a_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path, __: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(console_logs, "_make_hole", refused)
    assert shorten(tmp_path) == ""
    for name in ("dsk-1.log", "dsk-2.log"):
        with (tmp_path / name).open("wb") as file:
            written(file.fileno(), MOST_BYTES + KEPT_BYTES)
    told = shorten(tmp_path)
    assert f"{tmp_path / 'dsk-1.log'} (9 MiB: Operation not supported) and 1 more" in told
    assert "virtlogd" in told
