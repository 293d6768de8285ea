"""Disks that fill up: said in time, with the minutes that are left, and copies give way to desktops."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import ManualClock
from kmgr.provision.disk_watch import DiskWatch
from kmgr.provision.growth import Growth, Level, judge
from kmgr.replica.images import Images, Room
from tests.lab.keepers import Keepers

GIB, MIB = 1 << 30, 1 << 20


def level(free: int, *, total: int = 100 * GIB, rate: float = 0.0) -> Level:
    reserve = Room(free, total).reserve_bytes
    return judge("desktops", free_bytes=free, total_bytes=total, reserve_bytes=reserve, rate=rate).level


def test_alarms_come_in_steps() -> None:
    assert level(50 * GIB) is Level.FINE
    assert level(7 * GIB) is Level.LOW
    assert level(GIB - 1) is Level.NEARLY_FULL
    assert level(50 * GIB, rate=MIB) is Level.FINE  # half a day
    assert level(50 * GIB, rate=10 * MIB) is Level.SOON
    assert level(300 * MIB, total=4 * GIB) is Level.LOW
    assert level(190 * MIB, total=4 * GIB) is Level.NEARLY_FULL


def test_growth_is_told_only_after_a_minute_and_forgets_what_is_long_ago() -> None:
    growth = Growth()
    growth.note(0, now=0)
    growth.note(30 * MIB, now=30)
    assert growth.rate() == 0
    growth.note(60 * MIB, now=60)
    assert growth.rate() == MIB
    for now in range(70, 1400, 10):
        growth.note(60 * MIB, now=now)
    assert growth.rate() == 0
    growth.note(10 * MIB, now=1400)
    assert growth.rate() == 0  # they shrank
    growth.note(0, now=10)  # the clock was set back
    assert growth.rate() == 0


async def test_the_watch_names_the_disk_and_the_time_that_is_left(tmp_path: Path) -> None:
    (tmp_path / "desktops").mkdir()
    clock, left = ManualClock(), Room(20 * GIB, 100 * GIB)
    watch = DiskWatch(tmp_path, Images(tmp_path), clock, measure=lambda _: left)
    disk = tmp_path / "desktops" / "dsk-1.qcow2"
    disk.write_bytes(b"")
    await watch.look()
    assert watch.vitals()["problems"] == []
    for n in range(1, 8):
        disk.write_bytes(b"x" * n * 30 * MIB)
        await clock.advance(10)
        await watch.look()
    (problem,) = watch.vitals()["problems"]
    assert "will soon be full" in problem
    assert f"{tmp_path / 'desktops'}" in problem
    assert "full in 114 minutes" in problem
    left = Room(500 * MIB, 100 * GIB)
    await watch.look()
    (problem,) = watch.vitals()["problems"]
    assert "nearly full: 500 MiB of 102400 MiB" in problem
    assert "Imports and copies of images wait" in problem


async def test_a_copy_gives_way_when_the_disk_fills_up_under_it(tmp_path: Path) -> None:
    keepers = Keepers(tmp_path, "ab")
    await keepers.open()
    try:
        a, b = keepers["a"], keepers["b"]
        version = await keepers.imported(a)
        stuck = asyncio.Event()

        async def never(*_: Any) -> None:
            stuck.set()
            await asyncio.sleep(3600)

        a.requests.serve_stream("blocks", never)
        running = asyncio.create_task(b.agent.run_once())
        async with asyncio.timeout(10):
            await stuck.wait()
        assert b.images.side(version.id, "part").exists()
        b.room = Room(free_bytes=4 * MIB, total_bytes=100 * MIB)
        async with asyncio.timeout(10):
            assert await running == ""
        assert "left to the desktops" in b.agent.problems()[0]
        assert not b.images.side(version.id, "part").exists()
    finally:
        keepers.close()


@pytest.mark.parametrize("total", [0, 10 * MIB, 1 << 50])
def test_any_size_of_disk_can_be_judged(total: int) -> None:
    assert level(total, total=total) in (Level.FINE, Level.NEARLY_FULL)
