"""The durable half of a server's promise: log entries, term, vote and voters, in one append-only file.

Facts of pysyncobj that shape this file:

* Its own journal is never synced, is rewritten in place at compaction, and has no
  checksums; therefore this one replaces it (`library.py` hands it over).
* Its log begins with a no-op at index 1, term 0, the same on every server.
* Who votes is nowhere but in the log here: also the founder's own vote is an
  entry, so that newcomers learn of it like of every other.
* The first byte of a command says what it is: 0 an envelope, 1 a no-op, 2 a
  change of voters. Ours after a 2 is JSON; the library never sees into it.

Term and vote are synced at once; entries when `sync()` is called, which is before
every message that speaks of them. Runs on the raft thread.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from kmgr.errors import ConfigError, InvariantBroken
from kmgr.grid.raft import records
from kmgr.grid.raft.logfile import LogFile
from kmgr.grid.raft.records import Entry, Kind, Word
from kmgr.ids import ServerId

ENVELOPE, NO_OP, VOTERS = b"\0", b"\1", b"\2"
FIRST = Entry(NO_OP, 1, 0)
_BUFFER = 1 << 20
FORKED = (
    "this server's data is older than what it had promised {}, and it has agreed on something else by itself since: "
    "was a backup or a snapshot put back? Remove this server from the grid at another one, run kmgr reset here, and "
    "let it join again"
)


def add_voter(server: ServerId) -> bytes:
    """Spell the entry that lets a server vote."""
    return VOTERS + json.dumps(["add", server]).encode()


def remove_voter(server: ServerId) -> bytes:
    """Spell the entry that lets a server vote no longer."""
    return VOTERS + json.dumps(["remove", server]).encode()


class Journal:
    """The log as lists in memory and records on disk. Create a new one or open what is there."""

    def __init__(self, file: LogFile) -> None:
        self._file = file
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._dirty = False
        self._noted_commit = 1
        self._base: frozenset[ServerId] = frozenset()
        self._changes: list[tuple[int, str, ServerId]] = []
        self._voters: frozenset[ServerId] | None = None
        self.entries: list[Entry] = []
        # Up to which entry all is on the disk.
        self.synced = 0
        self.term = 0
        self.vote: ServerId | None = None
        self.commit = 1
        # Raised when the grid is recovered without its majority: logs of different epochs never mix.
        self.epoch = 0
        # What every voter promised this server at most: a help for the others, written when something else is.
        self.remembered: dict[ServerId, Word] = {}
        self._remembers = False
        # Whom this server promised more than it has, None if nobody says so: it counts for nothing meanwhile.
        self.doubt: ServerId | None = None
        # (Term, index) of the last entry of whoever had most when this server met it: it elects nobody with less.
        self.least = (0, 0)
        # It went on by itself meanwhile, against what the others agreed on.
        self.forked = False

    @classmethod
    def create(cls, file: LogFile, founder: ServerId | None) -> "Journal":
        """Begin a log: a founder's second entry makes it the only voter, any other server waits for a leader."""
        journal = cls(file)
        journal._keep(FIRST)
        if founder is not None:
            journal._keep(Entry(add_voter(founder), FIRST.index + 1, FIRST.term))
        journal._rewrite()
        return journal

    @classmethod
    def open(cls, file: LogFile) -> "Journal":
        """Read a log, dropping a torn tail; raise `ConfigError` if what had been promised is damaged."""
        journal, raw = cls(file), file.read()
        try:
            found = records.scan(raw)
        except ValueError as error:
            raise _damaged(file.path, str(error)) from error
        if found.damaged:
            raise _damaged(file.path, f"a record at {found.end} is broken although it had been written safely")
        for kind, body in found.records:
            journal._replay(kind, body)
        # Of many notes only the last one is read: there may be as many as batches.
        for body in [body for kind, body in found.records if kind is Kind.REMEMBERED][-1:]:
            journal.remembered = {ServerId(server): Word(*word) for server, word in json.loads(body).items()}
        if not journal.entries:
            raise _damaged(file.path, "it holds no entry")
        if found.end < file.size:
            file.cut(found.end)
        journal._make_sure(found, raw)
        journal.synced = journal.last.index
        return journal

    @property
    def size(self) -> int:
        """How many bytes the file has."""
        return self._file.size

    @property
    def first(self) -> Entry:
        """The oldest entry kept."""
        return self.entries[0]

    @property
    def last(self) -> Entry:
        """The newest entry."""
        return self.entries[-1]

    @property
    def fresh(self) -> bool:
        """Whether nothing of any grid's log is here yet."""
        return self.last.index == FIRST.index

    def at(self, index: int) -> Entry | None:
        """Return the entry with this index, None if it is not here (any more or yet)."""
        place = index - self.first.index
        return self.entries[place] if 0 <= place < len(self.entries) else None

    def voters(self, *, upto: int | None = None) -> frozenset[ServerId]:
        """Return who votes according to the log: a change counts as soon as it is here, committed or not."""
        if upto is None and self._voters is not None:
            return self._voters
        found = set(self._base)
        for index, verb, server in self._changes:
            if upto is None or index <= upto:
                (found.add if verb == "add" else found.discard)(server)
        voters = frozenset(found)
        if upto is None:
            self._voters = voters
        return voters

    def unsettled_change(self) -> bool:
        """Whether a change of voters is not committed yet."""
        return bool(self._changes) and self._changes[-1][0] > self.commit

    def add(self, entry: Entry) -> None:
        """Append an entry."""
        if self.entries and entry.index != self.last.index + 1:
            raise InvariantBroken(f"entry {entry.index} cannot follow {self.last.index} in the log")
        self._keep(entry)
        self._write(records.pack_entry(entry))

    def cut(self, index: int) -> None:
        """Throw away this entry and all behind it."""
        if index <= self.commit:
            raise InvariantBroken(f"entry {index} is committed and cannot be thrown away")
        self._drop(index)
        self.synced = min(self.synced, index - 1)
        self._write(records.pack_number(Kind.CUT, index))

    def forget_before(self, index: int) -> None:
        """Throw away the entries before this one; a snapshot holds what they did."""
        place = index - self.first.index
        if place <= 0:
            return
        self._base = self.voters(upto=index - 1)
        self.entries = self.entries[place:]
        self._changes = [change for change in self._changes if change[0] >= index]
        self._voters = None
        self._rewrite()

    def restart(self, previous: Entry, last: Entry, voters: Iterable[ServerId]) -> None:
        """Begin anew behind a snapshot that contains everything up to `last`."""
        self._base, self._changes, self.entries = frozenset(voters), [], []
        self._voters = None
        self._keep(previous)
        self._keep(last)
        self.commit = last.index
        self._rewrite()

    def take_over(self, server: ServerId, *, term: int, epoch: int, commands: Iterable[bytes]) -> None:
        """Begin a new epoch in which this server votes alone: entries stay, envelopes follow; all or nothing."""
        changes = [remove_voter(voter) for voter in sorted(self.voters() - {server})]
        if server not in self.voters():
            changes.append(add_voter(server))
        for command in (*changes, *(ENVELOPE + data for data in commands)):
            self._keep(Entry(command, self.last.index + 1, term))
        self.term, self.vote, self.epoch = term, server, epoch
        # What was promised in the former epoch binds nobody any more.
        self.remembered, self.doubt, self.forked, self.least = {}, None, False, (0, 0)
        self._rewrite()

    def adopt_epoch(self, epoch: int) -> None:
        """Belong to this epoch from now on; durable at return."""
        if epoch > self.epoch:
            self.epoch = epoch
            self._write(records.pack_number(Kind.EPOCH, epoch))
            self.sync()

    def decide(self, term: int, vote: ServerId | None) -> None:
        """Note the term and whom this server voted for in it; durable at return."""
        if term < self.term or (term == self.term and self.vote not in {None, vote}):
            raise InvariantBroken(f"a vote for {vote} in term {term} after {self.vote} in {self.term}")
        if (term, vote) == (self.term, self.vote):
            return
        self.term, self.vote = term, vote
        self._write(records.pack(Kind.VOTE, json.dumps([term, vote]).encode()))
        self.sync()

    def remember(self, server: ServerId, word: Word) -> None:
        """Note what a voter promised."""
        known = self.remembered.get(server)
        joined = word.joined(known)
        if joined != known:
            self.remembered[server] = joined
            self._remembers = True

    def set_doubt(self, server: ServerId | None, *, forked: bool = False) -> None:
        """Note that this server has less than it promised, or (None) that it was brought up to date; durable."""
        if (server, forked) != (self.doubt, self.forked):
            self.doubt, self.forked = server, forked
            self._write(self._doubt())
            self.sync()

    def set_least(self, least: tuple[int, int]) -> None:
        """Note what others have more than this server, or (zeros) that it is waited for no longer; durable."""
        if least != self.least:
            self.least = least
            self._write(self._least())
            self.sync()

    def note_commit(self) -> None:
        """Note how far the log is committed and what others promised; hints for the next start, not promises."""
        if self._remembers:
            self._remembers = False
            self._write(self._memory())
        if self.commit != self._noted_commit:
            self._noted_commit = self.commit
            self._write(records.pack_number(Kind.COMMIT, self.commit))

    def sync(self) -> None:
        """Return when everything so far is on the disk; cheap if it already is."""
        if self._dirty:
            if self._remembers:
                self._remembers = False
                self._write(self._memory())
            self._flush()
            self._file.sync()
            self._dirty = False
            self.synced = self.last.index

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()

    def abandon(self) -> None:
        """Close without writing what is still in memory, as a kill would."""
        self._file.close()

    def _keep(self, entry: Entry) -> None:
        self.entries.append(entry)
        if entry.command[:1] == VOTERS:
            verb, server = json.loads(entry.command[1:])
            self._changes.append((entry.index, verb, ServerId(server)))
            self._voters = None

    def _drop(self, index: int) -> None:
        del self.entries[max(0, index - self.first.index) :]
        self._changes = [change for change in self._changes if change[0] < index]
        self._voters = None

    def _replay(self, kind: Kind, body: bytes) -> None:
        match kind:
            case Kind.ENTRY:
                self._keep(records.entry(body))
            case Kind.CUT:
                self._drop(records.number(body))
            case Kind.VOTE:
                self.term, self.vote = json.loads(body)
            case Kind.COMMIT:
                self.commit = self._noted_commit = records.number(body)
            case Kind.VOTERS:
                self._base, self._voters = frozenset(json.loads(body)), None
            case Kind.EPOCH:
                self.epoch = records.number(body)
            case Kind.DOUBT:
                self.doubt, self.forked = json.loads(body)
            case Kind.LEAST:
                term, index = json.loads(body)
                self.least = (term, index)
            case Kind.SYNCED | Kind.REMEMBERED:
                pass

    def _make_sure(self, found: records.Scan, raw: bytes) -> None:
        """Put on the disk what the last process wrote: it may have survived it only in memory.

        If it ended because a sync had failed, Linux takes the pages for written although they are not, and a new sync
        alone would say yes.
        """
        self._file.write_again(found.sure, raw[found.sure : found.end])
        self._file.sync()

    def _doubt(self) -> bytes:
        return records.pack(Kind.DOUBT, json.dumps([self.doubt, self.forked]).encode())

    def _least(self) -> bytes:
        return records.pack(Kind.LEAST, json.dumps(self.least).encode())

    def _memory(self) -> bytes:
        # Of those who vote no longer nothing matters any more.
        kept = {server: self.remembered[server] for server in sorted(self.voters() & self.remembered.keys())}
        return records.pack(Kind.REMEMBERED, json.dumps(kept).encode())

    def _write(self, record: bytes) -> None:
        if not self._dirty:
            self._dirty = True
            self._write(records.pack_number(Kind.SYNCED, self._file.size))
        self._buffer.append(record)
        self._buffered += len(record)
        if self._buffered > _BUFFER:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._buffer)
        self._buffer, self._buffered = [], 0
        self._file.append(data)

    def _rewrite(self) -> None:
        self._buffer, self._buffered, self._dirty, self._remembers = [], 0, False, False
        self._noted_commit = self.commit
        self._file.replace(self._whole())
        self.synced = self.last.index

    def _whole(self) -> Iterator[bytes]:
        """Return what the file is to hold, piece by piece: a second copy of the log would not fit into a witness."""
        size = 0
        for part in self._parts():
            size += len(part)
            yield part
        # The file is synced before it gets its name: it is its own witness.
        yield records.pack_number(Kind.SYNCED, size)

    def _parts(self) -> Iterator[bytes]:
        yield records.MAGIC
        yield records.pack(Kind.VOTE, json.dumps([self.term, self.vote]).encode())
        yield records.pack_number(Kind.COMMIT, self.commit)
        yield records.pack_number(Kind.EPOCH, self.epoch)
        yield records.pack(Kind.VOTERS, json.dumps(sorted(self._base)).encode())
        yield self._doubt()
        yield self._least()
        yield self._memory()
        for entry in self.entries:
            yield records.pack_entry(entry)


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the log {path} is damaged: {why}. This server cannot be trusted with it any more: remove the server from "
        "the grid at another one, empty its data folder, and let it join again."
    )
