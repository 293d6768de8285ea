"""Commands on their way into the log: sent, sent again, and answered when this server has applied them.

A proposal is tried under the same command id until it is applied or its asker
gives up; the table of outcomes makes a second entry harmless. An *attempt* is
open while it may still lead to an entry. With no open attempt it is certain that
nothing happened.

`add` and `give_up` may be called on any thread, everything else on the raft thread.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from kmgr.errors import KmgrError, OutcomeUnknown, Unavailable
from kmgr.grid.envelope import Outcome
from kmgr.ids import CommandId, ServerId

RESEND_S = 2.0
BREATH_S = 0.2
# So long without a leader, an asker is told; elections are shorter.
PATIENCE_S = 4.0

Answer: TypeAlias = Callable[[Outcome | KmgrError], None]

_NO_LEADER = (
    "the grid has no leader that this server can reach, so nothing was changed: more than half of its servers must "
    "be running and connected; try again when they are"
)
_STOPPING = "this server is stopping; nothing was changed"
_LATE = (
    "the grid did not answer in time: the change may or may not have been made; look before trying again, or send it "
    "again under the same command id"
)
_UNKNOWN = "this server stopped while the change was under way: look whether it was made before trying again"


@dataclass(slots=True, eq=False)
class Proposal:
    """One asker's command; `answer` is called once, on the raft thread."""

    id: CommandId
    data: bytes
    answer: Answer
    began: float
    sent_to: tuple[ServerId, int] | None = None
    sent_at: float = 0.0
    attempts: set[int] = field(default_factory=set)


class Proposals:
    """All proposals of this server that are not answered yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By their bytes: what is applied is recognised without reading it again.
        self._open: dict[bytes, list[Proposal]] = {}
        self._unsent: list[Proposal] = []
        self._leader: tuple[ServerId, int] | None = None
        self._look_at = 0.0
        self._closed = False
        # Never the same number twice, not even after a restart: an old refusal must not close a new attempt.
        self._attempt = time.time_ns()

    def __bool__(self) -> bool:
        return bool(self._open)

    def __contains__(self, data: bytes) -> bool:
        return data in self._open

    def add(self, proposal: Proposal) -> None:
        """Take a proposal on (any thread)."""
        with self._lock:
            if not self._closed:
                self._open.setdefault(proposal.data, []).append(proposal)
                self._unsent.append(proposal)
                return
        proposal.answer(Unavailable(_STOPPING))

    def give_up(self, proposal: Proposal) -> KmgrError:
        """Forget a proposal (any thread); return what to tell its asker."""
        with self._lock:
            same = self._open.get(proposal.data, [])
            if proposal in same:
                same.remove(proposal)
                if not same:
                    del self._open[proposal.data]
            return OutcomeUnknown(_LATE) if proposal.attempts else Unavailable(_NO_LEADER)

    def due(self, leader: ServerId, term: int, now: float, *, here: bool) -> list[tuple[Proposal, int]]:
        """Return what to send to the leader now, each with the number of its attempt, and note it as sent."""
        found = []
        with self._lock:
            looking, self._unsent = self._unsent, []
            if self._leader != (leader, term) or now > self._look_at:
                self._leader, self._look_at = (leader, term), now + BREATH_S / 2
                looking = list(self._all())
            for proposal in looking:
                late = not here and now - proposal.sent_at > RESEND_S
                if (proposal.sent_to != (leader, term) or late) and proposal.data in self._open:
                    self._attempt += 1
                    proposal.sent_to, proposal.sent_at = (leader, term), now
                    proposal.attempts.add(self._attempt)
                    found.append((proposal, self._attempt))
        return found

    def not_taken(self, attempt: int, now: float) -> None:
        """Close an attempt that led to nothing; the next one follows after a breath."""
        with self._lock:
            for proposal in self._all():
                if attempt in proposal.attempts:
                    proposal.attempts.discard(attempt)
                    proposal.sent_at = now - RESEND_S + BREATH_S

    def lost(self, server: ServerId) -> None:
        """Send again what was sent to a server: the connection to it is new."""
        with self._lock:
            self._leader = None
            for proposal in self._all():
                if proposal.sent_to is not None and proposal.sent_to[0] == server:
                    proposal.sent_to = None

    def applied(self, data: bytes, outcome: Outcome) -> None:
        """Answer whoever proposed this command here."""
        with self._lock:
            found = self._open.pop(data, [])
        for proposal in found:
            proposal.answer(outcome)

    def leaderless(self, now: float) -> None:
        """Refuse what waits for a leader too long and was never sent."""
        for proposal in self._remove(lambda one: not one.attempts and now - one.began > 1.0):
            proposal.answer(Unavailable(_NO_LEADER))

    def close(self) -> None:
        """Refuse all that are open; none is taken on any more."""
        self._closed = True
        for proposal in self._remove(lambda _one: True):
            proposal.answer(OutcomeUnknown(_UNKNOWN) if proposal.attempts else Unavailable(_STOPPING))

    def _remove(self, which: Callable[[Proposal], bool]) -> list[Proposal]:
        with self._lock:
            found = [one for one in self._all() if which(one)]
            self._open = {
                data: rest for data, same in self._open.items() if (rest := [one for one in same if one not in found])
            }
        return found

    def _all(self) -> Iterator[Proposal]:
        for same in self._open.values():
            yield from same
