"""Whether pieces of a version go compressed over this server's link: decided by what was measured of both.

* The link counts only where it is what holds copies up: most of the time somebody waited for it (or for the
  budget that the settings give images). Its rate is what went over it meanwhile.
* Of each version some pieces are compressed to see what that brings and costs here and now, on a busy machine more.
* It pays if the link is spared `WORTH` times as many seconds as both ends' processors are given to do. At 1 Gbit/s
  nothing pays; what does not pay is looked at again once in `AGAIN` pieces, for versions are not alike all over.

Pure: the time is an argument.
"""

# A link that takes more than this is quicker than any gain.
MOST_BYTES_S = 40_000_000
AGAIN = 64
WORTH = 2.0
# Expanding costs the receiver about a third of what compressing costs here.
_BOTH_ENDS = 1.4
_WINDOW_S = 0.5
_HELD_UP = 0.6
# What does not shrink by this much goes as it is.
_LEAST_GAIN = 0.05
_NEW = 0.25


class Link:
    """How fast this server's link takes what is sent; `rate` in bytes per second, None where it holds nothing up."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self._waiting = 0
        self._bytes = 0
        self._blocked = 0.0
        self._began: float | None = None
        self._at = 0.0

    def waits(self, *, now: float) -> None:
        """Note that somebody begins to wait until the link has taken something."""
        if self._began is None:
            self._began = self._at = now
        self._turn(now)
        self._waiting += 1

    def took(self, count: int, *, now: float) -> None:
        """Note that it took so many bytes of what somebody waited for."""
        self._turn(now)
        self._waiting -= 1
        self._bytes += count
        elapsed = now - (self._began or 0.0)
        if elapsed >= _WINDOW_S:
            self.rate = self._bytes / elapsed if self._blocked >= _HELD_UP * elapsed else None
            self._began, self._bytes, self._blocked = now, 0, 0.0

    def _turn(self, now: float) -> None:
        if self._waiting:
            self._blocked += now - self._at
        self._at = now


class Squeeze:
    """What compressing pieces of one version is worth."""

    def __init__(self) -> None:
        self._left = self._cost = 0.0
        self._known = False
        self._passed = 0

    def tries(self, rate: float | None) -> bool:
        """Tell whether the next piece is to be compressed, over a link of this rate."""
        if rate is None or rate > MOST_BYTES_S:
            return False
        if not self._known or self.pays(rate):
            return True
        self._passed += 1
        return self._passed % AGAIN == 0

    def pays(self, rate: float) -> bool:
        """Tell whether it was worth it so far."""
        return self._known and (1 - self._left) / rate >= WORTH * _BOTH_ENDS * self._cost

    def learn(self, given: int, left: int, seconds: float) -> bool:
        """Note what became of one piece; tell whether it shrank enough to go like that."""
        share = _NEW if self._known else 1.0
        self._left += share * (left / given - self._left)
        self._cost += share * (seconds / given - self._cost)
        self._known = True
        return left <= (1 - _LEAST_GAIN) * given
