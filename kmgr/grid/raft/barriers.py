"""Reads that must be current: which log entry has to be applied before the state shows all that was acknowledged.

The leader notes its commit index, begins a round of messages, and waits until a
majority has answered that round: then it still led when it was asked, and
nothing newer can have been acknowledged. Other servers ask the leader. A
question that got lost is asked again; it changes nothing.

`add` and `give_up` may be called on any thread, everything else on the raft thread.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from kmgr.errors import KmgrError, Unavailable
from kmgr.ids import ServerId

ASK_AGAIN_S = 0.4

Passed: TypeAlias = Callable[[KmgrError | None], None]

_STOPPING = "this server is stopping: read again at another one"


@dataclass(slots=True, eq=False)
class Barrier:
    """One reader that waits; `passed` is called once, on the raft thread. `first` numbers its first question."""

    passed: Passed
    first: int | None = None
    sent_to: tuple[ServerId, int] | None = None
    sent_at: float = 0.0
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What a server asked of this leader: answered with `index` once `round` came back from a majority."""

    server: ServerId
    attempt: int
    term: int
    index: int
    round: int


class Questions:
    """The leader's side: what was asked and is not answered yet."""

    def __init__(self) -> None:
        self._fresh: list[tuple[ServerId, int]] = []
        self._noted: list[Question] = []

    def __bool__(self) -> bool:
        return bool(self._fresh or self._noted)

    def ask(self, server: ServerId, attempt: int) -> None:
        """Take a question on."""
        self._fresh.append((server, attempt))

    def note(self, term: int, index: int, round: int) -> None:
        """Give new questions the index that answers them and the round that must come back before."""
        self._noted.extend(Question(server, attempt, term, index, round) for server, attempt in self._fresh)
        self._fresh.clear()

    def fresh(self) -> bool:
        """Whether there are questions without a round."""
        return bool(self._fresh)

    def answered(self, term: int, round: int) -> list[Question]:
        """Return, and forget, what can be answered now that this round of this term came back."""
        found = [one for one in self._noted if one.term == term and one.round <= round]
        self._noted = [one for one in self._noted if one.term == term and one.round > round]
        return found

    def clear(self) -> None:
        """Forget all: this server does not lead. Whoever asked will ask the next leader."""
        self._fresh.clear()
        self._noted.clear()


class Barriers:
    """The readers of this server that wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Barrier] = []
        self._closed = False
        self._attempt = time.time_ns()

    def __bool__(self) -> bool:
        return bool(self._open)

    def add(self, barrier: Barrier) -> None:
        """Let a reader wait (any thread)."""
        with self._lock:
            if not self._closed:
                self._open.append(barrier)
                return
        barrier.passed(Unavailable(_STOPPING))

    def give_up(self, barrier: Barrier) -> None:
        """Forget a reader (any thread)."""
        with self._lock:
            if barrier in self._open:
                self._open.remove(barrier)

    def due(self, leader: ServerId, term: int, now: float) -> int | None:
        """Return the number of a question to ask the leader now, for all readers that have no answer on its way."""
        with self._lock:
            asking = [
                one
                for one in self._open
                if one.index is None and (one.sent_to != (leader, term) or now - one.sent_at > ASK_AGAIN_S)
            ]
            if not asking:
                return None
            self._attempt += 1
            for one in asking:
                one.first = one.first or self._attempt
                one.sent_to, one.sent_at = (leader, term), now
            return self._attempt

    def told(self, attempt: int, index: int) -> None:
        """Note the leader's answer; it holds for everybody who waited already when it was asked for."""
        with self._lock:
            for one in self._open:
                if one.first is not None and one.first <= attempt and one.index is None:
                    one.index = index

    def lost(self, server: ServerId) -> None:
        """Ask again what was asked of a server: the connection to it is new."""
        with self._lock:
            for one in self._open:
                if one.sent_to is not None and one.sent_to[0] == server:
                    one.sent_to = None

    def applied(self, index: int) -> None:
        """Let those pass whose entry is visible now."""
        for one in self._remove(lambda one: one.index is not None and one.index <= index):
            one.passed(None)

    def close(self) -> None:
        """Refuse all that wait; nobody may wait any more."""
        self._closed = True
        for one in self._remove(lambda _: True):
            one.passed(Unavailable(_STOPPING))

    def _remove(self, which: Callable[[Barrier], bool]) -> list[Barrier]:
        with self._lock:
            found = [one for one in self._open if which(one)]
            if found:
                self._open = [one for one in self._open if not which(one)]
        return found
