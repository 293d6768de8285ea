"""How far a copy is, how fast it goes, and when it will be done.

Pure: the time is an argument.
"""

from collections import deque
from dataclasses import dataclass

from kmgr.ids import ServerId, VersionId

# A rate is told over this long: shorter jumps about, longer tells of a stand-still too late.
SPAN_S = 5.0
_MARK_S = 0.25


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """One copy under way. `rate` is bytes per second lately, `remaining_s` is None while nothing comes.

    `received_bytes` came by wire, `twice_bytes` of them in vain because they were here already, and
    `reused_bytes` were taken from older versions on this server.
    """

    version: VersionId
    here_bytes: int
    total_bytes: int
    rate: int
    remaining_s: int | None
    sources: tuple[ServerId, ...]
    received_bytes: int
    twice_bytes: int
    reused_bytes: int


class Rate:
    """Bytes per second over the last few seconds."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def note(self, total: int, *, now: float) -> None:
        """Hear how many bytes there were in all by `now`."""
        if self._marks and now < self._marks[-1][0]:  # a clock that went back tells nothing
            self._marks.clear()
        if len(self._marks) > 1 and now - self._marks[-2][0] < _MARK_S:
            self._marks.pop()
        self._marks.append((now, total))
        while len(self._marks) > 2 and now - self._marks[1][0] >= SPAN_S:
            self._marks.popleft()

    def now(self, now: float) -> int:
        """Return bytes per second; what happened before the span is forgotten."""
        if not self._marks or now - self._marks[-1][0] >= SPAN_S:
            return 0
        since, total = self._marks[0]
        span = max(now - since, _MARK_S)
        return int((self._marks[-1][1] - total) / span)


def remaining_s(missing_bytes: int, rate: int) -> int | None:
    """Return how long the rest takes at this rate, or None if it cannot be said."""
    if missing_bytes <= 0:
        return 0
    return -(-missing_bytes // rate) if rate > 0 else None
