"""Tell which users wait no longer: a page that is closed says nothing, it only stops asking.

Ages are counted from when this server first saw the request, because the stamps
in it were made by another server's clock. A new leader begins to count anew.

Pure.
"""

from collections.abc import Iterable

from kmgr.provision.model import Ask

# Who waits says so again every minute: this bears two of them lost.
PATIENCE_S = 180.0


class Patience:
    """Remembers since when each request was not repeated."""

    def __init__(self) -> None:
        self._seen: dict[Ask, float] = {}

    def over(self, asks: Iterable[Ask], now: float) -> list[Ask]:
        """Return the requests that were not repeated for too long; `now` is this server's monotonic clock."""
        self._seen = {ask: self._seen.get(ask, now) for ask in asks}
        return [ask for ask, since in self._seen.items() if now - since >= PATIENCE_S]
