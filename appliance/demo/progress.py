"""Progress for people: one line a step, with the seconds since the start."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import TypeVar

from kmgr.errors import Unavailable

T = TypeVar("T")


class Progress:
    """Prints lines; a line that changes in place is used only on a terminal."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._shown = ""

    @property
    def elapsed_s(self) -> float:
        """Seconds since this began."""
        return time.monotonic() - self._started

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self._wipe()
        print(f"[{self.elapsed_s:4.0f} s] {text}", flush=True)

    def show(self, text: str) -> None:
        """Show what is being waited for; the next line replaces it."""
        if sys.stdout.isatty():
            self._wipe()
            self._shown = f"[{self.elapsed_s:4.0f} s] {text} …"
            print(self._shown, end="", flush=True)
        elif text != self._shown:
            self._shown = text
            print(f"[{self.elapsed_s:4.0f} s] {text} …", flush=True)

    def during(self, what: str, work: Callable[[], T]) -> T:
        """Do something that blocks for long, and show how long it has taken so far."""
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(work)
            while not done.done():
                if sys.stdout.isatty():
                    self.show(what)
                wait_for([done], 1)
            self._wipe()
            return done.result()

    def wait(self, what: Callable[[], tuple[T | None, str]], *, limit_s: float, hint: str) -> T:
        """Ask `what` for (result, state in words) until there is a result; raises `Unavailable` with state, hint."""
        deadline = time.monotonic() + limit_s
        state = "nothing was heard"
        while time.monotonic() < deadline:
            try:
                result, state = what()
            except OSError as error:
                result, state = None, f"no answer ({error})"
            if result is not None:
                return result
            self.show(state)
            time.sleep(0.3)
        raise Unavailable(f"after {limit_s:.0f} s still: {state}. {hint}")

    def _wipe(self) -> None:
        if self._shown and sys.stdout.isatty():
            print("\r\033[K", end="")
        self._shown = ""
