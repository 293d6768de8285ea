"""Who may lead: support is asked for before a term is raised, and while a leader is alive nobody hears candidates.

pysyncobj has neither: a server that flaps would unseat the leader again and
again. It also counts a vote twice if it arrives twice, and lets a server stand
that is no voter (or does not know any). A hand-over by the leader skips the canvass.

Runs on the raft thread.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from kmgr.grid.raft.journal import Journal
from kmgr.grid.raft.library import Library, monotonic
from kmgr.grid.raft.messages import AskSupport, AskVote, Message, Stale, Support, TakeOver, Vote
from kmgr.grid.raft.trust import Trust
from kmgr.ids import ServerId

Ballot: TypeAlias = AskVote | Vote | AskSupport | Support | TakeOver

_NEVER = float("-inf")
# A canvass goes on if it was repeated so short a time after it was due.
_GRACE_S = 0.1


@dataclass(slots=True)
class _Canvass:
    """One round of asking for support."""

    term: int
    began: float
    again_at: float
    supporters: set[ServerId]


class Election:
    """This server's part in elections."""

    def __init__(
        self,
        journal: Journal,
        library: Callable[[], Library],
        send: Callable[[ServerId, Message], bool],
        *,
        trust: Trust,
    ) -> None:
        self._trust = trust
        self._journal = journal
        self._library = library
        self._send = send
        self._heard = _NEVER
        self._handed_over_until = _NEVER
        self._canvass: _Canvass | None = None
        # Whom this server supports goes first, once per term; two that stand together split the votes.
        self._yielded = (0, _NEVER)
        self._voted: tuple[int, set[ServerId]] = (0, set())
        self._stood = False

    @property
    def handed_over(self) -> bool:
        """Whether the last leader asked this server to lead, a moment ago."""
        return monotonic() < self._handed_over_until

    def leader(self) -> ServerId | None:
        """Return the leader while it is heard from (this server itself only once it has settled)."""
        library = self._library()
        if library.leads:
            return library.server if library.settled else None
        return library.leader if monotonic() - self._heard < library.timing.election_max_s else None

    def heard(self) -> None:
        """Note a sign of life from the leader."""
        self._heard = monotonic()

    def lost(self, server: ServerId) -> None:
        """Note that the connection to a server is gone; if it was the leader's, an election may come sooner."""
        library = self._library()
        if server == library.leader:
            self._heard = _NEVER
            soon = 0.05 + library.timing.reluctance_s
            library.stand_within(soon, soon + library.timing.election_min_s / 2)

    def receive(self, server: ServerId, message: Ballot) -> None:
        """Handle a message about who should lead."""
        match message:
            case AskVote():
                self._asked_for_vote(server, message)
            case Vote():
                self._count_vote(server, message.term)
            case AskSupport():
                self._asked_for_support(server, message)
            case Support(term):
                if self._canvass is not None and term == self._canvass.term:
                    self._canvass.supporters.add(server)
            case TakeOver(term):
                self._asked_to_lead(server, term)

    def may_stand(self) -> bool:
        """Whether to stand for election now; asks the other voters for their support first."""
        library, now = self._library(), monotonic()
        voters = self._journal.voters()
        if library.server not in voters or not self._trust.counts:
            return False
        self._trust.leap(library.term + 1)
        if self._trust.lacks(*self._last()):
            return False
        others = voters - {library.server}
        if not others or now < self._handed_over_until:
            self._stood = True
            return True
        if now < self._yielded[1]:
            return False
        canvass, limit = self._canvass, library.timing.election_max_s
        if canvass is not None and canvass.term == library.term + 1 and now - canvass.began < limit:
            if 2 * (len(canvass.supporters & others) + 1) > len(voters):
                self._canvass = None
                self._stood = True
                return True
            if now < canvass.again_at:
                return False
        pause = random.uniform(0.1, 0.3) * library.timing.election_min_s  # noqa: S311 - spreads candidates
        self._canvass = _Canvass(library.term + 1, now, now + pause, set())
        last = self._journal.last
        for server in sorted(others):
            self._send(server, AskSupport(library.term + 1, last.index, last.term))
        return False

    def hasten(self) -> None:
        """Stand again soon if this server has just stood and did not win: the votes were split, or got lost."""
        library = self._library()
        if self._stood and not library.leads:
            library.stand_within(0.2 * library.timing.election_min_s, 0.5 * library.timing.election_min_s)
        self._stood = False

    def _leader_alive(self) -> bool:
        library = self._library()
        if library.leads:
            return True
        return library.leader is not None and monotonic() - self._heard < library.timing.election_min_s

    def _asked_for_support(self, server: ServerId, message: AskSupport) -> None:
        library = self._library()
        if message.term <= library.term:
            self._send(server, Stale(library.term))
            return
        asked = (message.last_term, message.last_index)
        if not self._trust.counts or self._leader_alive() or asked < self._last() or self._trust.lacks(*asked):
            return
        canvass = self._canvass
        rival = canvass is not None and canvass.term == message.term and monotonic() < canvass.again_at + _GRACE_S
        if not (rival and asked == self._last() and library.server < server):
            # Of two that canvass at once with equal logs the lower id goes first, or they would split the votes.
            if self._trust.leap(message.term):
                self._send(server, Stale(library.term))
                return
            self._send(server, Support(message.term))
            if self._yielded[0] != message.term:
                self._yielded = (message.term, monotonic() + library.timing.election_min_s / 3)

    def _last(self) -> tuple[int, int]:
        return self._journal.last.term, self._journal.last.index

    def _asked_for_vote(self, server: ServerId, message: AskVote) -> None:
        library = self._library()
        if message.term < library.term:
            self._send(server, Stale(library.term))
            return
        if not self._trust.counts:
            return
        if message.term > library.term and not message.handed_over and self._leader_alive():
            return
        asked = (message.last_term, message.last_index)
        if self._trust.lacks(*asked):
            return
        if asked >= self._last() and self._trust.leap(message.term):
            self._send(server, Stale(library.term))
            return
        last = {"last_log_index": message.last_index, "last_log_term": message.last_term}
        library.receive(server, {"type": "request_vote", "term": message.term, **last})

    def _count_vote(self, server: ServerId, term: int) -> None:
        if server not in self._journal.voters():
            return
        if self._voted[0] != term:
            self._voted = (term, set())
        if server not in self._voted[1]:
            self._voted[1].add(server)
            self._library().receive(server, {"type": "response_vote", "term": term})

    def _asked_to_lead(self, server: ServerId, term: int) -> None:
        library = self._library()
        if library.server in self._journal.voters() and server == library.leader and term == library.term:
            self._handed_over_until = monotonic() + library.timing.election_max_s
            library.receive(server, {"type": "timeout_now", "term": term})
