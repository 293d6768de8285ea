"""When a leader may put proposals into the log: one batch after the other, and not too often.

For every server a message, a sync and a round for many entries cost little more than
for one. So a batch begins when the entries of the last one are committed, which
one asker alone never notices; and while several ask at the same time, not sooner
than `GATHER_S` after the last one began: otherwise as many askers would only
make more and smaller rounds, which keep every processor busy and all of them waiting
(docs/decisions/0019-batches-are-gathered.md has the figures).

Pure.
"""

# So long proposals wait for the entries that are under way, at most: a slow line is not left empty.
UNDER_WAY_S = 0.005
# From the begin of one batch to that of the next, while batches have several entries.
GATHER_S = 0.003
SEVERAL = 3

_LONG_AGO = float("-inf")


class Batches:
    """What a leader remembers of its last batch."""

    def __init__(self) -> None:
        self._appended_at = _LONG_AGO
        self._began_at = _LONG_AGO
        self._entries = 0

    def appended(self, now: float) -> None:
        """Note an entry that was put into the log."""
        self._appended_at = now

    def began(self, entries: int, now: float) -> None:
        """Note a batch of so many entries; none is no batch."""
        if entries:
            self._began_at, self._entries = now, entries

    def next_at(self, *, committed: bool) -> float:
        """Return from when on the next batch may begin; `committed`: whether all entries of the last one are."""
        gathered = self._began_at + GATHER_S if self._entries >= SEVERAL else _LONG_AGO
        return gathered if committed else max(gathered, self._appended_at + UNDER_WAY_S)
