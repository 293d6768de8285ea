"""Many short simulations of the log at once, each decided by its seed: `python -m tests.lab.simulate --seeds 10000`.

Seed n has the faults, the number of servers and the dice that n says, so that
one number repeats a run: `--first n --seeds 1`. The folders lie in memory.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pysyncobj import syncobj

from kmgr.grid.raft import library, opening, trust
from kmgr.grid.raft.logfile import LogFile
from tests.lab.raft_sim import Broken, Sim
from tests.lab.sim_parts import Faults, SimFile

PROFILES = (
    Faults(),
    Faults(kills=True),
    Faults(kills=True, power_cuts=True, sick_disks=True),
    Faults(kills=True, voters=True),
    Faults(kills=True, power_cuts=True, voters=True),
    Faults(kills=True, voters=True, learners=2),
    Faults(kills=True, older=True),
    Faults(kills=True, voters=True, older=True),
)
SIZES = (3, 3, 3, 5, 2)
STEPS = 350
AT_ONCE = 20
TOLD_EVERY = 1000
MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one run: how many changes were acknowledged, what happened, and what was broken."""

    seed: int
    acknowledged: int
    count: Counter[str]
    broken: str = ""


def main() -> int:
    """Run them in parallel processes; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.simulate")
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    # What thousands of servers warn of in their lives is what is being tried; it would hide what is told here.
    logging.getLogger("kmgr").setLevel(logging.CRITICAL)
    began = time.monotonic()
    seeds = range(asked.first, asked.first + asked.seeds)
    batches = [(list(seeds[at : at + AT_ONCE]), asked.steps) for at in range(0, len(seeds), AT_ONCE)]
    acknowledged, runs, count, broken = 0, 0, Counter[str](), list[Told]()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for told in pool.map(batch, batches):
            for one in told:
                runs, acknowledged, count = runs + 1, acknowledged + one.acknowledged, count + one.count
                if one.broken:
                    broken.append(one)
                    print(f"seed {one.seed}: {one.broken}\n  again: {again(one.seed, asked.steps)}", flush=True)
                if runs % TOLD_EVERY == 0:
                    print(f"{runs} seeds, {60 * runs / (time.monotonic() - began):.0f} a minute", flush=True)
    took = time.monotonic() - began
    print(
        f"{runs} seeds in {took:.0f} s ({60 * runs / took:.0f} a minute), {acknowledged} changes acknowledged, "
        f"{dict(sorted(count.items()))}, {len(broken)} violations"
    )
    return int(bool(broken))


def batch(asked: tuple[list[int], int]) -> list[Told]:
    """Run some seeds in this process."""
    seeds, steps = asked
    with clockless():
        return [run(seed, steps) for seed in seeds]


def run(seed: int, steps: int) -> Told:
    """Run one seed."""
    folder = Path(tempfile.mkdtemp(prefix="kmgr-sim-", dir=MEMORY if MEMORY.is_dir() else None))
    sim = Sim(folder, seed, PROFILES[seed % len(PROFILES)], size=SIZES[seed // len(PROFILES) % len(SIZES)])
    broken = ""
    try:
        sim.run(steps)
    except Broken as error:
        broken = str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, its seed must be said
        broken = f"{type(error).__name__}: {error}"
    finally:
        sim.close()
        shutil.rmtree(folder, ignore_errors=True)
    return Told(seed, len(sim.acknowledged), Counter(sim.count), broken)


@contextmanager
def clockless() -> Iterator[None]:
    """Let the log live by the simulation's clock and write to the simulation's disk."""
    clock, batch_bytes, hold = syncobj.monotonicTime, library.BATCH_BYTES, trust.HOLD
    syncobj.monotonicTime, opening.LogFile = _now, SimFile  # type: ignore[attr-defined]
    library.BATCH_BYTES = 300  # about three entries a message
    trust.HOLD = 0.3  # a run takes few seconds
    try:
        yield
    finally:
        syncobj.monotonicTime, opening.LogFile = clock, LogFile  # type: ignore[attr-defined]
        library.BATCH_BYTES, trust.HOLD = batch_bytes, hold


def again(seed: int, steps: int) -> str:
    """Return the command that repeats one seed."""
    return f"make simulate SEEDS=1 FIRST={seed} STEPS={steps}"


def _now() -> float:
    return SimFile.sim.tick()


if __name__ == "__main__":
    sys.exit(main())
