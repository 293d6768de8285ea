"""The random walk notices when generations fence nothing; `KMGR_MUTANT_WALKS=40` tries more seeds."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlite_utils import Database

from kmgr.grid.envelope import Command, Rejected
from kmgr.grid.rows import Row, one
from kmgr.provision import commands
from tests.simulation.test_random_walk import Walk, walk

# The first of these seeds shows it today; the others are for the day when walks go other ways.
KNOWN = 3
MORE = int(os.environ.get("KMGR_MUTANT_WALKS", "20"))


class BrokenDesktops(Walk):
    """A walk in which desktops break, are made anew, and old reports of them come late, again and again."""

    def steps(self) -> tuple[tuple[int, Callable[[], Awaitable[str]]], ...]:
        return (
            (2, self.open),
            (2, self.log_out),
            (2, self.resize),
            (3, self.spoil),
            (5, self.make_anew),
            (5, self.arrive_late),
        )

    async def make_anew(self) -> str:
        """What made it break is mended before."""
        await self.heal()
        return await super().make_anew()


def unfenced(db: Database, command: Command) -> Row | Rejected:
    """Find a report's desktop, whichever generation the report speaks of."""
    row = one(db, "select * from desktops where id = ?", [command.body["desktop"]])
    return row if row is not None else Rejected("not_found", "there is no such desktop")


async def test_reports_of_older_generations_that_count_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "fenced", unfenced)
    for turn, seed in enumerate([KNOWN, *range(MORE)]):
        folder = tmp_path / str(turn)
        folder.mkdir()
        try:
            await walk(folder, seed, BrokenDesktops)
        except AssertionError as found:
            print(f"caught by seed {seed}: {found}")
            return
    pytest.fail(f"not noticed by {MORE} seeds")
