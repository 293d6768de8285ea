"""A state that goes bad under its readers: told once, in words, and made anew at the next start."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.daemon.supervise import Loops
from kmgr.errors import Unavailable
from kmgr.grid.mending import open_state
from kmgr.grid.raft.worker import DiskTrouble
from kmgr.grid.store import Store

THINGS = "create table if not exists things (n integer primary key, text text not null);"
META = "create table if not exists meta (k text primary key, v integer not null);"
SCHEMAS = (META, THINGS)
PAGE = 4096


def damaged(path: Path) -> Store:
    """Return an open state of which all pages but the first are overwritten; its writer has not met one."""
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"pragma page_size={PAGE}")
        for schema in SCHEMAS:
            db.executescript(schema)
        db.executemany("insert into things (text) values (?)", [["x" * 500] for _ in range(200)])
        db.commit()
    store = Store(path, SCHEMAS)
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // PAGE):
            file.seek(page * PAGE)
            file.write(b"\xff" * PAGE)
    return store


def read(store: Store) -> int:
    with store.view() as db:
        return int(db.execute("select sum(length(text)) from things").fetchone()[0])


def test_a_damaged_page_that_only_readers_meet_is_told_once_and_is_no_bug(tmp_path: Path) -> None:
    store = damaged(tmp_path / "state.sqlite")
    told: list[str] = []
    store.on_damage = told.append
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"state\.sqlite is damaged .*made anew from the log"):
            read(store)
    assert len(told) == 1
    store.close()
    (tmp_path / "journal").touch()
    again, words = open_state(tmp_path / "state.sqlite", SCHEMAS, journal=tmp_path / "journal")
    assert "has been made anew" in words
    again.close()


def test_what_is_wrong_with_a_question_stays_what_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.sqlite", SCHEMAS)
    with pytest.raises(sqlite3.OperationalError, match="no such table"), store.view() as db:
        db.execute("select * from unknown")
    store.close()


async def test_a_daemon_whose_readers_meet_it_ends_in_order_instead_of_asking_for_a_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = damaged(tmp_path / "state.sqlite")
    clock = ManualClock()
    loops = Loops(clock)
    store.on_damage = lambda why: loops.fail(DiskTrouble(why))

    async def agent() -> None:
        read(store)

    loops.begin("agent", agent)
    with pytest.raises(Unavailable, match="made anew from the log"):
        await asyncio.wait_for(loops.until(asyncio.Event()), 5)
    await loops.stop()
    store.close()
    assert not [record for record in caplog.records if "bug" in record.message]
