"""No personal desktop ever runs twice, whatever happens: random troubles by seeds, and rules left out on purpose.

`KMGR_PROTECT_SEEDS=1000` runs as many, `KMGR_PROTECT_FIRST=n` begins with seed n.
"""

import os
from pathlib import Path

import pytest

from tests.lab.protect_mutants import MUTANTS, OF_TWO, Mutation
from tests.lab.protect_walk import TwiceRunning, stopped_on_its_way, third_vote, unheard, walk

SEEDS = int(os.environ.get("KMGR_PROTECT_SEEDS", "6"))
FIRST = int(os.environ.get("KMGR_PROTECT_FIRST", "1"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
async def test_no_desktop_runs_twice(tmp_path: Path, seed: int) -> None:
    await walk(tmp_path, seed)


@pytest.mark.parametrize("name", MUTANTS)
async def test_a_rule_that_is_missing_is_noticed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate: Mutation = MUTANTS[name]
    mutate(monkeypatch)
    with pytest.raises(TwiceRunning):
        await unheard(tmp_path)


@pytest.mark.parametrize("name", OF_TWO)
async def test_a_rule_for_two_voters_that_is_missing_is_noticed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate: Mutation = OF_TWO[name]
    mutate(monkeypatch)
    with pytest.raises(TwiceRunning):
        await third_vote(tmp_path)


async def test_a_third_vote_at_the_worst_moment(tmp_path: Path) -> None:
    assert await third_vote(tmp_path) == 1


async def test_a_server_that_is_not_heard_but_reaches_the_log_gives_up_in_time(tmp_path: Path) -> None:
    assert await unheard(tmp_path) >= 2


async def test_what_stood_still_on_its_way_and_went_on_elsewhere_is_not_let_go_on(tmp_path: Path) -> None:
    assert await stopped_on_its_way(tmp_path) == 1
