"""The only file that knows pysyncobj's private names: what is left of it is elections, replication and counting acks.

Facts of 0.3.17 that shape this file (any other version is refused at start):

* `SyncObj(journalFile=…)` calls the module's `createJournal` with that value; the
  one seam for another journal is to replace this function by one that takes it as it is.
* `doTick(0)` does one round: stand for election, count acks and move the commit
  index, apply, send entries, look for commands, then call `select.poll` with no wait.
  Here `counted` is called in place of applying, and nothing happens in the last two steps.
* An exception out of applying repeats the entry at every tick for ever, so
  `apply` raises only to stop this server.
* Its handler of entries deletes entries that match, moves the commit index
  without comparing logs, and its snapshots are loaded with a bare `except`: the
  guard never passes it anything but signs of life, votes and acks.
* Its commands, membership, snapshots, versions and consumers are never used.
  Pickle is taken away from it.
* Its import puts a function for Windows, which raises everywhere else, in place of `socket.inet_ntop`
  (`win_inet_pton.py`, last line); zeroconf and psutil call that. It is put back here.
* Its sets and mappings ask `Node` for hash and equality in Python, hundreds of times a
  change; a `Node` that is a string answers as one.

Runs on the raft thread.
"""

import hashlib
import random
import socket
from _socket import inet_ntop
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from pysyncobj import syncobj
from pysyncobj.config import FAIL_REASON, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from pysyncobj.version import VERSION

from kmgr.errors import ConfigError
from kmgr.grid.raft.journal import Journal
from kmgr.grid.raft.records import Entry
from kmgr.ids import ServerId

socket.inet_ntop = inet_ntop
WRAPPED = "0.3.17"
# Of its sources, as the wheel brings them.
LOOKED_AT = frozenset({"45ba8b60ce682f65a65c8ab0c8c724028a28872c6470f0368c6dd4e015de7e15"})
# pysyncobj breaks larger batches into pickled fragments; a command has at most half of this.
BATCH_BYTES = 512 * 1024
# So long a round may go on applying.
APPLY_S = 0.02


@dataclass(frozen=True, slots=True)
class Timing:
    """Raft's time limits in seconds, and when the log is compacted (`compaction.py`): entries, and bytes."""

    election_min_s: float = 1.0
    election_max_s: float = 2.0
    beat_s: float = 0.2
    # A leader that has not heard from a majority for so long leads no longer.
    fallback_s: float = 1.5
    compact_entries: int = 5000
    # So many, while they are smaller than the state that would be copied for them.
    compact_most: int = 20_000
    compact_bytes: int = 64 << 20
    tick_s: float = 0.05
    # A witness lets servers stand first when it sees the leader go.
    reluctance_s: float = 0.0

    @property
    def learner_beat_s(self) -> float:
        """How often learners hear that nothing happened: twice before they would think the leader gone."""
        return self.election_max_s / 3


class Hooks(Protocol):
    """What the library asks while it does a round."""

    def counted(self) -> None:
        """Between counting acks and sending entries."""
        ...

    def apply(self, index: int, command: bytes) -> None:
        """Apply a committed entry."""
        ...

    def may_stand(self) -> bool:
        """Whether this server may stand for election now."""
        ...


def check_library(folder: Path = Path(syncobj.__file__).parent, version: str = VERSION) -> None:
    """Refuse to run on a pysyncobj whose insides were never looked at: another version, or changed sources."""
    if version != WRAPPED:
        raise ConfigError(
            f"pysyncobj {version} is installed, but kmgr was built and tested around {WRAPPED}: "
            f"run `pip install pysyncobj=={WRAPPED}`"
        )
    if fingerprint(folder) not in LOOKED_AT:
        raise ConfigError(
            f"the sources of pysyncobj in {folder} are not those of the release {WRAPPED}, around which kmgr was "
            f"built and tested: run `pip install --force-reinstall --no-deps pysyncobj=={WRAPPED}`"
        )


