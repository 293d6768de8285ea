"""A log of few but large entries is compacted too: a witness has little memory."""

from dataclasses import replace
from pathlib import Path

from kmgr.daemon import witness
from kmgr.grid.envelope import MAX_BYTES, Applied
from kmgr.grid.raft.logfile import LogFile
from tests.lab.raft_lab import QUICK, A, RaftLab, eventually

LIMIT = 4 << 20


async def test_large_entries_are_compacted_long_before_there_are_many(tmp_path: Path) -> None:
    lab = RaftLab(tmp_path, timing=replace(QUICK, compact_bytes=LIMIT))
    await lab.grow(A)
    grid = await lab.led()
    journal = tmp_path / A / "raft" / "journal"
    largest = 0
    for value in range(40):
        body = {"name": "heartbeat_ms", "value": 1000 + value, "padding": "x" * (MAX_BYTES - 1000)}
        assert isinstance(await grid.propose("setting.set", body, by="test"), Applied)
        largest = max(largest, journal.stat().st_size)
    # The zeros ahead lie behind it.
    await eventually(lambda: journal.stat().st_size < LIMIT + LogFile.AHEAD)
    assert largest < 3 * LIMIT
    assert lab.value(A) == 1039
    await lab.kill(A)
    await lab.begin(A)
    await eventually(lambda: lab.value(A) == 1039)
    await lab.close_all()
    assert not lab.fatal


def test_a_witness_keeps_little_of_the_log_in_memory() -> None:
    assert witness.TIMING.compact_bytes <= 4 << 20
