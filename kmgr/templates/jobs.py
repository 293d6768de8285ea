"""Imports of this server: those under way, and for an hour those that failed: perhaps nobody waited for them.

Memory only. Runs in the daemon's loop.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from kmgr.clock import Clock
from kmgr.errors import KmgrError, NotFound

# How long a failed import is told, unless somebody dismisses it or imports that image again.
TOLD_S = 3600.0
_MOST_FAILED = 50
# Over how long a rate is measured.
_RATE_S = 10.0
_BROKE_OFF = "it broke off before it was complete; this server's log may say more. Import it again"


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import is: `step` in words, `percent` of the whole; `error` says why it failed, if it did.

    Of what arrives or is worked on `done_bytes` of `total_bytes` (0: not known) are done, at `rate_bytes_s`.
    """

    id: str
    image_name: str
    by: str
    started_at: int
    step: str = "waiting"
    percent: int = 0
    error: str = ""
    source: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    rate_bytes_s: int = 0

    @property
    def remaining_s(self) -> int | None:
        """How long this step takes yet, None if that cannot be said."""
        if not self.rate_bytes_s or not self.total_bytes:
            return None
        return (self.total_bytes - self.done_bytes) // self.rate_bytes_s


OnProgress: TypeAlias = Callable[[ImportProgress], None]


class Rate:
    """How fast something goes, over the last seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, done: int) -> int:
        """Note how much is done; returns bytes per second, 0 while that cannot be said."""
        now = self._clock.monotonic()
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _RATE_S:
            self._seen.popleft()
        begin, had = self._seen[0]
        return int((done - had) / (now - begin)) if now - begin > 0.5 else 0


class Imports:
    """The list that the console shows."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.under_way: dict[str, ImportProgress] = {}
        self._failed: list[tuple[float, ImportProgress]] = []

    def failed(self) -> tuple[ImportProgress, ...]:
        """Return those that failed within the last hour, oldest first."""
        now = self._clock.monotonic()
        self._failed = [(at, progress) for at, progress in self._failed if now - at < TOLD_S]
        return tuple(progress for _, progress in self._failed)

    def dismiss(self, id: str) -> None:
        """Tell of a failed import no more."""
        if id not in {progress.id for progress in self.failed()}:
            raise NotFound(f"there is no failed import {id} on this server: it may have been dismissed already")
        self._failed = [(at, progress) for at, progress in self._failed if progress.id != id]

    def forget(self, image_name: str) -> None:
        """Tell no more of failed imports of an image: somebody tries again, or was told already."""
        self._failed = [(at, progress) for at, progress in self._failed if progress.image_name != image_name]

    def note_failure(self, progress: ImportProgress) -> None:
        """Remember a failed import; the oldest makes room."""
        self._failed = [*self._failed, (self._clock.monotonic(), progress)][-_MOST_FAILED:]


class Job:
    """One import's line in the list; entered and left once."""

    def __init__(
        self, progress: ImportProgress, imports: Imports, on_progress: OnProgress | None, *, clock: Clock
    ) -> None:
        self.progress = progress
        self._imports = imports
        self._on_progress = on_progress
        self._clock = clock
        self._rate = Rate(clock)

    def __enter__(self) -> "Job":
        self._imports.forget(self.progress.image_name)
        self._imports.under_way[self.progress.id] = self.progress
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None:
            self.tell("done", 100)
        del self._imports.under_way[self.progress.id]
        # Who cancels knows it: the person who closed the page, or the server that stops.
        if isinstance(error, Exception):
            told = error.message if isinstance(error, KmgrError) else _BROKE_OFF
            self._imports.note_failure(replace(self.progress, error=told))

    def tell(self, step: str, percent: int, *, done: int = 0, total: int = 0) -> None:
        """Note how far it is; the whole's percents never go back."""
        if self.progress.id not in self._imports.under_way or percent < self.progress.percent:
            return
        if step != self.progress.step:
            self._rate = Rate(self._clock)
        rate = self._rate.note(done) if total else 0
        told = replace(
            self.progress, step=step, percent=percent, done_bytes=done, total_bytes=total, rate_bytes_s=rate
        )
        if told != self.progress:
            self.progress = self._imports.under_way[self.progress.id] = told
            if self._on_progress is not None:
                self._on_progress(told)
