"""Long work on files beside the raft thread: one job after the other, results handed over between two rounds."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The work is not wanted any more."""


class Background(Protocol):
    """Where long jobs run. All methods belong to the raft thread."""

    def start(self, job: Callable[[Callable[[], None]], T], then: Callable[[T], None]) -> None:
        """Run `job`; it calls what it is given now and then, to be stopped. `poll` gives its result to `then`."""
        ...

    def poll(self) -> None:
        """Hand over what is done; what a job raised is raised here."""
        ...

    def close(self) -> None:
        """Stop; return when nothing runs any more."""
        ...


class Thread:
    """One thread for all jobs of a log."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._stopping = threading.Event()
        self._running: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()

    def start(self, job: Callable[[Callable[[], None]], T], then: Callable[[T], None]) -> None:
        """Run `job` on the thread."""
        self._running.append((self._executor.submit(job, self._go_on), then))

    def poll(self) -> None:
        """Hand over what is done."""
        while self._running and self._running[0][0].done():
            future, then = self._running.popleft()
            then(future.result())

    def close(self) -> None:
        """Stop the jobs and wait for them."""
        self._stopping.set()
        self._executor.shutdown(wait=True)

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise Stopped
