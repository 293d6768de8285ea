"""Going on without a majority: what lies in a server's folder, and how it becomes the only voter of a new epoch.

Works on files only, while no daemon runs. All that changes does so by one
rename of the journal: the others' votes end, the term leaps, the epoch rises, and
the command that removes the others from the grid follows the last entry that was
here. Killed before the rename, the server is what it was; after it, it is recovered.

The whole log is kept, also behind the last entry known to be committed: this
server cannot know that an entry was *not* committed by others, and an entry that
was must not be lost (docs/decisions/0008).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kmgr.entropy import new_id
from kmgr.errors import Refused
from kmgr.grid.envelope import Command, encode
from kmgr.grid.identity import Identity
from kmgr.grid.model import Server
from kmgr.grid.queries import servers
from kmgr.grid.raft import snapshot
from kmgr.grid.raft.journal import NO_OP, Journal
from kmgr.grid.raft.logfile import LogFile
from kmgr.grid.raft.opening import JOURNAL, SNAPSHOT, Opened, open_folder
from kmgr.grid.raft.records import Entry
from kmgr.grid.raft.snapshot import Snapshot
from kmgr.grid.store import Store
from kmgr.ids import CommandId, ServerId

# Far more elections than the others can have held among themselves meanwhile.
TERM_LEAP = 1_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """What one server's folder knows: its log, who votes, and the other servers as the state names them."""

    epoch: int
    last: int
    last_term: int
    committed: int
    voters: frozenset[ServerId]
    others: tuple[Server, ...]
    # Whom it had promised more than it has, if an older copy of the folder was put back.
    doubt: ServerId | None = None

    @property
    def end(self) -> tuple[int, int]:
        """(Term, index) of the last entry: of two servers the one with the greater has more."""
        return self.last_term, self.last

    def lacking(self, here: ServerId, answering: Iterable[ServerId]) -> int:
        """Return how many voters are missing for a majority, if those that answer and this server are there."""
        present = self.voters & {here, *answering}
        return max(0, len(self.voters) // 2 + 1 - len(present))


def examine(data_dir: Path, own: Identity, schemas: Iterable[str]) -> Finding:
    """Read a server's folder; raise `ConfigError` if it is damaged, `Refused` if there is no log to go on with."""
    store = Store(data_dir / "state.sqlite", schemas)
    try:
        opened = _opened(data_dir, store, own.server)
        journal = opened.journal
        journal.abandon()
        known = tuple(s for s in servers(store.writer) if s.id != own.server)
        return Finding(
            epoch=journal.epoch,
            last=journal.last.index,
            last_term=journal.last.term,
            committed=max(journal.commit, store.applied()),
            voters=journal.voters(),
            others=known,
            doubt=journal.doubt,
        )
    finally:
        store.close()


def recover(data_dir: Path, own: Identity, schemas: Iterable[str], *, now_ms: int) -> int:
    """Make this server the only voter of a new epoch and return that epoch."""
    store = Store(data_dir / "state.sqlite", schemas)
    try:
        journal = _opened(data_dir, store, own.server).journal
    finally:
        store.close()
    try:
        epoch = journal.epoch + 1
        command = _recovered(own, epoch, "recovered", now_ms)
        term = max(journal.term, journal.last.term) + TERM_LEAP
        journal.take_over(own.server, term=term, epoch=epoch, commands=[encode(command)])
        return epoch
    finally:
        journal.abandon()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a restored state comes from: up to which entry of which term and epoch it goes."""

    applied: int
    term: int
    epoch: int


def begin_from(data_dir: Path, own: Identity, store: Store, origin: Origin, newcomer: Command) -> None:
    """Begin a log behind a restored state, with `own` as its only voter in a new epoch; the folder is unused."""
    folder = data_dir / "raft"
    folder.mkdir(parents=True, exist_ok=True)
    term, alone = origin.term, frozenset({own.server})
    previous, last = Entry(NO_OP, origin.applied - 1, term), Entry(NO_OP, origin.applied, term)
    snapshot.copy(snapshot.pin(store), folder / SNAPSHOT, Snapshot(previous, last, alone), lambda: None)
    snapshot.place(folder / SNAPSHOT)
    journal = Journal.create(LogFile(folder / JOURNAL), None)
    try:
        journal.restart(previous, last, alone)
        commands = [encode(_recovered(own, origin.epoch + 1, "restored", newcomer.at)), encode(newcomer)]
        journal.take_over(own.server, term=term + TERM_LEAP, epoch=origin.epoch + 1, commands=commands)
    finally:
        journal.abandon()


def _opened(data_dir: Path, store: Store, server: ServerId) -> Opened:
    folder = data_dir / "raft"
    if not (folder / JOURNAL).exists():
        raise Refused(
            f"there is no log in {folder}: this server never took part in a grid, or lost its disk, and nothing can "
            "be recovered from it"
        )
    opened = open_folder(folder, store, server, founder=False)
    if opened.journal.fresh:
        opened.journal.abandon()
        raise Refused("this server had not received anything of the grid's log yet: recover on another one")
    return opened


def _recovered(own: Identity, epoch: int, how: str, now_ms: int) -> Command:
    body = {"epoch": epoch, "server": own.server, "name": own.name, "how": how}
    return Command("grid.recover", CommandId(new_id("cmd")), now_ms, own.server, body)
