"""How long standbys lay so that the loss of one server would have cost more of them than its share."""

from collections import Counter
from collections.abc import Iterable

from kmgr.ids import ServerId


class Spread:
    """The longest time of each phase of the day in which a pool was uneven; each pool by itself."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self.longest: Counter[str] = Counter()
        self.worst: Counter[str] = Counter()

    def look(self, pool: str, ready: Iterable[ServerId], *, servers: int, now: float, phase: str) -> None:
        """Note where the standbys of a pool are now, of which (N-1)/N should survive the loss of any server."""
        on_each = Counter(ready)
        share = -(-on_each.total() // max(1, servers))
        too_many = max(on_each.values(), default=0) - share
        if too_many <= 0:
            self._since.pop(pool, None)
            return
        since = self._since.setdefault(pool, now)
        self.longest[phase] = max(self.longest[phase], round(now - since))
        self.worst[phase] = max(self.worst[phase], too_many)

    def words(self) -> str:
        """Tell it."""
        told = [f"{phase} {self.longest[phase]} s by {self.worst[phase]}" for phase in sorted(self.longest)]
        return f"standbys uneven for at most: {', '.join(told) or 'never'}"
