"""How many bytes per second may go out or come in for images: a token bucket.

Pure: the time is an argument.
"""

# What may go at once after a rest. Short, so that displays beside it never wait longer than this.
BURST_S = 0.1


def bytes_per_s(*, mbit_s: int, beside_desktops_mbit_s: int, in_use: bool, own_mbit_s: int = 0) -> int:
    """Return the rate that a server is allowed, 0 for no limit; the lowest of its limits counts.

    The second one counts while somebody works at a desktop of it (`in_use`), the last is in its own `kmgr.toml`.
    """
    limits = [mbit_s, beside_desktops_mbit_s if in_use else 0, own_mbit_s]
    return min((limit for limit in limits if limit), default=0) * 125_000


class Budget:
    """Spends `rate` bytes per second; a rate of 0 is no limit. What was spent too early is waited for afterwards."""

    def __init__(self, rate: int = 0) -> None:
        self._rate = rate
        self._left = rate * BURST_S
        self._at: float | None = None

    @property
    def rate(self) -> int:
        """Bytes per second, 0 for no limit."""
        return self._rate

    def set_rate(self, rate: int) -> None:
        """Go on with another rate; what is owed stays owed."""
        if rate != self._rate:
            self._left = min(self._left, rate * BURST_S)
            self._rate = rate

    def spend(self, count: int, *, now: float) -> float:
        """Count some bytes as gone and return for how many seconds to wait before the next."""
        if not self._rate:
            return 0.0
        self._fill(now)
        self._left -= count
        return max(0.0, -self._left / self._rate)

    def wait_s(self, *, now: float) -> float:
        """Return for how many seconds nothing should go, without spending."""
        if not self._rate:
            return 0.0
        self._fill(now)
        return max(0.0, -self._left / self._rate)

    def _fill(self, now: float) -> None:
        # A clock that goes back gives nothing and takes nothing.
        if self._at is not None and now > self._at:
            self._left = min(self._rate * BURST_S, self._left + (now - self._at) * self._rate)
        self._at = now
