"""Threads for the files of images, whose reading and writing the disk does after everybody else's.

Desktops on the same disk come first wherever its scheduler (BFQ) heeds priorities. Processor time is not
given up: such a thread may hold Python's lock, and the loop would wait for it.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import psutil

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 4
_LONG_THREADS = 8
_LAST = 7


async def background(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `work` returns, done in a thread of low priority at the disk."""
    # Not the loop's `run_in_executor`, which spends as long on looking at `work` as on passing it on.
    return await asyncio.wrap_future(_POOL.submit(work, *args, **kwargs))


async def at_length(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `work` returns, done in such a thread that it may keep for minutes: copies do not wait for it."""
    return await asyncio.wrap_future(_LONG_POOL.submit(work, *args, **kwargs))


async def to_the_end(work: Coroutine[Any, Any, T], *, undo: Callable[[T], object] | None = None) -> T:
    """Return what `work` returns; a task that is cancelled ends only when it is through, however often that happens.

    For what a thread does to a file: whoever comes next finds nobody at it. A result that nobody takes is `undo`ne.
    """
    task = asyncio.ensure_future(work)
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if task.exception() is None and undo is not None:
            undo(task.result())
        raise cancelled
    return task.result()


def _stand_back() -> None:
    # A container may forbid it; the work is the same.
    with contextlib.suppress(psutil.Error, OSError):
        psutil.Process(threading.get_native_id()).ionice(psutil.IOPRIO_CLASS_BE, _LAST)


_POOL = ThreadPoolExecutor(_THREADS, thread_name_prefix="images", initializer=_stand_back)
_LONG_POOL = ThreadPoolExecutor(_LONG_THREADS, thread_name_prefix="imports", initializer=_stand_back)
