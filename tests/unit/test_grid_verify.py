"""States are compared at one log entry, and a difference anywhere is seen."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kmgr.clock import SystemClock
from kmgr.errors import Unavailable
from kmgr.grid.commands import APPLIERS
from kmgr.grid.digest import digest
from kmgr.grid.envelope import Applied
from kmgr.grid.local import LocalGrid, LocalLog, LocalNetwork
from kmgr.grid.schema import SCHEMA
from kmgr.grid.verify import Verifier, same
from kmgr.ids import ServerId

IDS = [ServerId(f"srv-{letter}") for letter in "abc"]


class Lab:
    """Three servers that compare."""

    def __init__(self, folder: Path) -> None:
        self.log = LocalLog()
        self.network = LocalNetwork()
        self.grids = [
            LocalGrid(one, path=folder / one, appliers=APPLIERS, schemas=(SCHEMA,), clock=SystemClock(), log=self.log)
            for one in IDS
        ]
        self.verifiers = [Verifier(grid, self.network.port(grid.server)) for grid in self.grids]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    for grid in lab.grids:
        grid.close()


async def add_members(lab: Lab) -> None:
    for one in IDS:
        where = {"grid_address": f"{one}:8002", "web_address": f"{one}:8443"}
        body = {"server": one, "name": one[4:], **where, "version": "1", "fingerprint": ""}
        assert isinstance(await lab.grids[0].propose("server.add", body, by="test"), Applied)


async def put(grid: LocalGrid, value: int) -> None:
    await grid.propose("setting.set", {"name": "heartbeat_ms", "value": value}, by="test")


def digests(lab: Lab) -> set[tuple[int, str]]:
    found = set()
    for grid in lab.grids:
        with grid.view() as db:
            found.add(digest(db))
    return found


async def test_the_same_log_makes_the_same_digest_and_each_change_another_one(lab: Lab) -> None:
    before = digests(lab)
    await put(lab.grids[0], 1100)
    after = digests(lab)
    assert len(before) == len(after) == 1
    assert before != after
    [(applied, _)] = after
    assert applied == lab.grids[0].status().applied


@pytest.mark.parametrize(
    "wrong",
    [
        "update events set text = text || '!'",
        "update events set at = cast(at as text) || 'x'",
        "delete from events",
        "create table other (x)",
        "insert into settings (k, v) values ('lost_after_ms', 9000)",
    ],
)
async def test_a_difference_in_any_table_is_seen(lab: Lab, wrong: str) -> None:
    await put(lab.grids[0], 1100)
    lab.grids[1].store.unguard()
    lab.grids[1].store.writer.execute(wrong)
    assert len(digests(lab)) == 2


async def test_how_rows_lie_in_the_file_makes_no_difference(lab: Lab) -> None:
    for value in (1100, 1200, 1300):
        await put(lab.grids[0], value)
    lab.grids[1].store.unguard()
    lab.grids[1].store.writer.execute("vacuum")
    assert len(digests(lab)) == 1


async def test_all_members_are_asked_and_whoever_differs_is_told(lab: Lab) -> None:
    await add_members(lab)
    answers = await lab.verifiers[1].verify()
    assert [one.name for one in answers] == ["a", "b", "c"]
    assert same(answers)
    lab.grids[2].store.unguard()
    lab.grids[2].store.writer.execute("delete from events")
    answers = await lab.verifiers[1].verify()
    assert not same(answers)
    assert answers[0].digest == answers[1].digest != answers[2].digest


async def test_a_server_that_cannot_be_asked_is_named_and_hides_nothing(lab: Lab) -> None:
    await add_members(lab)
    lab.network.down.add(IDS[2])
    answers = await lab.verifiers[0].verify()
    assert "cannot be reached" in answers[2].problem
    assert same(answers)


async def test_without_a_majority_nothing_is_compared(lab: Lab) -> None:
    lab.log.cut_off.update(IDS[1:])
    with pytest.raises(Unavailable):
        await lab.verifiers[0].verify()
