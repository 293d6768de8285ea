"""Blocking calls with a deadline, on threads that may be lost.

Each call has a daemon thread of its own. One that is not answered in time keeps
its thread until it is; while several are stuck like that, further ones are
refused at once instead of piling up, and the first that come back end that. A
stuck thread does not keep the process from ending, as one of an executor would.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from kmgr.errors import Unavailable

T = TypeVar("T")

AT_ONCE = 8
# So many calls without an answer mean that the other side hangs, not that one request does.
_MOST_STUCK = 4
DISK_S = 20.0


class Blocking(Protocol):
    """Runs what may block, where that does no harm: `Timely.call`, or `at_once`."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Return what `work` returns."""
        ...


async def at_once(work: Callable[[], T], /) -> T:
    """Run it here and now: for simulations, whose clock must not wait for threads."""
    return work()


class Timely:
    """Calls to one outside part, so many `at_once`: `name` it in errors, `advice` says what a person may do."""

    def __init__(self, name: str, *, deadline_s: float, advice: str, at_once: int = AT_ONCE) -> None:
        self._name = name
        self._deadline_s = deadline_s
        self._advice = advice
        self._slots = asyncio.Semaphore(at_once)
        self._stuck = 0

    async def call(self, work: Callable[[], T], /) -> T:
        """Return what `work` returns (or raises); `Unavailable` if it does not within the deadline."""
        if self._stuck >= _MOST_STUCK:
            raise Unavailable(f"{self._name} hangs: {self._stuck} calls are without an answer. {self._advice}")
        answer: asyncio.Future[T] | None = None
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._slots.acquire()
                answer = _threaded(work)
                answer.add_done_callback(self._answered)
                return await asyncio.shield(answer)
        except TimeoutError:
            if answer is not None and not answer.done():
                self._stuck += 1
                answer.add_done_callback(self._unstuck)
            raise Unavailable(f"{self._name} did not answer within {self._deadline_s:g} s. {self._advice}") from None

    def _answered(self, answer: "asyncio.Future[Any]") -> None:
        self._slots.release()
        answer.exception()  # whoever asked may have gone: then what it says interests nobody

    def _unstuck(self, _: "asyncio.Future[Any]") -> None:
        self._stuck -= 1


def _threaded(work: Callable[[], T]) -> "asyncio.Future[T]":
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def body() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            told, value = answer.set_exception, error
        else:
            told, value = answer.set_result, result  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
            loop.call_soon_threadsafe(lambda: answer.done() or told(value))

    threading.Thread(target=body, name="timely", daemon=True).start()
    return answer


def disk_calls(advice: str = "Look after it: dmesg tells more.") -> Timely:
    """Return what runs calls that touch this server's disk: one that takes longer than `DISK_S` hangs."""
    return Timely("the disk of this server", deadline_s=DISK_S, advice=advice)
