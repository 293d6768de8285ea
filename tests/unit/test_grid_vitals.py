"""Heartbeats: what is told, what is understood, and a broken part that must not look like a dead server."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Refused
from kmgr.grid.commands import APPLIERS
from kmgr.grid.contacts import Contacts
from kmgr.grid.local import LocalGrid, LocalNetwork
from kmgr.grid.model import Processor, Vitals
from kmgr.grid.schema import SCHEMA
from kmgr.grid.skew import complaint
from kmgr.grid.vitals import Board, Heart, measurer, vitals_from
from kmgr.ids import ServerId

A, B = ServerId("srv-a"), ServerId("srv-b")
CHIP = Processor("AMD", "family 25 model 17", frozenset({"avx2", "sse4.2"}))


async def measured() -> Mapping[str, Any]:
    return {"cpus": 4, "memory_mib": 8_000}


class Lab:
    """Server a with a heart, server b that only listens."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.grid = LocalGrid(A, path=folder / "s", appliers=APPLIERS, schemas=(SCHEMA,), clock=self.clock)
        self.network = LocalNetwork()
        self.board, self.far_board = Board(), Board()
        self.heart = self.make(A, self.board)
        self.make(B, self.far_board)

    def make(self, server: ServerId, board: Board) -> Heart:
        contacts = Contacts({A: "a:1", B: "b:1"})
        return Heart(
            self.grid,
            self.network.port(server),
            board=board,
            contacts=lambda: contacts,
            clock=self.clock,
            measure=measured,
        )

    async def beat(self) -> None:
        await self.heart.beat()
        await self.clock.advance(0, settle=50)


class Beats(Board):
    """A board that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = 0

    def put(self, vitals: Vitals) -> None:
        """Count and note a heartbeat."""
        self.heard += 1
        super().put(vitals)


@pytest.mark.parametrize(("others", "expected"), [(1, 6), (30, 3)])
async def test_while_something_is_watched_a_small_grid_hears_of_it_sooner(
    tmp_path: Path, others: int, expected: int
) -> None:
    lab = Lab(tmp_path)
    contacts = Contacts({A: "a:1", B: "b:1", **{ServerId(f"srv-{n}"): f"{n}:1" for n in range(1, others)}})
    heard = Beats()
    heart = Heart(
        lab.grid, lab.network.port(A), board=heard, contacts=lambda: contacts, clock=lab.clock, measure=measured
    )
    heart.contribute("images", lambda: {"extra": {"hurry_ms": 400}})
    running = asyncio.create_task(heart.run())
    await lab.clock.advance(0, settle=100)
    await lab.clock.advance(2.01, settle=100)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    lab.grid.close()
    assert heard.heard == expected


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.grid.close()


async def test_a_heartbeat_is_heard_by_the_others_and_by_the_server_itself(lab: Lab) -> None:
    lab.heart.contribute("replica", lambda: {"images": {"ver-1": (3, 10)}, "problems": ["disk is slow"]})
    lab.heart.contribute("provision", lambda: {"accelerator": "kvm", "can_run_desktops": True, "builds": 2})
    lab.heart.contribute("moves", lambda: {"processor": CHIP.to_json()})
    await lab.clock.advance(5)
    await lab.beat()
    vitals = lab.far_board.all()[A]
    assert (vitals.cpus, vitals.memory_mib, vitals.accelerator, vitals.can_run_desktops) == (4, 8_000, "kvm", True)
    assert dict(vitals.images) == {"ver-1": (3, 10)}
    assert vitals.processor == CHIP
    assert vitals.problems == ("disk is slow",)
    assert {"applied": 0, "builds": 2}.items() <= vitals.extra.items()
    assert vitals.heard_at == 5
    assert replace(lab.board.all()[A], extra={}) == replace(vitals, extra={})
    assert B not in lab.board.all()


@pytest.mark.parametrize(
    "told", [None, 5, {}, {"vendor": "AMD"}, {"vendor": "AMD", "kind": 1, "features": []}, "AMD"]
)
def test_a_processor_that_is_not_told_whole_is_not_known(told: Any) -> None:
    assert vitals_from(A, {"processor": told}, heard_at=0.0).processor is None


async def test_a_part_that_fails_is_named_and_the_heart_goes_on(lab: Lab) -> None:
    def broken() -> Mapping[str, Any]:
        raise KeyError("x")

    lab.heart.contribute("replica", broken)
    await lab.beat()
    assert lab.far_board.all()[A].problems == ("replica does not report: KeyError('x')",)


async def test_a_server_that_cannot_be_reached_holds_up_nothing(lab: Lab) -> None:
    lab.network.down.add(B)
    await lab.beat()
    lab.network.down.clear()
    await lab.beat()
    assert A in lab.far_board.all()


async def test_the_heart_beats_as_often_as_the_setting_says(lab: Lab) -> None:
    beats: list[float] = []

    def count() -> Mapping[str, Any]:
        beats.append(lab.clock.monotonic())
        return {}

    lab.heart.contribute("count", count)
    task = asyncio.create_task(lab.heart.run())
    await lab.clock.advance(0)
    await lab.clock.advance(3.5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert beats == [0, 1, 2, 3]


@pytest.mark.parametrize("rubbish", [{"cpus": "many"}, {"images": [1]}, {"images": {"v": 3}}, {"extra": 7}])
def test_rubbish_is_no_heartbeat(rubbish: Mapping[str, Any]) -> None:
    with pytest.raises(Refused, match="no heartbeat"):
        vitals_from(A, rubbish, heard_at=0)


async def test_this_machine_can_be_measured(tmp_path: Path) -> None:
    found = vitals_from(A, await measurer(tmp_path)(), heard_at=0)
    assert found.cpus >= 1
    assert found.memory_mib > found.memory_free_mib > 0
    assert found.disk_mib >= found.disk_free_mib > 0


async def test_a_server_whose_threads_are_all_busy_still_measures_itself(
    tmp_path: Path, every_thread_busy: None
) -> None:
    async with asyncio.timeout(30):
        assert (await measurer(tmp_path)())["cpus"] >= 1


async def test_what_measuring_takes_is_not_taken_for_a_wrong_clock(lab: Lab) -> None:
    async def slowly() -> Mapping[str, Any]:
        await lab.clock.sleep(12)
        return {"cpus": 4}

    heart = Heart(
        lab.grid,
        lab.network.port(A),
        board=lab.board,
        contacts=lambda: Contacts({A: "a:1"}),
        clock=lab.clock,
        measure=slowly,
    )
    beat = asyncio.create_task(heart.beat())
    await lab.clock.advance(0)
    await lab.clock.advance(12)
    await beat
    assert lab.board.all()[A].extra["clock_ms"] == lab.clock.now_ms()


def test_a_clock_that_differs_from_the_others_is_told() -> None:
    def board(*offs: int) -> dict[ServerId, Vitals]:
        return {
            ServerId(f"srv-{n}"): Vitals(ServerId(f"srv-{n}"), 100.0, extra={"clock_off_ms": off})
            for n, off in enumerate(offs)
        }

    own = ServerId("srv-own")
    assert complaint({}, server=own, now=101) == ""
    assert complaint(board(3000, -4000), server=own, now=101) == ""
    # One other server that is wrong is not this one's fault.
    assert complaint(board(0, 600_000, 100), server=own, now=101) == ""
    assert "10 min 0 s behind the other servers'" in complaint(board(600_000, 600_900), server=own, now=101)
    assert "20 s ahead of the other server's" in complaint(board(-20_000), server=own, now=101)
    assert complaint(board(-20_000), server=own, now=110) == ""
