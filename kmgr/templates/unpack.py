"""Making the raw file of an offered disk, and its manifest, while somebody watches the room and the clock.

The work is done by threads (`absorb`) and by qemu-img; here it is begun, told of, stopped.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from kmgr.errors import Unavailable
from kmgr.replica import manifest as m
from kmgr.replica.background import at_length
from kmgr.replica.images import Images, disk_error
from kmgr.templates import absorb, qemu_img
from kmgr.templates.jobs import Job

# How often the room is looked at while an image is unpacked.
_LOOK_S = 1.0
# Up to where the percents of the whole go meanwhile.
_END = 97
_TELL_BYTES = 64 << 20

T = TypeVar("T")
# Fills a file of ours and hashes it; hears how far it is, and is asked whether to stop.
Make: TypeAlias = Callable[[Path, Callable[[int], None], Callable[[], bool]], m.Manifest]


class Unpacker:
    """Fills the raw file of one import."""

    def __init__(self, images: Images, job: Job) -> None:
        self._images = images
        self._job = job
        self._begin = job.progress.percent

    async def absorbed(self, path: Path, raw: Path, *, size: int, ours: bool) -> m.Manifest:
        """Take a raw file over, or copy it; hashed in the same pass."""
        step = "hashing" if ours else "copying"
        take = absorb.take_over if ours else absorb.copy_raw

        def work(on_bytes: Callable[[int], None], stop: Callable[[], bool]) -> m.Manifest:
            return take(path, raw, on_bytes=on_bytes, stop=stop)

        return await self._watched(self._in_thread(work, step, size=size, begin=self._begin))

    async def made(self, make: Make, raw: Path, *, size: int) -> m.Manifest:
        """Let somebody fill the raw file."""

        def work(on_bytes: Callable[[int], None], stop: Callable[[], bool]) -> m.Manifest:
            return make(raw, on_bytes, stop)

        return await self._watched(self._in_thread(work, "copying", size=size, begin=self._begin))

    async def converted(self, path: Path, raw: Path, *, disk: qemu_img.Disk) -> m.Manifest:
        """Unpack an image, and hash what is unpacked right behind it."""
        size, finished = disk.virtual_bytes, threading.Event()
        await asyncio.to_thread(_make, raw, size)
        behind = await asyncio.to_thread(absorb.knows_holes, raw)
        begin = self._begin
        first = begin + (_END - begin) * (100 if behind else 60) // 100

        def percent(done: int) -> None:
            self._job.tell("copying", begin + done * (first - begin) // 100, done=done * size // 100, total=size)

        def follow(on_bytes: Callable[[int], None], stop: Callable[[], bool]) -> m.Manifest:
            return absorb.follow(raw, size, finished=finished, on_bytes=on_bytes, stop=stop)

        async def convert() -> None:
            await qemu_img.convert(path, raw, disk=disk, on_percent=percent)
            finished.set()

        if not behind:
            await self._watched(convert())
        hashing = self._in_thread(follow, "hashing", size=size, begin=first)
        return await self._watched(_both(convert(), hashing)) if behind else await hashing

    async def _in_thread(
        self,
        work: Callable[[Callable[[int], None], Callable[[], bool]], T],
        step: str,
        *,
        size: int,
        begin: int,
    ) -> T:
        loop = asyncio.get_running_loop()
        stopped = threading.Event()
        told = 0

        def on_bytes(offset: int) -> None:
            nonlocal told
            if offset - told >= _TELL_BYTES:
                told = offset
                loop.call_soon_threadsafe(report, offset)

        def report(offset: int) -> None:
            self._job.tell(step, begin + (_END - begin) * offset // size, done=offset, total=size)

        running = asyncio.ensure_future(at_length(work, on_bytes, stopped.is_set))
        try:
            return await asyncio.shield(running)
        except OSError as error:
            raise disk_error(error, doing="the import") from error
        finally:
            stopped.set()
            if not running.done():  # the files are ours until the thread has let go of them
                await asyncio.wait({running})
                running.exception()

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something that fills the disk, but stop when the reserve is reached."""
        task = asyncio.ensure_future(work)
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=_LOOK_S)
                if done:
                    return task.result()
                if not self._images.room().spare_bytes:
                    raise Unavailable(
                        "the disk of this server is nearly full: the import was stopped and removed. Make room there",
                        code="disk_full",
                    )
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


async def _both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, T]) -> T:
    """Do both and return what the second returns; if one fails the other is stopped."""
    one, two = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        await asyncio.wait({one, two}, return_when=asyncio.FIRST_EXCEPTION)
        if one.done():
            one.result()
        if two.done():
            two.result()
        await one
        return await two
    finally:
        for task in (one, two):
            task.cancel()
        await asyncio.wait({one, two})


def _make(raw: Path, size: int) -> None:
    try:
        absorb.fresh(raw, size)
    except OSError as error:
        raise disk_error(error, doing="the import") from error
