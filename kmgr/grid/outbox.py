"""What this server did by itself and the grid does not know yet: one small SQLite file, synced at each change.

It is the only thing an island must not lose: whatever else it shows is made
again from the grid's state and these facts. `since` is set while this server is
an island, so that a restart goes on as one. Used by one thread at a time.
"""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

from kmgr.errors import ConfigError
from kmgr.grid.settle import Fact, read, spelled

_SCHEMA = """
create table if not exists meta (k text primary key, v text not null);
create table if not exists facts (n integer primary key autoincrement, about text not null, data text not null);
create index if not exists facts_about on facts (about, n);
"""


class Outbox:
    """The facts of one server, numbered for good; `id` names the file, so that a new one never repeats a number."""

    def __init__(self, path: Path, *, new_id: str) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise _unwritable(path, error) from error
        try:
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            self._db.executescript(_SCHEMA)
            self._db.execute("insert or ignore into meta (k, v) values ('id', ?)", [new_id])
            self.id = str(self._meta("id"))
        except sqlite3.OperationalError as error:
            self._db.close()
            raise _unwritable(path, error) from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ConfigError(
                f"{path} is damaged ({error}): it holds what this server did while it was cut off. Put it aside: "
                "log-ins and desktops of that time are then forgotten, everything else is in the log"
            ) from error

    @property
    def since(self) -> int | None:
        """Return since when (ms) this server is an island, None if it is none."""
        found = self._meta("since")
        return None if found is None else int(found)

    @property
    def last(self) -> int:
        """Return the number of the newest fact that there ever was."""
        found = self._db.execute("select seq from sqlite_sequence where name = 'facts'").fetchone()
        return int(found[0]) if found else 0

    @property
    def total(self) -> int:
        """Return how many facts there were since this server became an island, settled ones included."""
        return self.last - int(self._meta("before") or 0)

    def begin(self, at_ms: int) -> None:
        """Note that this server is an island from now on; if it is one already, since then."""
        if self.since is None:
            self._db.execute("begin immediate")
            self._put("before", str(self.last))
            self._put("since", str(at_ms))
            self._db.execute("commit")

    def end(self) -> None:
        """Note that this server is no island any more; facts that are left are dropped."""
        self._db.execute("begin immediate")
        self._db.execute("delete from facts")
        self._db.execute("delete from meta where k = 'since'")
        self._db.execute("commit")

    def add(self, fact: Fact) -> None:
        """Add a fact; it is on the disk when this returns, `sqlite3.Error` if it cannot be."""
        about = fact.record.about if fact.record else ""
        data = json.dumps(spelled(fact), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self._db.execute("insert into facts (about, data) values (?, ?)", [about, data])

    def facts(self, *, most: int = -1, most_bytes: int | None = None) -> tuple[Fact, ...]:
        """Return the oldest facts; at least one if there is any, no more than fit.

        Of several about one thing only the last has its record: the others are history.
        """
        found: list[Fact] = []
        left = most_bytes
        rows = self._db.execute(
            "select n, data, about <> '' and exists (select 1 from facts l where l.about = f.about and l.n > f.n)"
            " from facts f order by n limit ?",
            [most],
        )
        for n, data, superseded in rows.fetchall():
            if left is not None:
                left -= len(data.encode())
                if left < 0 and found:
                    break
            fact = read({**json.loads(data), "n": n})
            found.append(replace(fact, record=None) if superseded else fact)
        return tuple(found)

    def drop(self, through: int) -> None:
        """Forget the facts up to this number: the grid knows them."""
        self._db.execute("delete from facts where n <= ?", [through])

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._db.close()

    def _meta(self, key: str) -> str | None:
        found = self._db.execute("select v from meta where k = ?", [key]).fetchone()
        return str(found[0]) if found else None

    def _put(self, key: str, value: str) -> None:
        self._db.execute(
            "insert into meta (k, v) values (?, ?) on conflict (k) do update set v = excluded.v", [key, value]
        )


def _unwritable(path: Path, error: sqlite3.Error) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written ({error}), so this server could not go on if it were cut off: is its disk full or "
        "read-only?"
    )
