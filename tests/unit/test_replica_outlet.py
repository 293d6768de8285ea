"""How much waits in a connection on which pieces are sent: more only where it is soon gone."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from kmgr.grid.port import Stream
from kmgr.replica.outlet import AHEAD_S, LEAST, MOST, Outlet, waiting

MBIT = 1e6 / 8


@pytest.fixture
async def stream() -> AsyncIterator[Stream]:
    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.close()

    held = asyncio.Event()
    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    yield Stream(reader, writer)
    held.set()
    writer.close()
    server.close()
    await server.wait_closed()


def allowed(stream: Stream) -> int:
    found: int = stream.writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
    return found


@pytest.mark.parametrize("mbit", [1, 50, 200, 400, 700, 1000, 10_000])
def test_what_waits_is_gone_in_a_moment_or_is_the_least(mbit: float) -> None:
    found = waiting(mbit * MBIT)
    assert found == LEAST or found <= mbit * MBIT * AHEAD_S
    assert LEAST <= found <= MOST


def test_a_full_gigabit_is_worth_more_than_a_share_of_it() -> None:
    assert waiting(940 * MBIT) == MOST
    assert waiting(940 / 7 * MBIT) == waiting(200 * MBIT) == LEAST


async def test_a_connection_begins_with_little_and_gets_more_while_it_is_quick(stream: Stream) -> None:
    outlet = Outlet(stream)
    assert allowed(stream) == LEAST
    for turn in range(21):
        outlet.sent(MOST, now=turn * MOST / (1000 * MBIT))
    assert allowed(stream) == MOST


async def test_a_connection_that_was_idle_or_became_slow_has_little_again(stream: Stream) -> None:
    outlet = Outlet(stream)
    for turn in range(21):
        outlet.sent(MOST, now=turn * MOST / (1000 * MBIT))
    for turn in range(21):
        outlet.sent(MOST, now=10 + turn * MOST / (1000 * MBIT))
        if turn == 8:
            assert allowed(stream) == LEAST
    assert allowed(stream) == MOST
    for turn in range(21):
        outlet.sent(MOST, now=20 + turn * MOST / (80 * MBIT))
    assert allowed(stream) == LEAST


async def test_a_clock_that_stands_or_goes_back_changes_nothing(stream: Stream) -> None:
    outlet = Outlet(stream)
    for now in (5.0, 5.0, 4.0, 3.0, 2.0):
        outlet.sent(16 * MOST, now=now)
    assert allowed(stream) == LEAST
