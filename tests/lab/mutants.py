"""Wrong versions of the log, one rule of Raft missing in each: what the simulation must notice."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kmgr.grid.raft import guard
from kmgr.grid.raft.barriers import Question, Questions
from kmgr.grid.raft.journal import Journal
from kmgr.grid.raft.library import Library
from kmgr.grid.raft.matching import Match, match
from kmgr.grid.raft.trust import Trust
from kmgr.ids import ServerId

Mutation = Callable[[pytest.MonkeyPatch], None]


def _unsynced(patch: pytest.MonkeyPatch) -> None:
    """Entries are acknowledged before they are on the disk."""

    def flush(self: Journal) -> None:
        if self._dirty:
            self._flush()
            self._dirty = False
            self.synced = self.last.index

    decide, sync = Journal.decide, Journal.sync

    def honest(self: Journal, term: int, vote: ServerId | None) -> None:
        decide(self, term, vote)
        self._dirty = True
        sync(self)

    patch.setattr(Journal, "sync", flush)
    patch.setattr(Journal, "decide", honest)


def _believing(patch: pytest.MonkeyPatch) -> None:
    """A sync is believed after one that failed, although nothing is written again."""
    patch.setattr(Journal, "_make_sure", lambda self, _found, _raw: self._file.sync())


def _forgetful(patch: pytest.MonkeyPatch) -> None:
    """Term and vote are kept in memory only."""

    def decide(self: Journal, term: int, vote: ServerId | None) -> None:
        self.term, self.vote = term, vote

    patch.setattr(Journal, "decide", decide)


def _truncating(patch: pytest.MonkeyPatch) -> None:
    """Entries that match are thrown away and written again, as pysyncobj does."""

    def matching(log: Any, previous: int, previous_term: int, entries: Any, *, committed: int) -> Match:
        found = match(log, previous, previous_term, entries, committed=committed)
        begin = max(previous, committed) + 1
        if found.matched is None or log[-1].index < begin:
            return found
        return Match(found.matched, found.wanted, begin, tuple(one for one in entries if one.index >= begin))

    patch.setattr(guard, "match", matching)


def _overlapping(patch: pytest.MonkeyPatch) -> None:
    """A second change of voters begins before the first is committed."""
    patch.setattr(Journal, "unsettled_change", lambda _: False)


def _credulous(patch: pytest.MonkeyPatch) -> None:
    """The commit index is believed for entries that were never compared."""
    follow = guard.Guard._follow

    def believing(self: guard.Guard, server: ServerId, term: int) -> bool:
        if not follow(self, server, term):
            return False
        self.library.set_committed(self._journal.last.index)
        return True

    patch.setattr(guard.Guard, "_follow", believing)


def _hasty(patch: pytest.MonkeyPatch) -> None:
    """A leader lets readers pass without asking a majority whether it still leads."""

    def answered(self: Questions, term: int, round: int) -> list[Question]:
        found, self._noted = self._noted, []
        return found

    patch.setattr(Questions, "answered", answered)


def _impatient(patch: pytest.MonkeyPatch) -> None:
    """A leader lets readers pass before it knows what the leaders before it had committed."""
    patch.setattr(Library, "settled", property(lambda self: self.leads))


def _unsuspecting(patch: pytest.MonkeyPatch) -> None:
    """A server believes its own folder, whatever the others remember."""
    patch.setattr(Trust, "counts", property(lambda _: True))
    patch.setattr(Trust, "_recalled", lambda _self, _server, _word: None)
    patch.setattr(Trust, "_meet", lambda _self, _server, _message: None)


def _remembering(patch: pytest.MonkeyPatch) -> None:
    """A server that was put back goes by what others have noted of its promises only, not by what they have."""
    patch.setattr(Trust, "_meet", lambda _self, _server, _message: None)


def _trusting(patch: pytest.MonkeyPatch) -> None:
    """A server with an older copy counts again at once, and does not go by what the others have."""
    patch.setattr(Trust, "counts", property(lambda _: True))
    patch.setattr(Trust, "_meet", lambda _self, _server, _message: None)


# Name → faults under which it shows, a seed that shows it soon, and what it does.
MUTANTS: Mapping[str, tuple[str, int, Mutation]] = {
    "entries acknowledged unsynced": ("power", 1, _unsynced),
    "a sync believed after one that failed": ("sick", 1, _believing),
    "votes in memory only": ("kills", 1, _forgetful),
    "matching entries thrown away": ("power", 3, _truncating),
    "changes of voters overlap": ("voters", 2, _overlapping),
    "commit index without comparing": ("kills", 4, _credulous),
    "reads without a majority": ("kills", 23, _hasty),
    "reads before the leader has settled": ("kills", 37, _impatient),
    "older copies believed": ("older", 4, _unsuspecting),
    "older copies known by notes only": ("older", 322, _remembering),
    "older copies counted": ("older", 4, _trusting),
}
