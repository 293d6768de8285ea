"""A short, seeded slice of the fault lab and of the simulation; `make faults` and `make simulate` are the long ones.

`KMGR_FAULT_SEED=7` runs another one.
"""

import os
from pathlib import Path

import pytest

from tests.faults.run import Plan, printed, run
from tests.lab import simulate

SEED = int(os.environ.get("KMGR_FAULT_SEED", "2002"))
SEEDS = range(1, 61)


@pytest.mark.parametrize(
    ("size", "seconds", "whole"), [(3, 10, False), (5, 6, False), (3, 10, True)], ids=["3", "5", "3 daemons"]
)
def test_nothing_acknowledged_is_lost_under_any_fault(size: int, seconds: float, whole: bool, tmp_path: Path) -> None:
    report = run(Plan(SEED, size, seconds, whole=whole), tmp_path / "kept")
    print(printed(report))
    assert not report.violations, printed(report)
    assert report.figures["acknowledged changes"] > 100
    assert report.figures["troubles"]


def test_simulated_grids_of_many_seeds_keep_their_promises() -> None:
    told = simulate.batch((list(SEEDS), simulate.STEPS))
    assert [f"seed {one.seed}: {one.broken}" for one in told if one.broken] == []
    assert sum(one.acknowledged for one in told) > 10 * len(SEEDS)
