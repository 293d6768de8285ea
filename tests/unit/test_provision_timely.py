"""Blocking calls with a deadline: answered, given up, refused when too many hang, healed."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest

from kmgr.errors import Refused, Unavailable
from kmgr.provision.timely import Timely, at_once


@pytest.fixture
def timely() -> Timely:
    return Timely("the disk", deadline_s=0.05, advice="Look after it.")


@pytest.fixture
async def gate() -> AsyncIterator[threading.Event]:
    """Holds calls until it is opened; open at the end, so that no thread is left."""
    gate = threading.Event()
    yield gate
    gate.set()
    await asyncio.sleep(0.01)


async def test_what_it_returns_and_raises_comes_back(timely: Timely) -> None:
    def refuses() -> None:
        raise Refused("no")

    for call in (timely.call, at_once):
        assert await call(lambda: 7) == 7
        with pytest.raises(Refused, match="no"):
            await call(refuses)


async def test_the_loop_goes_on_meanwhile() -> None:
    patient = Timely("it", deadline_s=5, advice="")
    slow = asyncio.ensure_future(patient.call(lambda: time.sleep(0.05)))
    turns = 0
    while not slow.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 10


async def test_one_that_hangs_is_given_up_with_words(timely: Timely, gate: threading.Event) -> None:
    with pytest.raises(Unavailable, match=r"the disk did not answer within 0.05 s. Look after it."):
        await timely.call(gate.wait)
    assert await timely.call(lambda: 1) == 1, "others go on"


async def test_many_that_hang_end_further_calls_at_once_until_they_come_back(
    timely: Timely, gate: threading.Event
) -> None:
    before = threading.active_count()
    for _ in range(4):
        with pytest.raises(Unavailable, match="did not answer"):
            await timely.call(gate.wait)
    for _ in range(20):
        with pytest.raises(Unavailable, match=r"the disk hangs: 4 calls are without an answer. Look after it."):
            await timely.call(lambda: 1)
    assert threading.active_count() == before + 4, "threads do not pile up"
    gate.set()
    await asyncio.sleep(0.1)
    assert threading.active_count() == before
    assert await timely.call(lambda: 1) == 1


async def test_so_many_calls_go_on_at_once_as_were_asked_for(gate: threading.Event) -> None:
    narrow = Timely("it", deadline_s=5, advice="", at_once=2)
    begun: list[int] = []

    def one() -> None:
        begun.append(1)
        gate.wait()

    asked = [asyncio.ensure_future(narrow.call(one)) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert len(begun) == 2
    gate.set()
    await asyncio.gather(*asked)
    assert len(begun) == 5


async def test_a_caller_that_goes_away_leaves_nothing_behind(timely: Timely, gate: threading.Event) -> None:
    def fails_late() -> None:
        gate.wait()
        raise Refused("nobody listens")

    for _ in range(20):
        asked = asyncio.ensure_future(timely.call(fails_late))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    gate.set()
    await asyncio.sleep(0.02)
    assert await timely.call(lambda: 1) == 1


def test_a_loop_that_ended_is_no_trouble_for_a_thread_that_comes_back() -> None:
    gate = threading.Event()
    before = threading.active_count()

    async def asks() -> None:
        with pytest.raises(Unavailable):
            await Timely("it", deadline_s=0.01, advice="").call(gate.wait)

    asyncio.run(asks())
    gate.set()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before
