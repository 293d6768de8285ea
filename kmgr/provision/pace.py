"""Whether a copy that goes on while its guest writes will come to an end. Pure.

What is left of it must fall: within each `WINDOW_S` by so much that at this rate it would be over in `LONGEST_S`.
A guest that writes as fast as the copy goes would hold it up for ever, and whoever drains its server would wait
without a word. One window may be lost to a burst of writing, or to the copy's finding out how much there is.
"""

WINDOW_S = 120.0
LONGEST_S = 6 * 3600.0
_MIB = 1 << 20


class Pace:
    """How one copy goes, looked at now and then; `what` it copies."""

    def __init__(self, what: str, now: float) -> None:
        self._what = what
        self._began = self._since = now
        self._left: int | None = None
        self._slow = 0

    def problem(self, left: int, now: float) -> str:
        """Say why it has no end, empty if it may have one; `left` are the bytes that are still to go over."""
        if self._left is None:
            self._left = left
        if now - self._since >= WINDOW_S:
            enough = self._left - left >= left * WINDOW_S / LONGEST_S
            self._slow = 0 if enough else self._slow + 1
            self._left, self._since = left, now
        if self._slow >= 2:
            return (
                f"its guest writes about as fast as its {self._what} is copied: {left // _MIB} MiB are left after "
                f"{round((now - self._began) / 60)} min, and they do not become fewer"
            )
        if now - self._began > LONGEST_S:
            return f"its {self._what} was not copied within {LONGEST_S / 3600:.0f} h"
        return ""
