"""A desktop goes on on another server while it runs: whatever happens, it runs on exactly one of the two."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import ManualClock
from kmgr.grid.model import Processor
from kmgr.grid.queries import events
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.move_rows import moves
from tests.lab.moving import Movers, Side
from tests.lab.provision import A, B

RUNNING, PAUSED = DomainState.RUNNING, DomainState.PAUSED


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Movers]:
    office = Movers(tmp_path)
    await office.open()
    yield office
    await office.close()


async def only_on(office: Movers, here: Side, there: Side) -> None:
    """It comes to run on one server, and nothing of it is left on the other."""

    async def holds() -> bool:
        gone = await there.state("dsk-1") is None and not there.disk("dsk-1").exists()
        return gone and await here.state("dsk-1") is RUNNING and here.disk("dsk-1").exists()

    await office.until(holds)
    assert not here.migrations.lent


async def stays(office: Movers, cause: str) -> None:
    await only_on(office, office.a, office.b)
    await office.until(lambda: office.one("dsk-1").moving_to is None)
    assert (office.moved().server, office.moved().generation) == (A, 1)
    with office.grid.view() as db:
        assert cause in moves(db)[0].cause
        assert any("stays where it is" in event.text and cause in event.text for event in events(db))


async def test_it_goes_on_there_and_nothing_is_left_here(office: Movers) -> None:
    await office.move()
    await only_on(office, office.b, office.a)
    now = office.moved()
    assert (now.server, now.generation, now.user, now.state) == (B, 2, "anna", "in_use")
    assert office.a.moving.vitals()["extra"]["moves"] == {}


async def test_it_can_go_back(office: Movers) -> None:
    await office.move()
    await only_on(office, office.b, office.a)
    await office.do("desktop.move", desktop="dsk-1", generation=2, server=B, target=A, why="balance")
    await only_on(office, office.a, office.b)
    assert (office.moved().server, office.moved().generation) == (A, 3)


@pytest.mark.parametrize("step", ["traits", "copy_disk", "disk", "send", "memory", "finish"])
async def test_whatever_fails_here_it_stays_and_says_why(office: Movers, step: str) -> None:
    office.a.migrations.fail[step] = "QEMU says no"
    await office.move()
    await stays(office, "QEMU says no")


@pytest.mark.parametrize("step", ["arrive", "load", "loaded", "close_disk"])
async def test_whatever_fails_there_it_stays_and_says_why(office: Movers, step: str) -> None:
    office.b.migrations.fail[step] = "no memory left there"
    await office.move()
    await office.until(lambda: office.one("dsk-1").moving_to is None)
    office.b.migrations.fail.clear()
    await stays(office, "no memory left there")


@pytest.mark.parametrize(("chip", "why"), [(None, "is not known"), (Processor("AMD", "x", frozenset()), "another")])
async def test_a_server_with_another_processor_takes_nothing_whoever_planned_it(
    office: Movers, chip: Processor | None, why: str
) -> None:
    office.a.migrations.emulation = "kvm"
    office.b.migrations.chip = chip
    await office.move()
    await stays(office, why)
    assert office.a.moving.vitals()["processor"]["vendor"] == "AMD"


async def test_in_emulation_the_processor_is_the_same_everywhere(office: Movers) -> None:
    office.b.migrations.chip = None
    await office.move()
    await only_on(office, office.b, office.a)


async def test_a_server_that_cannot_be_reached_takes_nothing(office: Movers) -> None:
    office.network.down.add(B)
    await office.move()
    await stays(office, "")


async def test_one_that_is_given_back_on_its_way_is_gone_from_both(office: Movers) -> None:
    office.a.migrations.slow = True
    await office.move()
    await office.until(lambda: bool(office.a.moving.vitals()["extra"]["moves"]))
    await office.do("desktop.release", desktop="dsk-1", user="anna")

    async def gone() -> bool:
        return await office.a.state("dsk-1") is None and await office.b.state("dsk-1") is None

    await office.until(gone)
    await office.until(lambda: office.desktop("dsk-1") is None)


async def test_a_disk_that_is_written_as_fast_as_it_is_copied_stays_and_says_why(tmp_path: Path) -> None:
    clock = ManualClock()
    office = Movers(tmp_path, clock=clock)

    async def ticks() -> None:
        while True:
            await clock.advance(1, settle=2)
            await asyncio.sleep(0)

    ticking = asyncio.create_task(ticks())
    try:
        await office.open()
        office.a.migrations.busy = True
        await office.move()
        await office.until(lambda: office.one("dsk-1").moving_to is None)
        await stays(office, "its guest writes about as fast as its disk is copied")
    finally:
        ticking.cancel()
        await office.close()


@pytest.mark.parametrize("side", ["a", "b"])
async def test_a_daemon_that_is_killed_on_the_way_leaves_it_where_it_was(office: Movers, side: str) -> None:
    office.a.migrations.slow = True
    await office.move()
    await office.until(lambda: bool(office.a.moving.vitals()["extra"]["moves"]))
    one: Side = getattr(office, side)
    await one.kill()
    office.a.migrations.slow = False
    one.restart()
    one.start()
    await stays(office, "began anew")


async def test_a_server_that_was_killed_after_the_hand_over_goes_on_with_it(office: Movers) -> None:
    office.b.may_run = False  # a personal desktop whose new server has no lease yet
    await office.move()
    await office.until(lambda: office.one("dsk-1").server == B)
    assert await office.b.state("dsk-1") is PAUSED
    await office.b.kill()
    office.b.may_run = True
    office.b.restart()
    office.b.start()
    await only_on(office, office.b, office.a)


async def test_it_stands_still_while_neither_server_may_run_it(office: Movers) -> None:
    office.a.migrations.fail["finish"] = "the wire broke"
    office.a.may_run = False
    await office.move()
    await office.until(lambda: office.one("dsk-1").moving_to is None)
    assert await office.a.state("dsk-1") is PAUSED
    office.a.may_run = True
    await only_on(office, office.a, office.b)


@pytest.mark.parametrize(
    "told", [{}, {"traits": {"uuid": "../../etc"}}, {"traits": 5}, {"traits": {"uuid": "x", "extra": 1}}]
)
async def test_another_server_cannot_describe_the_machine_freely(office: Movers, told: dict[str, Any]) -> None:
    office.a.migrations.slow = True
    await office.move()
    body = {"desktop": "dsk-1", "generation": 1, **told}
    with pytest.raises(Exception, match=r"traits|takes no|does not take"):
        await office.a.requests.call(B, "move.prepare", body)


async def test_nobody_sends_a_desktop_that_the_log_does_not_know_to_come(office: Movers) -> None:
    with pytest.raises(Exception, match="does not say"):
        await office.a.requests.call(B, "move.prepare", {"desktop": "dsk-1", "generation": 1, "traits": {}})
    with pytest.raises(Exception, match="does not say"):
        await office.a.requests.open(B, "move.disk", {"desktop": "dsk-1", "generation": 1})
