"""Stands between the wire and pysyncobj, and makes their conversation Raft.

What it adds, each because 0.3.17 lacks it:

* everything that a message speaks of is on the disk before the message leaves;
* entries are taken by the rules of `matching.py`, the commit index moves only
  over entries that were compared;
* acks carry their term and count in no other one, and the leader's round that they answer;
* who is behind in terms is told so;
* who has less than it promised counts for nothing (`trust.py`);
* learners hear less often that nothing happens.

Runs on the raft thread.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pysyncobj.node import Node
from pysyncobj.transport import Transport

from kmgr.errors import InvariantBroken
from kmgr.grid.raft.courier import Courier
from kmgr.grid.raft.election import Election
from kmgr.grid.raft.journal import Journal
from kmgr.grid.raft.library import Library, Peer, monotonic
from kmgr.grid.raft.matching import match
from kmgr.grid.raft.messages import (
    Append,
    AskSupport,
    AskTrust,
    AskVote,
    Known,
    Message,
    NextPiece,
    Piece,
    Remembered,
    Stale,
    Support,
    Taken,
    TakeOver,
    Trusted,
    Vote,
)
from kmgr.grid.raft.trust import Trust
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)


class Guard(Transport):  # type: ignore[misc]
    """The library's transport: translates its messages, corrects them, and keeps the rules it does not know."""

    def __init__(
        self,
        journal: Journal,
        courier: Courier,
        send: Callable[[ServerId, Message], bool],
    ) -> None:
        super().__init__(None, None, [])
        self.library: Library
        self._journal = journal
        self._courier = courier
        self._send_message = send
        self.trust = Trust(journal, lambda: self.library, self._put)
        self.election = Election(journal, lambda: self.library, self._put, trust=self.trust)
        self.connected: set[ServerId] = set()
        self._owed: list[tuple[ServerId, Taken]] = []
        self._round = 0
        self._round_used = False
        self._echoed: dict[ServerId, tuple[int, int]] = {}
        self._quiet: dict[ServerId, tuple[float, tuple[int, int, int]]] = {}
        # The journal makes a new set whenever something changes.
        self._voters: frozenset[ServerId] | None = None

    def _put(self, server: ServerId, message: Message) -> bool:
        self.trust.saying(server, message)
        return self._send_message(server, message)

    # From the library to the wire.

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        """Send what the library says, once it is true on the disk.

        A leader's own entries may leave before, so that all disks write at the same time: they are synced before the
        round ends, hence before anybody's answer to them is counted.
        """
        if message["type"] != "append_entries" or message["commit_index"] > self._journal.synced:
            self._journal.sync()
        server = ServerId(node.id)
        match message["type"]:
            case "append_entries":
                return self._send_entries(server, message)
            case "request_vote":
                index, term = message["last_log_index"], message["last_log_term"]
                return self._put(server, AskVote(message["term"], index, term, self.election.handed_over))
            case "response_vote":
                return self._put(server, Vote(message["term"]))
            case "timeout_now":
                return self._put(server, TakeOver(message["term"]))
            case other:
                raise InvariantBroken(f"pysyncobj said {other!r}, which it never should here")

    def _send_entries(self, server: ServerId, message: dict[str, Any]) -> bool:
        if "prevLogIdx" not in message:
            # The log here begins behind what the server has. The library would ask for pieces until the beat is
            # over; the courier does that, and the next refusal brings us back here.
            self.library.set_next_for(server, self._journal.last.index + 1)
            self._courier.offer(server, message["term"], monotonic())
            return True
        if message["prevLogIdx"] is None:
            self.library.set_next_for(server, self._journal.last.index + 1)
            return True
        previous, previous_term = message["prevLogIdx"], message["prevLogTerm"]
        term, commit, entries = message["term"], message["commit_index"], tuple(message["entries"])
        if self.library.learns(server) and self._nothing_new(server, (term, commit, previous), entries=bool(entries)):
            return True
        self._round_used = True
        return self._put(server, Append(term, commit, previous, previous_term, entries, self._round))

    def _nothing_new(self, server: ServerId, said: tuple[int, int, int], *, entries: bool) -> bool:
        now, before = monotonic(), self._quiet.get(server)
        if not entries and before is not None and before[1] == said and now < before[0]:
            return True
        self._quiet[server] = (now + self.library.timing.learner_beat_s, said)
        return False

    # Rounds: a server that echoes one followed this leader after the round began.

    def begin_round(self) -> int:
        """Begin a round of messages, unless nothing was sent in the present one; return its number."""
        if self._round_used:
            self._round += 1
            self._round_used = False
            self.library.send_now()
        return self._round

    def echoed_round(self) -> int:
        """Return the newest round that a majority of the voters has answered in this leader's term."""
        others, term = self._journal.voters() - {self.library.server}, self.library.term
        rounds = [echo for echo_term, echo in map(self._echo_of, others) if echo_term == term]
        rounds.append(self._round)
        needed = (len(others) + 1) // 2 + 1
        return sorted(rounds, reverse=True)[needed - 1] if len(rounds) >= needed else -1

    def _echo_of(self, server: ServerId) -> tuple[int, int]:
        return self._echoed.get(server, (0, 0))

    # From the wire to the library.

    def up(self, server: ServerId) -> None:
        """A new connection stands: what was sent over the older one may be lost."""
        self.connected.add(server)
        self._quiet.pop(server, None)
        self.trust.up(server)
        self._onNodeConnected(Peer(server))
        self._courier.forget(server)
        if self.library.leads and self.library.next_for(server) is not None:
            matched = self.library.matched_by(server)
            if matched:
                self.library.set_next_for(server, matched + 1)
            self.library.send_now()

    def down(self, server: ServerId) -> None:
        """The connection is gone."""
        self.connected.discard(server)
        self._onNodeDisconnected(Peer(server))
        self._courier.forget(server)
        self.election.lost(server)

    def receive(self, server: ServerId, message: Message) -> None:
        """Handle a message of another server."""
        self.trust.heard(server, message)
        match message:
            case Append() | Piece():
                if self._follow(server, message.term):
                    self._take(server, message) if isinstance(message, Append) else self._take_piece(server, message)
            case Taken() | NextPiece():
                self._answered(server, message)
            case AskVote() | Vote() | AskSupport() | Support() | TakeOver():
                self.election.receive(server, message)
            case Remembered() | Known() | AskTrust() | Trusted():
                self.trust.receive(server, message)
            case Stale():
                if message.term > self.library.term:
                    self.library.adopt_term(message.term)
            case _:
                raise InvariantBroken(f"{type(message).__name__} is not the guard's")

    # Followers.

    def _follow(self, server: ServerId, term: int) -> bool:
        library = self.library
        if term < library.term:
            self._put(server, Stale(library.term))
            return False
        if term == library.term and library.leads:
            raise InvariantBroken(f"{server} and this server both lead in term {term}")
        self.election.heard()
        # A sign of life for the library: no entries, and a commit index that moves nothing.
        library.receive(server, {"type": "append_entries", "term": term, "commit_index": library.committed})
        return True

    def _take(self, server: ServerId, message: Append) -> None:
        library, journal = self.library, self._journal
        committed = max(library.committed, library.applied)
        try:
            found = match(
                journal.entries, message.previous, message.previous_term, message.entries, committed=committed
            )
        except InvariantBroken as error:
            self.trust.contradicted(error)
            raise
        if found.cut_from is not None:
            logger.info("entries of a former leader are dropped", extra={"from": found.cut_from})
            journal.cut(found.cut_from)
        for entry in found.new:
            journal.add(entry)
        if (voters := journal.voters()) is not self._voters:
            self._voters = voters
            library.set_voters(voters)
        self._owed.append((server, Taken(library.term, found.wanted, found.matched is not None, message.round)))
        if found.matched is not None:
            library.set_committed(max(committed, min(message.commit, found.matched)))

    def acknowledge(self) -> None:
        """Send the acks of this round, whose entries are on the disk by now: one sync for all that arrived in it."""
        owed, self._owed = self._owed, []
        for number, (server, taken) in enumerate(owed):
            later = owed[number + 1][1] if number + 1 < len(owed) and owed[number + 1][0] == server else None
            # One of an older term says nothing any more.
            if taken.term == self.library.term and not (later is not None and _says_more(later, taken)):
                self._put(server, taken if self.trust.counts else replace(taken, counts=False))

    def _take_piece(self, server: ServerId, piece: Piece) -> None:
        library = self.library
        here = self._journal.at(piece.index)
        if here is not None and here.term == piece.index_term:
            # The log here has all that the snapshot has. What follows was acknowledged and must stay.
            library.set_committed(max(library.committed, piece.index))
        elif piece.index > library.committed:
            self._courier.take(server, piece)
            return
        # Not at once: entries that came in this round may be committed, but they are not on the disk here yet.
        self._owed.append((server, Taken(library.term, library.committed + 1, matches=True)))

    # Leaders.

    def _answered(self, server: ServerId, message: Taken | NextPiece) -> None:
        library = self.library
        if message.term > library.term:
            library.adopt_term(message.term)
            return
        if message.term != library.term or not library.leads or library.next_for(server) is None:
            return
        if isinstance(message, Taken) and not message.counts:
            self._taken_uncounted(server, message)
            return
        if isinstance(message, Taken):
            self._echoed[server] = max(self._echo_of(server), (message.term, message.round))
            self._taken(server, message)
            return
        # An ack that says nothing new: the library notes only that the server is alive.
        library.receive(server, {"type": "next_node_idx", "reset": False, "success": False, "next_node_idx": 1})
        self._courier.go_on(server, message, monotonic())

    def _taken(self, server: ServerId, message: Taken) -> None:
        library, last = self.library, self._journal.last.index
        before = library.next_for(server) or 0
        if message.matches:
            if message.wanted > last + 1:
                raise InvariantBroken(f"{server} claims entries up to {message.wanted - 1}, the log ends at {last}")
            self._courier.forget(server)
        wanted = max(2, min(message.wanted, last + 1))
        library.receive(
            server,
            {
                "type": "next_node_idx",
                "next_node_idx": wanted,
                "reset": not message.matches,
                "success": message.matches,
            },
        )
        after = library.next_for(server) or before
        if message.matches and after < before <= last + 1:
            library.set_next_for(server, before)  # newer entries are on their way already
        elif after <= last:
            library.send_now()

    def _taken_uncounted(self, server: ServerId, message: Taken) -> None:
        """Send on, but let no majority have the server: to the library it is as silent as a dead one."""
        library, last = self.library, self._journal.last.index
        library.forget_match(server)
        if message.matches:
            self._courier.forget(server)
        wanted = max(2, min(message.wanted, last + 1))
        if not message.matches or wanted > (library.next_for(server) or 0):
            library.set_next_for(server, wanted)
        if (library.next_for(server) or 0) <= last:
            library.send_now()


def _says_more(later: Taken, taken: Taken) -> bool:
    return taken.matches and later.matches and later.wanted >= taken.wanted and later.round >= taken.round
