"""Work on image files comes last at the disk, and nothing else does."""

import threading

import psutil
import pytest

from kmgr.replica.background import background


def at_the_disk() -> tuple[int, int]:
    told = psutil.Process(threading.get_native_id()).ionice()
    return int(told.ioclass), int(told.value)


async def test_the_threads_of_images_stand_back_and_the_others_do_not() -> None:
    before = at_the_disk()
    assert await background(at_the_disk) == (psutil.IOPRIO_CLASS_BE, 7)
    assert at_the_disk() == before != (psutil.IOPRIO_CLASS_BE, 7)


async def test_what_goes_wrong_there_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        await background(divmod, 1, 0)
