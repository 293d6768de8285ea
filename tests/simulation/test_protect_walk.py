"""No personal desktop ever runs twice, whatever happens: random troubles by seeds, and rules left out on purpose.

`KMGR_PROTECT_SEEDS=1000` runs as many, `KMGR_PROTECT_FIRST=n` begins with seed n.
"""

import os
from pathlib import Path

import pytest

from tests.lab.protect_mutants import MUTANTS, Mutation
from tests.lab.protect_walk import unheard, walk

SEEDS = int(os.environ.get("KMGR_PROTECT_SEEDS", "6"))
FIRST = int(os.environ.get("KMGR_PROTECT_FIRST", "1"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
async def test_no_desktop_runs_twice(tmp_path: Path, seed: int) -> None:
    await walk(tmp_path, seed)


@pytest.mark.parametrize("name", MUTANTS)
async def test_a_rule_that_is_missing_is_noticed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate: Mutation = MUTANTS[name]
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        await unheard(tmp_path)


async def test_a_server_that_is_not_heard_but_reaches_the_log_gives_up_in_time(tmp_path: Path) -> None:
    assert await unheard(tmp_path) >= 2
