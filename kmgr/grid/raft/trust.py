"""What servers remember of each other's promises, and what one does that has less: it counts for nothing for a while.

A whole data folder put back from an older copy tells nothing by itself, but the
others know what was acknowledged, voted for and said from the newer one:

* Everybody notes the most that every voter ever promised it, in its own journal,
  and says so as the first word on each connection.
* After a start a server counts only when all other voters have said so, or after
  `HOLD` of the longest election time: until then it stores, but neither votes nor
  stands, and no majority has it. If somebody stayed silent (or it believes to be
  the only voter) it leaves all terms behind in which a forgotten life may have
  voted: so one term never has two leaders, and what does not fit shows itself.
* Whatever others have when they speak for the first time in its life, it may have
  had as well, whether anybody noted that or not: it helps nobody to lead who has less
  (`PATIENCE` at most), itself included, and votes in no term that they knew.
* Whoever has less than was promised is *in doubt*, durably, and counts no more
  until the leader has put an entry into its log afterwards, a majority without
  the doubted one has it on disk, and so has the doubted one. By then it has all
  that was ever committed with its help, and nobody whom it may have voted for and
  forgotten can still win (docs/decisions/0011 has the argument).

Runs on the raft thread.
"""

import logging
import random
from collections.abc import Callable

from kmgr.errors import InvariantBroken
from kmgr.grid.raft.held import held, promised_by
from kmgr.grid.raft.journal import FORKED, NO_OP, Journal
from kmgr.grid.raft.library import Library, monotonic
from kmgr.grid.raft.messages import (
    AskTrust,
    Known,
    Message,
    Remembered,
    Taken,
    Trusted,
)
from kmgr.grid.raft.records import Entry, Word
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

# How many of the longest election times a server waits for the others' first words.
HOLD = 2.0
# A term is left for one that lies so far ahead at most, by chance: two lives never meet in one.
LEAP = 1 << 32
# And so many before it helps somebody to lead who has less than others had when they were met.
PATIENCE = 10.0
ASK_AGAIN_S = 0.2
TELL_S = 1.0

_DOUBT = (
    "this server's data is older than what it had promised {}: was a backup or a snapshot put back? Until a majority "
    "that does without it has brought it up to date, it has no vote, and what it stores does not count."
)
_OF_MORE = (
    "That happens by itself while the other servers run; if it does not, remove this one, run kmgr reset on it, and "
    "let it join again"
)
_OF_TWO = (
    "With two voters there is no such majority: stop kmgr on both, run kmgr grid recover on the other one and kmgr "
    "reset on this one, start the other one, and let this one join again"
)


