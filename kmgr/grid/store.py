"""The SQLite file that holds the grid's truth on this server.

One connection writes (owned by the thread that applies the log), any number
read. A read is one transaction on a `query_only` connection, so a page sees
one state and knows its index. The file is disposable: the log and the last
snapshot rebuild it, therefore `synchronous=NORMAL` is enough.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database

from kmgr.errors import Unavailable
from kmgr.grid.rows import scalar

_READERS = 8

# Functions that answer differently on each server or at each call; SQLite refuses them while the log is applied.
_FORBIDDEN = frozenset(
    {
        "random",
        "randomblob",
        "datetime",
        "date",
        "time",
        "julianday",
        "unixepoch",
        "strftime",
        "timediff",
        "last_insert_rowid",
        "current_timestamp",
        "current_date",
        "current_time",
    }
)


# SQLite's primary result codes for what is wrong with the file or the disk, not with the statement.
_OF_THE_DISK = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
}
# Of these the ones that say that the file holds what no SQLite wrote.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_of_the_disk(error: sqlite3.Error) -> bool:
    """Tell whether a database error comes from the file or its disk."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_THE_DISK


def keep_little(most_bytes: int) -> None:
    """Have SQLite keep about this much in memory at most, all connections of this process together."""
    connection = sqlite3.connect(":memory:")
    connection.execute(f"pragma soft_heap_limit={most_bytes}")
    connection.close()


class Store:
    """The state database of one server: `writer` for the applying thread, `view()` for everybody else."""

    def __init__(self, path: Path, schemas: Iterable[str]) -> None:
        self.path = path
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=normal")
        connection.execute("pragma foreign_keys=off")
        for schema in schemas:
            connection.executescript(schema)
        self.writer = Database(connection)
        self._readers: list[Database] = []
        # Told once, by any thread, when a reader finds the file damaged.
        self.on_damage: Callable[[str], None] = lambda _: None
        self._closed = False
        self._lock = threading.Lock()

    def guard(self) -> None:
        """From here on the writer refuses SQL that could differ between servers."""
        self.writer.conn.set_authorizer(_deterministic_only)

    def unguard(self) -> None:
        """Let the writer do maintenance (backup, pragma) again."""
        self.writer.conn.set_authorizer(None)

    @contextmanager
    def view(self) -> Iterator[Database]:
        """Lend a read-only connection inside one transaction: one consistent state for the whole block.

        Whoever meets a damaged page gets `Unavailable`.
        """
        try:
            reader = self._borrow()
            try:
                reader.conn.execute("begin")
                try:
                    yield reader
                finally:
                    reader.conn.rollback()
            finally:
                self._give_back(reader)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                raise
            raise self._damaged(error) from error

    def applied(self) -> int:
        """Return the index of the last log entry that this file contains."""
        return int(scalar(self.writer, "select v from meta where k = 'applied'", default=0))

    def close(self) -> None:
        """Close all connections, those lent out when they come back; safe to call twice."""
        with self._lock:
            self._closed = True
            readers, self._readers = self._readers, []
        for database in (*readers, self.writer):
            database.conn.close()

    def _damaged(self, error: sqlite3.Error) -> Unavailable:
        words = f"the state {self.path} is damaged ({error}) and must be made anew from the log"
        with self._lock:
            tell, self.on_damage = self.on_damage, lambda _: None
        tell(words)
        return Unavailable(words)

    def _borrow(self) -> Database:
        with self._lock:
            if self._readers:
                return self._readers.pop()
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5)
        connection.execute("pragma query_only=on")
        return Database(connection)

    def _give_back(self, reader: Database) -> None:
        with self._lock:
            if len(self._readers) < _READERS and not self._closed:
                self._readers.append(reader)
                return
        reader.conn.close()


def _deterministic_only(
    action: int, _one: str | None, two: str | None, _database: str | None, _trigger: str | None
) -> int:
    if action == sqlite3.SQLITE_FUNCTION and (two or "").lower() in _FORBIDDEN:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK
