"""What lies in memory is read without a thread, what does not is left to one."""

import os
import random
from pathlib import Path

import pytest

from kmgr.replica.at_hand import at_hand
from kmgr.replica.frames import Buffers

MIB = 1 << 20
PLACES = [Path("/dev/shm"), Path("/var/tmp")]


def made(folder: Path, name: str) -> tuple[int, bytes]:
    data = random.Random(5).randbytes(2 * MIB)  # noqa: S311 - a picture, not a secret
    path = folder / f"kmgr-at-hand-{name}-{os.getpid()}"
    path.write_bytes(data)
    opened = os.open(path, os.O_RDWR)
    path.unlink()
    return opened, data


@pytest.mark.parametrize("place", PLACES)
def test_what_was_just_written_is_at_hand(place: Path) -> None:
    opened, data = made(place, "warm")
    try:
        room = bytearray(2 * 65536 + 512)
        assert at_hand(opened, [(4096, 65536), (MIB, 65536 + 512)], memoryview(room))
        assert room == data[4096 : 4096 + 65536] + data[MIB : MIB + 65536 + 512]
        assert not at_hand(
            opened, [(2 * MIB - 512, 1024)], memoryview(room)
        )  # less than there should be: a thread will see
        assert at_hand(opened, [], memoryview(room))
    finally:
        os.close(opened)


def test_what_is_only_on_the_disk_is_not_waited_for() -> None:
    opened, data = made(PLACES[1], "cold")
    try:
        os.fsync(opened)
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
        assert not at_hand(opened, [(MIB, 65536)], memoryview(bytearray(65536)))
        assert os.pread(opened, 65536, MIB) == data[MIB : MIB + 65536]
    finally:
        os.close(opened)


def test_a_file_that_cannot_be_read_is_left_to_whoever_may_say_so() -> None:
    opened, _ = made(PLACES[0], "closed")
    os.close(opened)
    assert not at_hand(opened, [(0, 512)], memoryview(bytearray(512)))


def test_room_for_a_piece_is_used_again_only_when_nobody_looks_at_it_any_more() -> None:
    buffers = Buffers(MIB)
    first = buffers.take()
    first[:] = b"x" * MIB
    part = memoryview(first)[:1000]
    waiting = part[10:20]  # as a connection has it that has not sent everything
    buffers.give_back_unused(part)
    assert buffers.take() is not first
    assert waiting == b"x" * 10
    waiting.release()
    buffers.give_back_unused(memoryview(first)[:1000])
    assert buffers.take() is first
    assert first == b"x" * MIB
    buffers.give_back_unused(b"what a thread has read")
    assert buffers.take() is not first
