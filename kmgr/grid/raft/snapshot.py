"""A snapshot of the state: a copy of the SQLite file that knows which log entry it ends with and who voted then.

It is written beside, synced and renamed, so that a crash leaves the older one.
The state database itself is disposable: `install` makes it from a snapshot.
"""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kmgr.errors import ConfigError, InvariantBroken
from kmgr.grid.raft.logfile import sync_file, sync_folder
from kmgr.grid.raft.records import Entry
from kmgr.grid.store import Store
from kmgr.ids import ServerId

_TABLE = "raft_snapshot"
_STEP_PAGES = 250


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot file says about itself: its last two entries, and the voters as of the last one."""

    previous: Entry
    last: Entry
    voters: frozenset[ServerId]


def pin(store: Store) -> sqlite3.Connection:
    """Return a connection that goes on seeing the state of this moment; `copy` closes it."""
    pinned = _connect(store.path)
    pinned.execute("begin")
    pinned.execute("select count(*) from meta").fetchone()
    return pinned


def own_checkpoints(store: Store, most_bytes: int) -> None:
    """Keep SQLite from emptying its write-ahead file in the middle of a commit: whoever calls this does it."""
    store.writer.execute("pragma wal_autocheckpoint=0")
    store.writer.execute(f"pragma journal_size_limit={most_bytes}")


def wal_bytes(store: Store) -> int:
    """Return how large the write-ahead file is."""
    wal = store.path.with_name(store.path.name + "-wal")
    return wal.stat().st_size if wal.exists() else 0


def checkpoint(store: Store) -> None:
    """Move what the write-ahead file holds to its place, as far as nobody reads it; any thread."""
    with closing(_connect(store.path)) as connection:
        connection.execute("pragma wal_checkpoint(passive)").fetchone()


def copy(pinned: sqlite3.Connection, path: Path, snapshot: Snapshot, go_on: Callable[[], None]) -> None:
    """Copy a pinned state, which ends with `snapshot.last`, beside `path`; `OSError` if there is no room.

    Any thread; `go_on` is called between its steps.
    """
    fresh = _fresh(path)
    try:
        with closing(pinned):
            fresh.unlink(missing_ok=True)
            with closing(_connect(fresh)) as target:
                # Synced here, a little at a time: the log's own syncs would have to wait for all of it together.
                target.execute("pragma synchronous=off")
                pinned.backup(target, pages=_STEP_PAGES, progress=lambda *_: _step(fresh, go_on))
                target.execute("pragma journal_mode=delete")
                _describe(target, snapshot)
    except sqlite3.OperationalError as error:
        raise OSError(f"the state could not be copied to {fresh}: {error}") from error
    sync_file(fresh)


def place(path: Path) -> None:
    """Put what `copy` made in place of the older snapshot; for good only when the folder is synced."""
    _fresh(path).rename(path)


def write(path: Path, store: Store, snapshot: Snapshot) -> None:
    """Copy the state, which has just been applied up to `snapshot.last`, to `path`; `OSError` if there is no room."""
    copy(pin(store), path, snapshot, lambda: None)
    place(path)
    sync_folder(path.parent)


def read(path: Path) -> Snapshot:
    """Check a snapshot file and return what it says about itself; raise `ConfigError` if it is damaged."""
    try:
        with closing(_connect(path)) as db:
            verdict = db.execute("pragma quick_check").fetchone()[0]
            if verdict != "ok":
                raise ValueError(verdict)
            values = dict(db.execute(f"select k, v from {_TABLE} order by k").fetchall())  # noqa: S608 - a constant
        voters = frozenset(ServerId(server) for server in json.loads(values["voters"]))
        return Snapshot(_read(values["previous"]), _read(values["last"]), voters)
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the snapshot {path} is damaged ({error}): remove this server from the grid at another one, empty its "
            "data folder, and let it join again"
        ) from error


def install(path: Path, store: Store) -> None:
    """Replace the state by that of a snapshot; readers see the old or the new one, never a mixture."""
    writer = store.writer.conn
    tables = _schema(writer)
    with closing(_connect(path)) as source:
        source.backup(writer)
    writer.execute(f"drop table if exists {_TABLE}")
    # A snapshot made by an older kmgr lacks tables that this one has.
    there = _schema(writer)
    for name, sql in tables.items():
        if name not in there and name != _TABLE:
            writer.execute(sql)


def _describe(copy: sqlite3.Connection, snapshot: Snapshot) -> None:
    applied = copy.execute("select v from meta where k = 'applied'").fetchone()
    if applied is None or applied[0] != snapshot.last.index:
        raise InvariantBroken(f"a snapshot of entry {snapshot.last.index} holds the state of {applied}")
    values = {
        "previous": _spell(snapshot.previous),
        "last": _spell(snapshot.last),
        "voters": json.dumps(sorted(snapshot.voters)),
    }
    copy.execute("begin")
    copy.execute(f"drop table if exists {_TABLE}")
    copy.execute(f"create table {_TABLE} (k text primary key, v text not null)")
    copy.executemany(f"insert into {_TABLE} (k, v) values (?, ?)", values.items())  # noqa: S608 - a constant
    copy.execute("commit")


def _schema(connection: sqlite3.Connection) -> dict[str, str]:
    sql = "select name, sql from sqlite_master where sql is not null order by type desc, name"
    return {name: text for name, text in connection.execute(sql) if not name.startswith("sqlite_")}


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _step(fresh: Path, go_on: Callable[[], None]) -> None:
    go_on()
    sync_file(fresh)


def _fresh(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _spell(entry: Entry) -> str:
    return json.dumps([entry.command.hex(), entry.index, entry.term])


def _read(text: str) -> Entry:
    command, index, term = json.loads(text)
    return Entry(bytes.fromhex(command), int(index), int(term))
