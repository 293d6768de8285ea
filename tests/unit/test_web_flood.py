"""Guesses by address: what is counted, for how long, and how little is remembered."""

import asyncio

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Unavailable
from kmgr.users.directory import WrongPassword
from kmgr.web.flood import MOST_ADDRESSES, MOST_WAITING, MOST_WRONG, Flood, TooMany, source_of


async def guess(flood: Flood, address: str) -> None:
    with pytest.raises(WrongPassword):
        async with flood.attempt(address):
            raise WrongPassword


async def refused(flood: Flood, address: str) -> TooMany:
    with pytest.raises(TooMany) as found:
        async with flood.attempt(address):
            raise AssertionError("it was let through")
    return found.value


async def test_an_address_waits_until_its_guesses_are_a_minute_old() -> None:
    clock = ManualClock()
    flood = Flood(clock)
    for _ in range(MOST_WRONG):
        await guess(flood, "192.0.2.1")
        await clock.advance(1)
    assert (await refused(flood, "192.0.2.1")).retry_after_s == 40
    await guess(flood, "192.0.2.2")
    await clock.advance(40)
    await guess(flood, "192.0.2.1")
    assert (await refused(flood, "192.0.2.1")).retry_after_s == 1


async def test_what_was_right_or_nobodys_fault_does_not_count() -> None:
    flood = Flood(ManualClock())
    for _ in range(2 * MOST_WRONG):
        async with flood.attempt("192.0.2.1"):
            pass
        with pytest.raises(Unavailable):
            async with flood.attempt("192.0.2.1"):
                raise Unavailable("the directory is away")
    assert len(flood) == 0


class Crowd:
    """Many log-ins from one address at once, each answered when the test says so."""

    def __init__(self, flood: Flood, size: int) -> None:
        self.flood = flood
        self.answer = asyncio.Event()
        self.at_once = self.most = 0
        self.tasks = [asyncio.create_task(self.one(n)) for n in range(size)]

    async def one(self, n: int) -> None:
        async with self.flood.attempt("192.0.2.1"):
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            await self.answer.wait()
            self.at_once -= 1
            if n % 2:
                raise WrongPassword


async def test_a_whole_school_behind_one_address_takes_turns() -> None:
    flood = Flood(ManualClock())
    crowd = Crowd(flood, 19 * 2)
    for _ in range(5):
        await asyncio.sleep(0)
    assert crowd.at_once == MOST_WRONG
    crowd.answer.set()
    said = await asyncio.gather(*crowd.tasks, return_exceptions=True)
    assert [type(one) for one in said[:4]] == [type(None), WrongPassword, type(None), WrongPassword]
    assert not any(isinstance(one, TooMany) for one in said)
    assert crowd.most == MOST_WRONG


async def test_many_guesses_at_once_get_no_more_answers_than_one_after_the_other() -> None:
    flood = Flood(ManualClock())
    crowd = Crowd(flood, 200)
    crowd.answer.set()
    said = await asyncio.gather(*crowd.tasks, return_exceptions=True)
    assert sum(isinstance(one, WrongPassword) for one in said) == MOST_WRONG
    assert sum(isinstance(one, TooMany) for one in said) > 100


async def test_the_queue_of_one_address_is_bounded() -> None:
    flood = Flood(ManualClock())
    crowd = Crowd(flood, MOST_WRONG + MOST_WAITING)
    for _ in range(5):
        await asyncio.sleep(0)
    assert "come at once from your network address" in (await refused(flood, "192.0.2.1")).message
    for task in crowd.tasks:
        task.cancel()
    await asyncio.gather(*crowd.tasks, return_exceptions=True)
    assert len(flood) == 0


async def test_memory_is_bounded_and_keeps_who_guessed_last() -> None:
    flood = Flood(ManualClock())
    await guess(flood, "198.51.100.1")
    for n in range(MOST_ADDRESSES):
        await guess(flood, f"10.0.{n >> 8}.{n & 255}")
        if n % 1000 == 0:
            for _ in range(MOST_WRONG // 5):
                await guess(flood, "192.0.2.1")
    assert len(flood) == MOST_ADDRESSES
    await refused(flood, "192.0.2.1")


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_network_of_ipv6_is_one_source(address: str, source: str) -> None:
    assert source_of(address) == source