def fingerprint(folder: Path) -> str:
    """Return one number for all Python sources of a folder; pysyncobj has no other parts."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        found.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def monotonic() -> float:
    """Return the time that the library itself lives by."""
    now: float = syncobj.monotonicTime()
    return now


class Peer(str, Node):  # type: ignore[misc]
    """A `Node` with the hash and the equality of its id."""

    def __init__(self, server: ServerId) -> None:
        self.__dict__["_id"] = server

    __hash__ = str.__hash__
    __eq__ = str.__eq__
    __ne__ = str.__ne__


class Library(syncobj.SyncObj):  # type: ignore[misc]
    """pysyncobj's core with its private parts under plain names."""

    def __init__(
        self, server: ServerId, journal: Journal, transport: Transport, hooks: Hooks, *, timing: Timing, applied: int
    ) -> None:
        self._hooks = hooks
        self._fed: frozenset[ServerId] = frozenset()
        self.server = server
        self.timing = timing
        conf = SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,
            commandsWaitLeader=False,
            dynamicMembershipChange=False,
            useFork=False,
            journalFile=_LibraryJournal(journal),
            fullDumpFile=None,
            raftMinTimeout=timing.election_min_s,
            raftMaxTimeout=timing.election_max_s,
            appendEntriesPeriod=timing.beat_s,
            leaderFallbackTimeout=timing.fallback_s,
            connectionTimeout=2 * timing.election_max_s,
            appendEntriesBatchSizeBytes=BATCH_BYTES,
        )
        others = [Peer(voter) for voter in sorted(journal.voters() - {server})]
        super().__init__(Peer(server), others, conf, transport=transport)
        self._SyncObj__serializer = _NoSerializer()
        self._poller = _NoPoller()
        self._SyncObj__raftLastApplied = applied
        self.set_committed(max(applied, self.committed))

    # What it overrides.

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        self._hooks.counted()
        return False

    def _checkCommandsToApply(self) -> None:  # noqa: N802
        """Commands are `core.Core`'s."""

    def _SyncObj__connectedToAnyone(self) -> bool:  # noqa: N802
        return self._hooks.may_stand()

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        """Compaction is `core.Core`'s."""

    # What it knows.

    @property
    def term(self) -> int:
        """The present term."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def leads(self) -> bool:
        """Whether this server believes to lead."""
        return bool(self._isLeader())

    @property
    def leader(self) -> ServerId | None:
        """The last known leader of this term; it may be gone."""
        found: Node | None = self._SyncObj__raftLeader
        return None if found is None else ServerId(found.id)

    @property
    def committed(self) -> int:
        """Up to which index the log is known to be committed."""
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied(self) -> int:
        """Up to which index entries were handed to `apply`."""
        return int(self._SyncObj__raftLastApplied)

    @property
    def settled(self) -> bool:
        """Whether this leader has applied an entry of its own term, hence all that was committed before."""
        return self.leads and self._SyncObj__noopIDx is not None and self.applied >= self._SyncObj__noopIDx

    def heard_from_majority(self) -> bool:
        """Whether this leader was answered by a majority within the fallback time."""
        deadline = monotonic() - self.timing.fallback_s
        times = self._SyncObj__lastResponseTime
        others = self._SyncObj__otherNodes
        fresh = sum(1 for node in others if times.get(node, 0.0) > deadline)
        return 2 * (fresh + 1) > len(others) + 1

    def others(self) -> frozenset[ServerId]:
        """Who else votes, as the library counts."""
        return frozenset(ServerId(node.id) for node in self._SyncObj__otherNodes)

    def learns(self, server: ServerId) -> bool:
        """Whether a server is sent the log without a vote."""
        return Peer(server) in self._SyncObj__readonlyNodes

    def progress(self) -> dict[ServerId, int]:
        """Return up to which index each other server is known to have this leader's log on its disk."""
        return {ServerId(node.id): index for node, index in self._SyncObj__raftMatchIndex.items()}

    # What it is told.

    def apply(self) -> None:
        """Apply what is committed, for a moment: a leader with much to catch up on must not fall silent over it."""
        if self.applied >= self.committed:
            return
        until = monotonic() + APPLY_S
        for entry in self._SyncObj__getEntries(self.applied + 1, self.committed - self.applied):
            self._hooks.apply(entry.index, entry.command)
            self._SyncObj__raftLastApplied += 1
            if monotonic() > until:
                break

    def set_committed(self, index: int) -> None:
        """Move the commit index."""
        self._SyncObj__raftCommitIndex = index
        self._SyncObj__raftLog.setRaftCommitIndex(index)

    def jump(self, index: int) -> None:
        """Count everything up to `index` as applied: a snapshot brought it."""
        self._SyncObj__raftLastApplied = index
        self.set_committed(max(index, self.committed))

    def set_voters(self, voters: Collection[ServerId]) -> None:
        """Count exactly these servers (this one apart) from now on."""
        wanted = frozenset(voters) - {self.server}
        known = dict(self._SyncObj__raftNextIndex), dict(self._SyncObj__raftMatchIndex)
        for server in sorted(wanted - self.others()):
            self._SyncObj__doChangeCluster(["add", server, Peer(server)])
        for server in sorted(self.others() - wanted):
            self._SyncObj__doChangeCluster(["rem", server, Peer(server)])
        self.feed(self._fed)
        # A learner that votes now, or the other way round, has the same log as before.
        for now, before in zip((self._SyncObj__raftNextIndex, self._SyncObj__raftMatchIndex), known, strict=True):
            now.update({node: index for node, index in before.items() if node in now})

    def feed(self, servers: frozenset[ServerId]) -> None:
        """Send the log also to these servers, which do not vote; the library calls them read-only."""
        self._fed = servers
        wanted = {Peer(server) for server in servers - self.others() - {self.server}}
        learners: set[Node] = self._SyncObj__readonlyNodes
        for node in wanted - learners:
            learners.add(node)
            self._SyncObj__raftNextIndex[node] = self._SyncObj__raftLog[-1][1] + 1
            self._SyncObj__raftMatchIndex[node] = 0
        for node in learners - wanted:
            learners.discard(node)
            if node not in self._SyncObj__otherNodes:
                self._SyncObj__raftNextIndex.pop(node, None)
                self._SyncObj__raftMatchIndex.pop(node, None)

    def adopt_term(self, term: int) -> None:
        """Follow in a newer term."""
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(syncobj._RAFT_STATE.FOLLOWER)
        self._SyncObj__raftLeader = None

    def step_down(self) -> None:
        """Lead no longer."""
        self._SyncObj__setState(syncobj._RAFT_STATE.FOLLOWER)
        self._SyncObj__raftLeader = None

    def forget_match(self, server: ServerId) -> None:
        """Count nothing any more that a server is said to have on its disk."""
        if Peer(server) in self._SyncObj__raftMatchIndex:
            self._SyncObj__raftMatchIndex[Peer(server)] = 0

    def send_now(self) -> None:
        """Send entries and the commit index in the next round instead of at the next beat."""
        self._SyncObj__newAppendEntriesTime = 0

    def stand_within(self, least_s: float, most_s: float) -> None:
        """Bring the next election forward."""
        soon = monotonic() + random.uniform(least_s, most_s)  # noqa: S311 - spreads candidates, protects nothing
        self.__dict__["_SyncObj__raftElectionDeadline"] = min(self.__dict__["_SyncObj__raftElectionDeadline"], soon)

    def receive(self, server: ServerId, message: dict[str, Any]) -> None:
        """Handle a message in the library's own form."""
        self._SyncObj__onMessageReceived(Peer(server), message)

    def next_for(self, server: ServerId) -> int | None:
        """Return the index of the entry to send next to a server, None if it is sent none."""
        found: int | None = self._SyncObj__raftNextIndex.get(Peer(server))
        return found

    def set_next_for(self, server: ServerId, index: int) -> None:
        """Choose the entry to send next to a server."""
        self._SyncObj__raftNextIndex[Peer(server)] = index

    def ask_to_lead(self, server: ServerId) -> bool:
        """Ask a voter to become the leader; False if it has not all entries yet."""
        said: list[int] = []
        self.transferLeadership(Peer(server), lambda _result, reason: said.append(reason))
        return said == [FAIL_REASON.SUCCESS]

    def matched_by(self, server: ServerId) -> int:
        """Return up to which index a server is known to have this leader's log."""
        return int(self._SyncObj__raftMatchIndex.get(Peer(server), 0))


