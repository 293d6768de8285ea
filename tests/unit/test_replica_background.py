"""Work on image files comes last at the disk, and nothing else does."""

import asyncio
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from kmgr.replica.background import at_length, background, to_the_end
from kmgr.templates import sandbox


def at_the_disk() -> tuple[int, int]:
    told = psutil.Process(threading.get_native_id()).ionice()
    return int(told.ioclass), int(told.value)


async def test_the_threads_of_images_stand_back_and_the_others_do_not() -> None:
    before = at_the_disk()
    assert await background(at_the_disk) == (psutil.IOPRIO_CLASS_BE, 7)
    assert await at_length(at_the_disk) == (psutil.IOPRIO_CLASS_BE, 7)  # imports
    assert at_the_disk() == before != (psutil.IOPRIO_CLASS_BE, 7)


async def test_what_goes_wrong_there_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        await background(divmod, 1, 0)


async def test_imports_that_take_minutes_keep_no_thread_from_copies() -> None:
    go_on = threading.Event()
    long = [asyncio.ensure_future(at_length(go_on.wait)) for _ in range(6)]
    assert await background(divmod, 7, 2) == (3, 1)
    go_on.set()
    assert await asyncio.gather(*long) == [True] * 6


def test_the_program_that_unpacks_an_image_stands_back_at_the_disk() -> None:
    command = sandbox.command(["true"], sandbox.Job(Path("/etc/hostname"), limit_s=1))
    before = command[command.index("nice") : command.index("bwrap")]
    told = subprocess.run([*before, "ionice"], check=True, capture_output=True, text=True).stdout
    assert told.strip() == "best-effort: prio 7"


async def test_what_is_cancelled_is_through_when_it_ends_and_leaves_nothing_that_nobody_takes() -> None:
    go_on, undone = threading.Event(), list[bool]()
    task = asyncio.create_task(to_the_end(at_length(go_on.wait), undo=undone.append))
    for _ in range(3):
        await asyncio.sleep(0.01)
        task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone == [True]
    assert await to_the_end(at_length(divmod, 7, 2), undo=lambda _: undone.clear()) == (3, 1)
    assert undone == [True]
    with pytest.raises(ZeroDivisionError):
        await to_the_end(at_length(divmod, 1, 0))
