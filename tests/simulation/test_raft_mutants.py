"""The simulation notices when a rule of Raft is missing; `KMGR_MUTANT_SEEDS=first:count` says how soon it must."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pysyncobj import syncobj

from kmgr.errors import ConfigError, InvariantBroken
from kmgr.grid.raft import library, opening, trust
from tests.lab.mutants import MUTANTS
from tests.lab.raft_sim import Broken, Sim
from tests.lab.sim_parts import SimFile
from tests.simulation.test_raft_simulation import PROFILES, now

# Without it each mutant's own seed is tried first, and the range only if that seed shows it no more.
CHOSEN = os.environ.get("KMGR_MUTANT_SEEDS", "")
FIRST, COUNT = map(int, (CHOSEN or "1:40").split(":"))
STEPS = 1500


@pytest.fixture
def clockless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(syncobj, "monotonicTime", now)
    monkeypatch.setattr(opening, "LogFile", SimFile)
    monkeypatch.setattr(trust, "HOLD", 0.3)  # a run takes few seconds
    monkeypatch.setattr(library, "BATCH_BYTES", 300)
    yield


@pytest.mark.usefixtures("clockless")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_log_without_this_rule_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile, known, mutate = MUTANTS[name]
    mutate(monkeypatch)
    for turn, seed in enumerate([*([] if CHOSEN else [known]), *range(FIRST, FIRST + COUNT)]):
        folder = tmp_path / str(turn)
        folder.mkdir()
        sim = Sim(folder, seed, PROFILES[profile])
        try:
            sim.run(STEPS)
        except (Broken, InvariantBroken, ConfigError) as found:
            print(f"{name}: caught by seed {seed}: {found}")
            return
        finally:
            sim.close()
    pytest.fail(f"{name}: not noticed by {COUNT} seeds")