class _LibraryJournal:
    """A `Journal` under the names by which pysyncobj calls it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def add(self, command: bytes, index: int, term: int) -> None:
        self._journal.add(Entry(command, index, term))

    def __getitem__(self, place: Any) -> Any:
        return self._journal.entries[place]

    def __len__(self) -> int:
        return len(self._journal.entries)

    def setRaftCommitIndex(self, index: int) -> None:  # noqa: N802
        self._journal.commit = index

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return min(self._journal.commit, self._journal.last.index)

    def setCurrentTerm(self, term: int, vote: ServerId | None) -> None:  # noqa: N802
        self._journal.decide(term, vote)

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._journal.term

    def getVotedForNodeId(self) -> ServerId | None:  # noqa: N802
        return self._journal.vote

    def onOneSecondTimer(self) -> None:  # noqa: N802
        self._journal.note_commit()

    def _destroy(self) -> None:
        """The journal is closed by `core.Core`."""


class _NoSerializer:
    """In place of the library's snapshots: there is never one to send, the courier sends ours."""

    def getTransmissionData(self, _server: object) -> None:  # noqa: N802
        return None

    def cancelTransmisstion(self, _server: object) -> None:  # noqa: N802
        return None


class _NoPoller:
    """In place of the library's sockets, of which it has none."""

    def poll(self, _timeout: float) -> None:
        """Nothing to wait for."""


class _NoPickle:
    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(f"pickle.{name} is not used here: a frame of the log is JSON")


def _as_it_is(journal: _LibraryJournal) -> _LibraryJournal:
    return journal


syncobj.createJournal = _as_it_is
syncobj.pickle = _NoPickle()
