"""One server's Raft: journal, library, guard, courier and state machine, advanced one round at a time.

A round:

* a follower syncs what arrived and acknowledges it;
* a leader counts what others acknowledged, takes on proposals, and sends them: all
  disks write at the same time;
* what is committed is applied, the state's transaction ends, and the askers are told;
* a leader syncs what it has sent, before it counts itself in the next round.

Knows no thread and no loop; `worker.py` calls it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kmgr.errors import InvariantBroken, Unavailable
from kmgr.grid import envelope
from kmgr.grid.envelope import Outcome
from kmgr.grid.fsm import Applier, Machine
from kmgr.grid.link import Frames
from kmgr.grid.raft import journal as log
from kmgr.grid.raft import messages, snapshot
from kmgr.grid.raft.background import Background, Thread
from kmgr.grid.raft.barriers import Barriers, Questions
from kmgr.grid.raft.batches import Batches
from kmgr.grid.raft.compaction import MOST_WAL_BYTES, Compaction
from kmgr.grid.raft.complaints import Complaints
from kmgr.grid.raft.courier import Courier
from kmgr.grid.raft.guard import Guard
from kmgr.grid.raft.library import Library, Timing, monotonic
from kmgr.grid.raft.messages import Append, AskIndex, IndexIs, Message, NotTaken, Propose
from kmgr.grid.raft.opening import SNAPSHOT, Opened
from kmgr.grid.raft.proposals import PATIENCE_S, Proposals
from kmgr.grid.raft.records import Entry
from kmgr.grid.raft.snapshot import Snapshot
from kmgr.grid.store import Store
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

# So long the news of a commit wait until the askers here are told: the loop needs Python's lock for that, and would
# not get it before everything is sent. Twenty times what it takes if the loop is not busy.
NEWS_S = 0.002


@dataclass(frozen=True, slots=True)
class Shown:
    """What the raft thread lets others know; replaced as a whole."""

    leader: ServerId | None = None
    term: int = 0
    applied: int = 0
    committed: int = 0
    majority: bool = False
    voters: tuple[ServerId, ...] = ()
    epoch: int = 0
    # Nothing of any grid's log is here yet.
    fresh: bool = False
    # Why this server counts for nothing, see `trust.py`.
    doubt: str = ""


class Core:
    """Raft on one server. Everything but `proposals`, `shown`, `end` and `told` belongs to the raft thread."""

    def __init__(
        self,
        server: ServerId,
        *,
        opened: Opened,
        folder: Path,
        store: Store,
        appliers: Mapping[str, Applier],
        link: Frames,
        timing: Timing,
        background: Background | None = None,
    ) -> None:
        self.server = server
        self.proposals = Proposals()
        self.barriers = Barriers()
        self.progress: Mapping[ServerId, int] = {}
        self.shown = Shown(epoch=opened.journal.epoch, fresh=opened.journal.fresh)
        self._seen: tuple[object, ...] = ()
        self._store = store
        self._appliers = appliers
        self._link = link
        self._timing = timing
        self._journal = opened.journal
        self.end = (self._journal.last.term, self._journal.last.index)
        self._machine = Machine(store, appliers)
        self._machine.skip(log.FIRST.index)
        self._background = background or Thread(f"raft files {server}")
        self._courier = Courier(folder / SNAPSHOT, self._send, background=self._background, arrived=self._install)
        if opened.snapshot is not None:
            self._courier.current = (opened.snapshot.last.index, opened.snapshot.last.term)
        self._guard = Guard(self._journal, self._courier, self._send)
        snapshot.own_checkpoints(store, MOST_WAL_BYTES)
        self._compaction = Compaction(
            folder / SNAPSHOT, store, self._journal, self._courier, self._background, timing
        )
        self._library = Library(
            server, self._journal, self._guard, self, timing=timing, applied=self._machine.applied
        )
        self._guard.library = self._library
        self._questions = Questions()
        self._done: list[tuple[bytes, Outcome]] = []
        self._announced = (0, 0)
        # From when on the news of a commit may be sent for themselves; None while there are none.
        self._news_from: float | None = None
        # The entries that others proposed, and that they do not know to be committed.
        self._foreign = (0, 0)
        self._asked: list[tuple[ServerId, Propose]] = []
        self._held = False
        self._batches = Batches()
        self._spelled: tuple[tuple[int, ...], bytes] = ((), b"")
        self._progress_at = 0.0
        self._leader_seen = monotonic()
        self._complaints = Complaints(logger)
        if self._journal.voters() == {server}:
            self._library.stand_within(0, 0)

    # What the library asks.

    def counted(self) -> None:
        """Take on what is proposed, for what was under way may be committed by now; say what is new."""
        last = self._journal.last.index
        self._propose()
        self._batches.began(self._journal.last.index - last, monotonic())
        self._read()
        if self._library.leads:
            self._announce()

    def apply(self, index: int, command: bytes) -> None:
        """Apply a committed entry."""
        if command[:1] != log.ENVELOPE:
            self._machine.skip(index)
            return
        data = command[1:]
        outcome = self._machine.apply(index, data)
        if outcome is not None and data in self.proposals:
            self._done.append((data, outcome))

    def may_stand(self) -> bool:
        """Whether this server may stand for election now."""
        return self._guard.election.may_stand()

    # What the worker calls.

    def up(self, server: ServerId) -> None:
        """A new connection to a server stands."""
        self._guard.up(server)
        self.proposals.lost(server)
        self.barriers.lost(server)

    def down(self, server: ServerId) -> None:
        """The connection to a server is gone."""
        self._guard.down(server)
        self.proposals.lost(server)
        self.barriers.lost(server)

    def receive(self, server: ServerId, frame: bytes) -> None:
        """Handle a frame; one that is no message is dropped, for the sender may be of another version."""
        try:
            message = messages.decode(frame)
        except ValueError as error:
            self._complaints.warn("a frame of the log was not understood", server, str(error), now=monotonic())
            return
        match message:
            case Propose(attempt, data):
                if self._is_command(server, data):
                    self._asked.append((server, message))
                else:
                    self._send(server, NotTaken(attempt))
            case NotTaken(attempt):
                self.proposals.not_taken(attempt, monotonic())
            case AskIndex(attempt):
                if self._library.leads:
                    self._questions.ask(server, attempt)
            case IndexIs(attempt, index):
                self.barriers.told(attempt, index)
            case _:
                self._guard.receive(server, message)

    def step(self) -> float:
        """Do one round; return after how many seconds the next one should follow, if nothing happens before."""
        library, journal = self._library, self._journal
        if not library.leads:
            self._sync()
            self._link.flush()
        library.doTick(0)
        self._guard.election.hasten()
        self._link.flush()
        if journal.synced < library.committed:
            self._sync()
        library.apply()
        self._machine.commit()
        self._show()
        self._answer()
        self._sync()
        self._guard.trust.step()
        self._background.poll()
        self._compaction.step(self._machine.applied)
        self._compaction.checkpoint(self._machine.applied)
        return self._rest()

    def _sync(self) -> None:
        """Return when all entries are on the disk; then they may be acknowledged."""
        self._journal.sync()
        self._guard.acknowledge()

    def _answer(self) -> None:
        if self._done:
            done, self._done = self._done, []
            # Before they are answered: the loop may have taken the answers a moment later.
            if self._news_from is not None:
                self._news_from = monotonic() + NEWS_S
            for data, outcome in done:
                self.proposals.applied(data, outcome)
        if self.barriers:
            self.barriers.applied(self._machine.applied)

    def _announce(self) -> None:
        """Send new entries in this round; news of a commit once the askers here know, unless others wait for them."""
        committed, last = self._library.committed, self._journal.last.index
        if self._announced == (last, committed):
            return
        first, newest = self._foreign
        awaited = first <= committed and self._announced[1] < newest
        if last == self._announced[0] and not awaited:
            if self._news_from is None:
                self._news_from = 0.0
                return
            if monotonic() < self._news_from:
                return
        self._news_from = None
        self._announced = (last, committed)
        self._library.send_now()

    def _rest(self) -> float:
        library, last = self._library, self._journal.last.index
        if library.applied < library.committed:
            return 0.0
        if not library.leads:
            return self._timing.tick_s
        if library.committed < last and not library.others():
            return 0.0
        until = self._next_batch_at() if self._held else float("inf")
        if self._announced != (last, library.committed):
            until = min(until, self._news_from or 0.0)
        return max(0.0, min(self._timing.tick_s, until - monotonic()))

    def told(self) -> bool:
        """Note that the askers here know what is committed (any thread); return whether it is others' turn now."""
        if not self._news_from:
            return False
        self._news_from = 0.0
        return True

    def close(self) -> None:
        """Sync and close the files."""
        self._background.close()
        self._courier.close()
        self._journal.note_commit()
        self._journal.close()

    def abandon(self) -> None:
        """Close the files as a kill would leave them."""
        self._background.close()
        self._courier.close()
        self._journal.abandon()
        self._machine.reset()

    def retire(self) -> None:
        """Tell everybody that this log goes on no more."""
        self.shown = replace(self.shown, leader=None, majority=False)
        self.proposals.close()
        self.barriers.close()

    # Voters. Each returns index and term of the entry that makes the change, None if there is nothing to change.

    def add_voter(self, server: ServerId) -> tuple[int, int] | None:
        """Begin to count a server; it must be reachable, because it counts at once."""
        if server in self._journal.voters(upto=self._library.committed):
            return None
        if server not in self._guard.connected:
            raise Unavailable(f"server {server} is not connected to the leader and cannot become a voter now")
        return self._change_voters(log.add_voter(server))

    def remove_voter(self, server: ServerId) -> tuple[int, int] | None:
        """Begin to count a server no longer."""
        if server not in self._journal.voters() and not self._journal.unsettled_change():
            return None
        if server == self.server:
            raise Unavailable("the leader cannot remove itself: let another voter lead first")
        return self._change_voters(log.remove_voter(server))

    def adopt_epoch(self, epoch: int) -> None:
        """Belong to this epoch from now on; only a server without a log may be told so by others."""
        if self._journal.fresh:
            self._journal.adopt_epoch(epoch)
            self._show()

    def hand_over(self, server: ServerId) -> bool:
        """Ask another voter to lead; False if it is not up to date yet."""
        if not self._library.leads:
            raise Unavailable("this server does not lead")
        return self._library.ask_to_lead(server)

    def feed(self, servers: frozenset[ServerId]) -> None:
        """Send the log also to these servers while this one leads."""
        if self._library.leads:
            self._library.feed(servers)

    def _change_voters(self, command: bytes) -> tuple[int, int]:
        if not self._library.settled:
            raise Unavailable("this server does not lead, or only since a moment: try again")
        if self._journal.unsettled_change():
            raise Unavailable("another change of the voters is not committed yet: try again")
        index = self._append(command)
        self._library.set_voters(self._journal.voters())
        return index, self._library.term

    # Proposals.

    def _propose(self) -> None:
        now = monotonic()
        leader = self.server if self._library.leads else self._guard.election.leader()
        if leader is not None:
            self._leader_seen = now
        # Said once for all: who asks here waits no longer than who asks elsewhere.
        self._held = self._library.leads and bool(self._asked or self.proposals) and now < self._next_batch_at()
        if self._asked and not self._held:
            self._take_on()
        if not self.proposals:
            return
        if leader is None:
            if now - self._leader_seen > PATIENCE_S:
                self.proposals.leaderless(now)
            return
        if self._held:
            return
        here = leader == self.server
        for proposal, attempt in self.proposals.due(leader, self._library.term, now, here=here):
            if here:
                self._append(log.ENVELOPE + proposal.data)
            elif not self._send(leader, Propose(attempt, proposal.data)):
                self.proposals.not_taken(attempt, now)

    def _next_batch_at(self) -> float:
        return self._batches.next_at(committed=self._library.committed >= self._journal.last.index)

    def _take_on(self) -> None:
        """Put into the log what others asked for."""
        asked, self._asked = self._asked, []
        for server, proposal in asked:
            if self._library.leads:
                index = self._append(log.ENVELOPE + proposal.data)
                first, newest = self._foreign
                self._foreign = (first if newest > self._announced[1] else index, index)
            else:
                self._send(server, NotTaken(proposal.attempt))

    def _is_command(self, server: ServerId, data: bytes) -> bool:
        if not self._library.leads or len(data) > envelope.MAX_BYTES:
            return False
        try:
            return envelope.decode(data).type in self._appliers
        except InvariantBroken as error:
            cause = error.message
            self._complaints.warn("a proposal that is no command was refused", server, cause, now=monotonic())
            return False

    def _append(self, command: bytes) -> int:
        index = self._journal.last.index + 1
        self._batches.appended(monotonic())
        self._journal.add(Entry(command, index, self._library.term))
        return index

    # Reads.

    def _read(self) -> None:
        library, questions = self._library, self._questions
        if self.barriers:
            leader = self.server if library.leads else self._guard.election.leader()
            attempt = None if leader is None else self.barriers.due(leader, library.term, monotonic())
            if leader is not None and attempt is not None:
                self._ask(leader, attempt)
        if not questions:
            return
        if not library.leads:
            questions.clear()
            return
        # What the leaders before had committed is known only once an entry of this term is.
        if library.settled and questions.fresh():
            questions.note(library.term, library.committed, self._guard.begin_round())
        for answer in questions.answered(library.term, self._guard.echoed_round()):
            if answer.server == self.server:
                self.barriers.told(answer.attempt, answer.index)
            else:
                self._send(answer.server, IndexIs(answer.attempt, answer.index))

    def _ask(self, leader: ServerId, attempt: int) -> None:
        if leader == self.server:
            self._questions.ask(leader, attempt)
        else:
            self._send(leader, AskIndex(attempt))

    # Snapshots.

    def _install(self, arrived: Snapshot) -> None:
        here = self._journal.at(arrived.last.index)
        if arrived.last.index <= self._library.committed or (here is not None and here.term == arrived.last.term):
            return  # the log went on by itself meanwhile
        self._machine.reset()
        self._courier.place(arrived)
        snapshot.install(self._compaction.path, self._store)
        self._machine.reset()
        self._journal.restart(arrived.previous, arrived.last, arrived.voters)
        self._library.jump(arrived.last.index)
        self._library.set_voters(self._journal.voters())
        self._done.clear()
        logger.info("the state was taken over from a snapshot", extra={"index": arrived.last.index})

    # Inside.

    def _send(self, server: ServerId, message: Message) -> bool:
        if not isinstance(message, Append):
            return self._link.send(server, messages.encode(message))
        # The same entries go to many: in one term the log only grows, so these numbers say what is in the frame.
        key = (message.term, message.commit, message.previous, len(message.entries), message.round)
        if self._spelled[0] != key:
            self._spelled = (key, messages.encode(message))
        return self._link.send(server, self._spelled[1])

    def _show(self) -> None:
        library, leader = self._library, self._guard.election.leader()
        self.end = (self._journal.last.term, self._journal.last.index)
        majority = leader is not None and (leader != self.server or library.heard_from_majority())
        epoch, fresh = self._journal.epoch, self._journal.fresh
        indexes, doubt = (self._machine.applied, library.committed), self._guard.trust.doubt
        seen = (leader, library.term, *indexes, majority, self._journal.voters(), epoch, fresh, doubt)
        if seen != self._seen:
            self._seen = seen
            voters = tuple(sorted(self._journal.voters()))
            self.shown = Shown(leader, library.term, *indexes, majority, voters, epoch, fresh, doubt)
        if not library.leads:
            self.progress = {}
        elif (now := monotonic()) - self._progress_at >= self._timing.tick_s:
            self._progress_at = now
            self.progress = {self.server: self._journal.synced, **library.progress()}
