"""What a simulated server stands on: a disk that forgets, wires that are queues, and no threads."""

import errno
import os
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome
from kmgr.grid.raft.core import Core
from kmgr.grid.raft.journal import Journal
from kmgr.grid.raft.logfile import LogFile
from kmgr.grid.raft.messages import Taken, Vote, decode
from kmgr.grid.store import Store
from kmgr.ids import ServerId

if TYPE_CHECKING:
    from tests.lab.raft_sim import Sim


NOTES = "create table if not exists notes (at integer primary key, n integer not null);"
# How many of the syncs fail where disks are sick.
SICK = 0.01


@dataclass(frozen=True, slots=True)
class Faults:
    """What may happen to the servers."""

    kills: bool = False
    power_cuts: bool = False
    # Syncs fail now and then; what was not written is then taken for written, as Linux does.
    sick_disks: bool = False
    voters: bool = False
    # How many servers are sent the log without a vote; with `voters` they and the voters change places.
    learners: int = 0
    # Whole folders are put back to older copies, one server at a time, while the others can be reached.
    older: bool = False


def add_note(db: Database, command: Command) -> Outcome:
    """Append a number."""
    db.execute("insert into notes (n) values (?)", [command.body["n"]])
    return Applied()


@dataclass
class Simulated:
    """One server; `core` is None while it is dead."""

    id: ServerId
    core: Core | None = None
    store: Store | None = None
    checked: int = 0
    # What it was like when it was looked at last: whoever is still the same need not be looked at again.
    seen: tuple[object, ...] = ()


class Killed(BaseException):
    """The process ends here."""


class Sick(OSError):
    """A sync failed."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, os.strerror(errno.EIO))


class SimFile(LogFile):
    """A journal's file whose process may end at any write, and which knows what a power cut would leave."""

    sim: "Sim"
    # Small, so that every run meets the end of the zeros ahead.
    AHEAD = 500

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        before = SimFile.sim.files.get(path)
        self.durable: int = self.size if before is None else min(before.durable, self.size)
        # What failed syncs left in memory only; it looks as if it were on the disk, until it is written again.
        self.forgotten: list[tuple[int, int]] = [] if before is None else before.forgotten
        SimFile.sim.files[path] = self

    def cut(self, size: int) -> None:
        super().cut(size)
        self.durable = size
        self.forgotten = [(begin, min(end, size)) for begin, end in self.forgotten if begin < size]

    def append(self, data: bytes) -> None:
        SimFile.sim.breath()
        super().append(data)

    def write_again(self, begin: int, data: bytes) -> None:
        SimFile.sim.breath()
        super().write_again(begin, data)
        self.forgotten = [(first, min(end, begin)) for first, end in self.forgotten if first < begin]

    def sync(self) -> None:
        SimFile.sim.breath()
        if SimFile.sim.faults.sick_disks and not SimFile.sim.well and SimFile.sim.dice.random() < SICK:
            self.forgotten.append((self.durable, self.size))
            raise Sick
        self.durable = self.size

    def replace(self, parts: Iterable[bytes]) -> None:
        SimFile.sim.breath()
        super().replace(parts)
        self.durable = self.size
        self.forgotten = []
        SimFile.sim.breath()

    def lose_power(self, dice: random.Random) -> None:
        """Leave what was synced, and of the rest a part: its end is missing or zeros, or there are holes in it."""
        raw = bytearray(self.path.read_bytes())
        for begin, end in self.forgotten:
            raw[begin:end] = bytes(end - begin)
        self.forgotten = []
        tail = bytearray(raw[self.durable : self.size])
        del tail[dice.randrange(len(tail) + 1) :]
        if tail and dice.random() < 0.5:
            begin = dice.randrange(len(tail))
            # Written into zeros, later parts may be on the disk before earlier ones.
            end = len(tail) if dice.random() < 0.5 else dice.randrange(begin, len(tail)) + 1
            tail[begin:end] = bytes(end - begin)
        ahead = bytes(dice.randrange(2) * dice.randrange(self.AHEAD))
        self.path.write_bytes(raw[: self.durable] + tail + ahead)
        self.durable += len(tail)


class Later:
    """Work on files that is done, all at once, some rounds later."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._jobs: deque[tuple[Callable[[Callable[[], None]], Any], Callable[[Any], None]]] = deque()

    def start(self, job: Callable[[Callable[[], None]], Any], then: Callable[[Any], None]) -> None:
        self._jobs.append((job, then))

    def poll(self) -> None:
        while self._jobs and self._dice.random() < 0.3:
            job, then = self._jobs.popleft()
            then(job(lambda: None))

    def close(self) -> None:
        self._jobs.clear()


@dataclass(slots=True)
class Promise:
    """What a server told others and must still know after any fault, as long as it is in that term."""

    term: int = 0
    vote: ServerId | None = None
    index: int = 0

    def heard(self, to: ServerId, frame: bytes) -> None:
        """Note what a frame promises."""
        match decode(frame):
            case Vote(term) if term >= self.term:
                self._reach(term)
                self.vote = to
            case Taken(term, wanted, True) if term >= self.term:
                self._reach(term)
                self.index = max(self.index, wanted - 1)

    def broken(self, journal: Journal) -> str | None:
        """Say how a journal breaks it."""
        if journal.term < self.term:
            return f"is in term {journal.term} after it took part in {self.term}"
        if journal.term > self.term:
            return None
        if self.vote not in {None, journal.vote}:
            return f"voted for {self.vote} in term {self.term} and knows only of {journal.vote}"
        if journal.last.index < self.index:
            return f"acknowledged entry {self.index} in term {self.term} and ends at {journal.last.index}"
        return None

    def _reach(self, term: int) -> None:
        if term > self.term:
            self.term, self.vote, self.index = term, None, 0


class SimLink:
    """One server's end of the simulated wires."""

    def __init__(self, sim: "Sim", server: ServerId) -> None:
        self._sim = sim
        self._server = server

    def send(self, server: ServerId, data: bytes) -> bool:
        """Queue a frame."""
        if frozenset({self._server, server}) not in self._sim.connected:
            return False
        self._sim.promises[self._server].heard(server, data)
        self._sim.queues[self._server, server].append(data)
        return True

    def flush(self) -> None:
        """What is sent is on its way at once."""
