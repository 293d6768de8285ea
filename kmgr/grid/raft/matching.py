"""Decide what a follower does with entries its leader sent: the rules of Raft, which pysyncobj does not keep.

* Entries that are already here stay, even if the message ends before them: it
  may be an old one.
* Only a real conflict (same index, another term) throws away the rest, and never
  at or below what is committed: that would be a bug somewhere, so this server stops.
* Below the oldest entry here everything is committed, hence the same.

Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kmgr.errors import InvariantBroken
from kmgr.grid.raft.records import Entry


@dataclass(frozen=True, slots=True)
class Match:
    """What to do: cut the log at `cut_from` (if given), append `new`; the log then equals the leader's to `matched`.

    If `matched` is None nothing is taken and the leader should go on at `wanted`.
    """

    matched: int | None
    wanted: int
    cut_from: int | None = None
    new: tuple[Entry, ...] = ()


def match(
    log: Sequence[Entry], previous: int, previous_term: int, entries: Sequence[Entry], *, committed: int
) -> Match:
    """Compare a leader's entries, which follow `previous`, with the log here."""
    first, last = log[0], log[-1]
    if previous < first.index:
        known = first.index - previous
        if len(entries) < known:
            return Match(None, committed + 1)
        if entries[known - 1].term != first.term:
            raise InvariantBroken(f"the leader has another entry {first.index}, which is committed here")
        previous, previous_term, entries = first.index, first.term, entries[known:]
    if previous > last.index:
        return Match(None, last.index + 1)
    if log[previous - first.index].term != previous_term:
        if previous <= committed:
            raise InvariantBroken(f"the leader has another entry {previous}, which is committed here")
        return Match(None, committed + 1)
    matched = previous + len(entries)
    new = tuple(entries[_same(log, entries) :])
    if not new or new[0].index > last.index:
        return Match(matched, matched + 1, None, new)
    if new[0].index <= committed:
        raise InvariantBroken(f"the leader wants to overwrite entry {new[0].index}, which is committed here")
    return Match(matched, matched + 1, new[0].index, new)


def _same(log: Sequence[Entry], entries: Sequence[Entry]) -> int:
    count = 0
    for entry in entries:
        place = entry.index - log[0].index
        if place >= len(log) or log[place].term != entry.term:
            break
        count += 1
    return count
