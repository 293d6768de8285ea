"""When a log is compacted: few but large entries too, for a witness has little memory; a large state less often."""

from dataclasses import replace
from pathlib import Path

import pytest

from kmgr.daemon import witness
from kmgr.grid.envelope import MAX_BYTES, Applied
from kmgr.grid.raft.compaction import is_long
from kmgr.grid.raft.library import Timing
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


@pytest.mark.parametrize(
    ("entries", "size", "state_bytes", "long"),
    [
        (1000, 1 << 20, 0, False),  # few, and not large
        (1001, 1 << 20, 1 << 20, True),  # as large as the state: what is copied is no more than what was written
        (1001, 1 << 20, 2 << 20, False),  # the copy would be larger than the log
        (4001, 1 << 20, 200 << 20, True),  # but a start must not take for ever
        (2, 9 << 20, 200 << 20, True),  # nor the memory be full of them
    ],
)
def test_a_log_may_grow_while_it_is_smaller_than_the_state(
    entries: int, size: int, state_bytes: int, long: bool
) -> None:
    limits = Timing(compact_entries=1000, compact_most=4000, compact_bytes=8 << 20)
    assert is_long(entries, size, limits, state_bytes=state_bytes) is long


def test_a_witness_keeps_little_of_the_log_in_memory() -> None:
    assert witness.TIMING.compact_bytes <= 4 << 20
    assert witness.TIMING.compact_most <= 5000