class Trust:
    """Whether this server counts, and what it knows of the others' promises."""

    def __init__(
        self, journal: Journal, library: Callable[[], Library], send: Callable[[ServerId, Message], bool]
    ) -> None:
        self._journal = journal
        self._library = library
        self._send = send
        self._began = held(journal)
        self._given: dict[ServerId, Word] = {}
        # A new server has promised nothing to anybody.
        self._unheard = set() if journal.fresh else set(journal.voters())
        self._hold_until: float | None = None
        # Whoever did not speak in time; the terms up to the present one are not to be voted in meanwhile.
        self._silent: set[ServerId] = set()
        if journal.term and len(journal.voters()) == 1:
            self._silent |= journal.voters()
        # Who has spoken in this life, and the newest term that they knew: up to it this server may have voted.
        self._met: set[ServerId] = set()
        self._left = 0
        self._least_until: float | None = None
        self._new_attempt()
        self._ask_at = 0.0
        self._tell_at = 0.0
        self._told = (0, 0)
        # Who asked this leader for trust: under which number, in which term, and the entry that was made for it.
        self._entries: dict[ServerId, tuple[int, int, int]] = {}

    @property
    def counts(self) -> bool:
        """Whether this server may vote, and majorities may have it."""
        return not self._journal.doubt and not self._holds()

    @property
    def doubt(self) -> str:
        """Why it counts no more, in words for people; empty if it does or will in a moment."""
        if not self._journal.doubt:
            return ""
        alone = len(self._journal.voters()) == 2
        return f"{_DOUBT.format(self._journal.doubt)} {_OF_TWO if alone else _OF_MORE}"

    def leap(self, term: int) -> bool:
        """Before a vote in a term: leave behind those in which one may be forgotten; True if this is one of them."""
        library = self._library()
        if self._silent:
            self._silent.clear()
            self._left = max(self._left, library.term) + random.randrange(LEAP // 2, LEAP)  # noqa: S311 - two lives must differ
        if term > self._left:
            return False
        if library.term < self._left:
            library.adopt_term(self._left)
        return True

    def lacks(self, last_term: int, last_index: int) -> bool:
        """Whether a log with this end has less than others had when they were met, and these may still come."""
        if (last_term, last_index) >= self._journal.least:
            return False
        now = monotonic()
        if self._least_until is None:
            self._least_until = now + PATIENCE * self._library().timing.election_max_s
        if now < self._least_until:
            return True
        logger.warning("who has more stayed away: it is not waited for", extra={"end": list(self._journal.least)})
        self._journal.set_least((0, 0))
        return False

    # What is promised, by this server and by others.

    def saying(self, server: ServerId, message: Message) -> None:
        """Note what this server is about to promise."""
        word = promised_by(message)
        if word is not None:
            self._given[server] = word.joined(self._given.get(server))

    def heard(self, server: ServerId, message: Message) -> None:
        """Note what another server promises."""
        word = promised_by(message)
        if word is None or server not in self._journal.voters():
            return
        if isinstance(message, Taken) and message.term == self._library().term and self._library().leads:
            entry = self._journal.at(word.index)
            word = word if entry is None else word._replace(index_term=entry.term)
        self._journal.remember(server, word)

    def up(self, server: ServerId) -> None:
        """Say what the other end of a new connection has promised, before anything else."""
        journal, library = self._journal, self._library()
        # Without it nobody waits for this server to lead. Entries that are not synced count: others may have them.
        leads = library.server in journal.voters() and not journal.doubt
        end = (journal.last.index, journal.last.term) if leads else (0, 0)
        self._send(server, Remembered(*journal.remembered.get(server, Word()), library.term, *end))

    def receive(self, server: ServerId, message: Remembered | Known | AskTrust | Trusted) -> None:
        """Handle a message about trust."""
        match message:
            case Remembered():
                self._meet(server, message)
                self._recalled(server, Word(message.term, message.index, message.index_term, message.vote))
            case AskTrust():
                self._asked(server, message)
            case Trusted():
                self._trusted(server, message)

    def step(self) -> None:
        """Do what is due, once a round."""
        now = monotonic()
        self._holds()
        if self._journal.doubt and now >= self._ask_at:
            self._ask_at = now + ASK_AGAIN_S
            leader, library = self._library().leader, self._library()
            if leader not in {None, library.server}:
                self._send(leader, AskTrust(self._attempt, library.term))
        if now >= self._tell_at:
            self._tell_at = now + TELL_S
            self._tell()

    # This server.

    def _holds(self) -> bool:
        if not self._unheard:
            return False
        library, now = self._library(), monotonic()
        self._unheard.discard(library.server)
        if self._hold_until is None:
            self._hold_until = now + HOLD * library.timing.election_max_s
        if self._unheard and now > self._hold_until:
            logger.info("not all voters could be asked what was promised", extra={"silent": sorted(self._unheard)})
            self._silent, self._unheard = self._unheard, set()
        return bool(self._unheard)

    def _meet(self, server: ServerId, message: Remembered) -> None:
        """Take what a server has for what this one may have had, if it speaks for the first time in this life."""
        if server in self._met:
            return
        self._met.add(server)
        self._left = max(self._left, message.now)
        journal, end = self._journal, (message.last_term, message.last_index)
        if end > max((journal.last.term, journal.last.index), journal.least):
            self._least_until = None
            journal.set_least(end)

    def _recalled(self, server: ServerId, word: Word) -> None:
        self._unheard.discard(server)
        self._silent.discard(server)
        given = self._given.get(server, Word())
        entries = self._began.keeps(word) or (word.term, word.index) <= (given.term, given.index)
        vote = self._began.keeps_vote(word, server) or word.vote <= given.vote
        if entries and vote:
            return
        self._new_attempt()
        self._journal.set_doubt(server)
        library = self._library()
        if library.leads:
            library.step_down()
        logger.error(
            "this server's data is older than what it had promised: it counts no more until it is brought up to date",
            extra={"promised_to": server, "promise": list(word), "term": self._began.term, "last": self._began.last},
        )

    def _trusted(self, server: ServerId, message: Trusted) -> None:
        journal = self._journal
        if not journal.doubt or message.attempt != self._attempt or message.term != self._library().term:
            return
        # A log that begins behind it (compacted, or come as a snapshot) with an entry of the same leader's is the
        # leader's up to there: logs that have an entry in common are the same before it.
        entry = journal.first if message.index < journal.first.index else journal.at(message.index)
        if entry is None or entry.term != message.term or message.index > journal.synced:
            return
        journal.set_doubt(None)
        self._began = held(journal)
        logger.warning("this server was brought up to date and counts again", extra={"by": server})

    def _tell(self) -> None:
        """Let all voters know how far this server has come; one that lags behind may be all that is left."""
        journal, library = self._journal, self._library()
        index = min(library.committed, journal.synced)
        entry = journal.at(index)
        if entry is None or (library.term, index) == self._told:
            return
        self._told = (library.term, index)
        for server in sorted(journal.voters() - {library.server}):
            self._send(server, Known(library.term, index, entry.term))

    def _new_attempt(self) -> None:
        self._attempt = random.getrandbits(60)

    def contradicted(self, error: InvariantBroken) -> None:
        """What is committed here is not what the leader has: one who is in doubt has gone on by itself for good."""
        if self._journal.doubt:
            self._journal.set_doubt(self._journal.doubt, forked=True)
            raise InvariantBroken(f"{FORKED.format(self._journal.doubt)}. {error.message}") from error

    # The leader.

    def _asked(self, server: ServerId, message: AskTrust) -> None:
        library, journal = self._library(), self._journal
        if not library.settled or message.term != library.term or not self.counts:
            return
        library.forget_match(server)
        attempt, term, index = self._entries.get(server, (0, 0, 0))
        if (attempt, term) != (message.attempt, library.term):
            # One that is younger than the doubt: nobody whom the forgotten votes went to has it.
            index = journal.last.index + 1
            journal.add(Entry(NO_OP, index, library.term))
            self._entries[server] = (message.attempt, library.term, index)
            logger.warning("a server with an older copy of its data is brought up to date", extra={"server": server})
        if library.committed >= index:
            self._send(server, Trusted(message.attempt, library.term, index))
