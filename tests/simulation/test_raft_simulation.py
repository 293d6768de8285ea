"""Whole grids under every fault at once, decided by a seed; `KMGR_SEEDS=first:count` runs more of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pysyncobj import syncobj

from kmgr.grid.raft import library, opening, trust
from tests.lab.raft_sim import Sim
from tests.lab.sim_parts import Faults, SimFile

STEPS = int(os.environ.get("KMGR_STEPS", "1000"))
FIRST, COUNT = map(int, os.environ.get("KMGR_SEEDS", "2:1").split(":"))
SIZE = int(os.environ.get("KMGR_SIZE", "3"))

PROFILES = {
    "wires": Faults(),
    "kills": Faults(kills=True),
    "power": Faults(kills=True, power_cuts=True),
    "sick": Faults(kills=True, power_cuts=True, sick_disks=True),
    "voters": Faults(kills=True, voters=True),
    "learners": Faults(kills=True, voters=True, learners=3),
    "older": Faults(kills=True, voters=True, older=True),
}


def now() -> float:
    """Return the time of the simulation that runs."""
    return SimFile.sim.tick()


@pytest.fixture
def clockless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The log lives by the simulation's clock and writes to the simulation's disk."""
    monkeypatch.setattr(syncobj, "monotonicTime", now)
    monkeypatch.setattr(opening, "LogFile", SimFile)
    monkeypatch.setattr(trust, "HOLD", 0.3)  # a run takes few seconds
    monkeypatch.setattr(library, "BATCH_BYTES", 300)  # about three entries a message
    yield


@pytest.mark.usefixtures("clockless")
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_what_was_acknowledged_stays_whatever_happens(profile: str, seed: int, tmp_path: Path) -> None:
    sim = Sim(tmp_path, seed, PROFILES[profile], size=SIZE)
    try:
        sim.run(STEPS)
    finally:
        sim.close()
    print(f"{profile} seed {seed}: {len(sim.acknowledged)} of {sim.said} acknowledged, {dict(sim.count)}")
    assert len(sim.acknowledged) > STEPS / 1000
