"""A guest that is owed its thaw moves: where it goes on this is known, whatever happens to the daemons on the way."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.ids import DesktopId
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.stillness import Owed, spell
from kmgr.provision.thawing import mark_of, noted
from tests.lab.moving import Movers, Side
from tests.lab.provision import B

D1 = DesktopId("dsk-1")
SINCE = 1_700_000_000_000


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Movers]:
    office = Movers(tmp_path)
    await office.open()
    yield office
    await office.close()


def known(side: Side) -> Owed | None:
    return noted(side.folder / "run", D1, now_ms=0)


def freeze(side: Side) -> None:
    """What a freeze leaves whose thaw was not confirmed."""
    mark_of(side.folder / "run", D1).write_text(spell(Owed(SINCE, 4)))


async def arrived(office: Movers) -> None:
    async def runs() -> bool:
        return office.one(D1).server == B and await office.b.state(D1) is DomainState.RUNNING

    await office.until(runs)


async def test_its_new_server_knows_since_when_and_asks_once_it_runs(office: Movers) -> None:
    freeze(office.a)
    await office.move()
    await arrived(office)
    await office.until(lambda: D1 in office.b.owed[1:])
    # Under another run of its domain: which one is nobody's business there.
    assert known(office.b) == Owed(SINCE, 0)


async def test_the_next_life_of_its_new_server_knows_it_too(office: Movers) -> None:
    freeze(office.a)
    office.b.may_run = False
    await office.move()
    await office.until(lambda: office.one(D1).server == B)
    await office.b.kill()
    assert known(office.b) == Owed(SINCE, 0)


async def test_one_that_is_owed_nothing_takes_nothing_along(office: Movers) -> None:
    await office.move()
    await arrived(office)
    assert known(office.b) is None


async def test_what_it_was_owed_when_it_was_there_before_is_over(office: Movers) -> None:
    freeze(office.b)
    await office.move()
    await arrived(office)
    assert known(office.b) is None
    assert office.b.owed, "it must hear that the note is gone"


async def test_one_that_stays_is_asked_where_it_is(office: Movers) -> None:
    freeze(office.a)
    office.b.migrations.fail["close_disk"] = "the disk is busy"
    await office.move()
    await office.until(lambda: office.one(D1).moving_to is None)
    assert known(office.a) == Owed(SINCE, 4)
