"""Opens a server's raft folder: journal, snapshot and state are made to agree before anything runs on them.

A kill between any two steps of a compaction or of an installed snapshot leaves
them apart in a known way; whatever else does not fit is damage, and a server
that lost what it promised must not go on under its old id.
"""

from dataclasses import dataclass
from pathlib import Path

from kmgr.errors import ConfigError
from kmgr.grid.raft import snapshot
from kmgr.grid.raft.journal import FORKED, Journal
from kmgr.grid.raft.logfile import LogFile
from kmgr.grid.raft.snapshot import Snapshot
from kmgr.grid.store import Store
from kmgr.ids import ServerId

JOURNAL, SNAPSHOT = "journal", "snapshot"
_REJOIN = "Remove this server from the grid at another one, empty its data folder, and let it join again."


@dataclass(frozen=True, slots=True)
class Opened:
    """What a start found: the journal, and the snapshot if there is one."""

    journal: Journal
    snapshot: Snapshot | None


def open_folder(folder: Path, store: Store, server: ServerId, *, founder: bool) -> Opened:
    """Open or begin a log; raise `ConfigError` if this server cannot go on with what lies there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{SNAPSHOT}.new").unlink(missing_ok=True)
    (folder / "incoming").unlink(missing_ok=True)
    path = folder / SNAPSHOT
    file = LogFile(folder / JOURNAL)
    if not file.path.exists():
        if path.exists() or store.applied():
            raise ConfigError(f"the log {file.path} is gone, but the state it made is still here. {_REJOIN}")
        return Opened(Journal.create(file, server if founder else None), None)
    journal = Journal.open(file)
    try:
        if journal.forked:
            raise ConfigError(FORKED.format(journal.doubt))
        found = snapshot.read(path) if path.exists() else None
        _agree(journal, found, path)
        if found is not None and store.applied() < found.last.index:
            snapshot.install(path, store)
        if store.applied() > journal.last.index:
            raise ConfigError(
                f"the state {store.path} contains log entry {store.applied()}, but the log ends at "
                f"{journal.last.index}: entries were lost. {_REJOIN}"
            )
    except BaseException:
        journal.abandon()
        raise
    return Opened(journal, found)


def _agree(journal: Journal, found: Snapshot | None, path: Path) -> None:
    if found is None:
        if journal.first.index > 1:
            raise ConfigError(f"the log begins at entry {journal.first.index}, but {path} is gone. {_REJOIN}")
        return
    if journal.first.index > found.last.index:
        raise ConfigError(
            f"the log begins at entry {journal.first.index}, but {path} ends at {found.last.index}. {_REJOIN}"
        )
    here = journal.at(found.last.index)
    if here is None or here.term != found.last.term:
        # Killed after a leader's snapshot was put in place and before the log was begun anew behind it.
        journal.restart(found.previous, found.last, found.voters)
