"""A witness has little memory, however much the grid has to remember: the state stays on its disk."""

import asyncio
import json
import sys
from pathlib import Path

from kmgr.grid.raft import courier, snapshot
from kmgr.grid.raft.records import Entry
from kmgr.grid.raft.snapshot import Snapshot
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.ids import ServerId

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
# About what 10,000 desktops take with their outcomes, and then some.
LINES, LONG = 120_000, 200
MOST_KIB = 3 << 10


def large_state(folder: Path) -> Path:
    """Write a snapshot of a large state."""
    store = Store(folder / "large.sqlite", (SCHEMA,))
    lines = ([n, 0, "anna", "desktop", f"dsk-{n % 10_000}", "x" * LONG] for n in range(1, LINES + 1))
    store.writer.conn.execute("begin")
    store.writer.conn.executemany("insert into events values (?, ?, ?, ?, ?, ?)", lines)
    store.writer.conn.execute("insert into meta (k, v) values ('applied', 8)")
    store.writer.conn.execute("commit")
    path = folder / "arrived"
    snapshot.write(path, store, Snapshot(Entry(b"", 7, 1), Entry(b"", 8, 1), frozenset({ServerId("srv-a")})))
    store.close()
    return path


async def test_no_step_with_a_large_state_takes_more_than_a_little_memory(tmp_path: Path) -> None:
    arrived = await asyncio.to_thread(large_state, tmp_path)
    assert arrived.stat().st_size > 5 * MOST_KIB << 10, "not large"
    words = ("-m", "tests.lab.installing", str(arrived), str(tmp_path))
    child = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    told, _ = await asyncio.wait_for(child.communicate(), 60)
    added = json.loads(told)
    assert set(added) == {"check", "install", "look", "compare", "compact"}
    assert {name: kib for name, kib in added.items() if kib > MOST_KIB} == {}
    assert sum(kib for kib in added.values()) > 0, "nothing was measured"


def test_it_is_sent_and_taken_in_small_pieces() -> None:
    assert courier.PIECE_BYTES <= MIB
