"""The state that the lab's clients change: keys with values, every change is kept, so that a second one shows."""

import hashlib
from collections.abc import Iterator
from typing import Any

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.rows import one, rows

SCHEMA = """
create table if not exists notes (at integer primary key, id text not null, key text not null);
create index if not exists notes_by_key on notes (key, at);
"""


def put(db: Database, command: Command) -> Outcome:
    """Give a key the command's id as value. body: key"""
    db.execute("insert into notes (id, key) values (?, ?)", [command.id, command.body["key"]])
    return Applied()


def swap(db: Database, command: Command) -> Outcome:
    """Do so if the key has the expected value. body: key, expected"""
    found, _ = value(db, command.body["key"])
    if found != command.body["expected"]:
        return Rejected("conflict", f"the value is {found}")
    return put(db, command)


def value(db: Database, key: str) -> tuple[str | None, int]:
    """Return a key's value, and which change made it."""
    row = one(db, "select id, at from notes where key = ? order by at desc limit 1", [key])
    return (None, 0) if row is None else (row["id"], row["at"])


def held(db: Database) -> list[tuple[str, str]]:
    """Return id and key of every change, in order."""
    return [(row["id"], row["key"]) for row in rows(db, "select id, key from notes order by at")]


def digest(db: Database) -> str:
    """Return a hash of every table's content."""
    found = hashlib.sha256()
    for line in _lines(db):
        found.update(repr(line).encode())
    return found.hexdigest()


def _lines(db: Database) -> Iterator[Any]:
    named = rows(db, "select name from sqlite_master where type = 'table' order by name")
    for name in [row["name"] for row in named]:
        if not name.startswith(("sqlite_", "raft_")):
            yield name
            yield from sorted(db.execute(f"select * from [{name}]").fetchall(), key=repr)  # noqa: S608 - own tables


APPLIERS: dict[str, Applier] = {"note.put": put, "note.swap": swap}
