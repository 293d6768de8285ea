"""The loop of agents and duties goes on after what is expected, and ends at a bug."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Unavailable
from kmgr.rounds import rounds


def begun(clock: ManualClock, once: Callable[[], Awaitable[object]]) -> "asyncio.Task[object]":
    return asyncio.ensure_future(rounds(once, "a look was cut short", every_s=5, clock=clock))


async def test_a_round_that_is_cut_short_is_told_and_the_next_one_comes_in_its_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, at = ManualClock(), list[float]()

    async def once() -> None:
        at.append(clock.monotonic())
        if len(at) == 2:
            raise Unavailable("nobody answers")

    with caplog.at_level(logging.INFO):
        loop = begun(clock, once)
        await clock.advance(0)
        for _ in range(4):
            await clock.advance(4)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert at == [0, 5, 10, 15]
    assert [(record.message, vars(record)["cause"]) for record in caplog.records] == [
        ("a look was cut short", "nobody answers")
    ]


async def test_a_bug_ends_it() -> None:
    async def once() -> None:
        raise KeyError("desktop")

    loop = begun(ManualClock(), once)
    await asyncio.wait([loop])
    assert isinstance(loop.exception(), KeyError)
