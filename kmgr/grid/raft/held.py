"""What a journal holds of what was promised from it, and what each message promises."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from kmgr.grid.raft.journal import Journal
from kmgr.grid.raft.messages import Append, AskVote, Known, Message, Stale, Taken, Vote
from kmgr.grid.raft.records import Entry, Word
from kmgr.ids import ServerId


@dataclass(frozen=True, slots=True)
class Held:
    """What a journal had at one moment; `runs` are (first index, term) of its entries, for the journal goes on."""

    term: int
    vote: ServerId | None
    first: int
    last: int
    runs: tuple[tuple[int, int], ...]

    def keeps(self, word: Word) -> bool:
        """Whether this is what the entries of a promise were promised from, or what came of it."""
        if word.term != self.term or word.index < self.first:
            return word.term <= self.term
        return word.index <= self.last and word.index_term in {0, self._term_at(word.index)}

    def keeps_vote(self, word: Word, voted_for: ServerId) -> bool:
        """Whether the vote that was given is known, or can be given to nobody else: entries of its term are here."""
        over = word.vote < self.term or word.vote <= self.runs[-1][1]
        return over or (word.vote == self.term and self.vote == voted_for)

    def _term_at(self, index: int) -> int:
        return self.runs[bisect_right(self.runs, (index, 1 << 62)) - 1][1]


def held(journal: Journal) -> Held:
    """Return what a journal has now."""
    return Held(journal.term, journal.vote, journal.first.index, journal.last.index, _runs(journal.entries))


def _runs(entries: Sequence[Entry]) -> tuple[tuple[int, int], ...]:
    runs: list[tuple[int, int]] = []
    for entry in entries:
        if not runs or runs[-1][1] != entry.term:
            runs.append((entry.index, entry.term))
    return tuple(runs)


def promised_by(message: Message) -> Word | None:
    """Return what a message promises about its sender's disk."""
    match message:
        case Taken(matches=True):
            return Word(message.term, message.wanted - 1, 0, 0)
        case Append():
            return Word(message.term, message.commit, 0, 0)
        case Vote(term):
            return Word(term, 0, 0, term)
        case AskVote(term) | Stale(term):
            return Word(term, 0, 0, 0)
        case Known():
            return Word(message.term, message.index, message.index_term, 0)
    return None
