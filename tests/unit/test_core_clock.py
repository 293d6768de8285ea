"""The clock that tests move by hand."""

import asyncio

from kmgr.clock import ManualClock, until_idle


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


async def test_a_wake_lets_all_that_follows_from_it_happen() -> None:
    clock = ManualClock()
    steps: list[int] = []

    async def worker() -> None:
        await clock.sleep(1)
        for step in range(15):
            await asyncio.sleep(0)
            steps.append(step)

    task = asyncio.create_task(worker())
    await asyncio.sleep(0)
    await clock.advance(1)
    assert steps == list(range(15))
    await task


async def test_what_a_thread_hands_over_meanwhile_is_still_waited_for() -> None:
    loop = asyncio.get_running_loop()
    heard: list[str] = []
    loop.call_soon_threadsafe(lambda: loop.call_soon(heard.append, "told"))
    await until_idle(4)
    assert heard == ["told"]
