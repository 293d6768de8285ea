"""The clock that tests move by hand."""

import asyncio

from kmgr.clock import ManualClock


async def test_sleepers_wake_in_order_of_their_time() -> None:
    clock = ManualClock()
    woken: list[tuple[float, float]] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((seconds, clock.monotonic()))

    tasks = [asyncio.create_task(sleeper(s)) for s in (3, 1, 2)]
    await asyncio.sleep(0)
    await clock.advance(2.5)
    assert woken == [(1, 1.0), (2, 2.0)]
    await clock.advance(1)
    assert woken == [(1, 1.0), (2, 2.0), (3, 3.0)]
    await asyncio.gather(*tasks)


async def test_a_sleeper_that_sleeps_again_wakes_within_one_advance() -> None:
    clock = ManualClock()
    beats: list[float] = []

    async def heart() -> None:
        for _ in range(5):
            await clock.sleep(1)
            beats.append(clock.monotonic())

    task = asyncio.create_task(heart())
    await asyncio.sleep(0)
    await clock.advance(5)
    assert beats == [1, 2, 3, 4, 5]
    await task


def test_the_wall_clock_advances_with_the_monotonic_one() -> None:
    async def run() -> tuple[int, int]:
        clock = ManualClock(now_ms=1000)
        await clock.advance(2)
        return clock.now_ms(), int(clock.monotonic())

    assert asyncio.run(run()) == (3000, 2)
