"""Requests between servers: the same promises in memory and over TLS on loopback."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from kmgr.clock import SystemClock
from kmgr.errors import Conflict, KmgrError, NotAllowed, NotFound, Refused, Unavailable
from kmgr.grid.local import LocalNetwork
from kmgr.grid.port import Accept, Requests
from kmgr.grid.requests import GridRequests
from kmgr.ids import ServerId
from tests.lab.wires import Wires

A, B, C = ServerId("srv-a"), ServerId("srv-b"), ServerId("srv-c")
Body = Mapping[str, Any]


class Pair(Protocol):
    """Two servers' requests and a way to make the second unreachable."""

    @property
    def a(self) -> Requests: ...
    @property
    def b(self) -> Requests: ...

    async def lose_b(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.network = LocalNetwork()
        self.a, self.b = self.network.port(A), self.network.port(B)

    async def lose_b(self) -> None:
        self.network.down.add(B)


class OverTls:
    def __init__(self, folder: Path) -> None:
        self.wires = Wires(folder)
        self.ports = [self.wires.port(A), self.wires.port(B)]
        self.a, self.b = (GridRequests(port, clock=SystemClock()) for port in self.ports)

    async def lose_b(self) -> None:
        await self.ports[1].stop()


@pytest.fixture(params=["memory", "tls"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    if request.param == "memory":
        yield InMemory()
        return
    over = OverTls(tmp_path)
    for port in over.ports:
        await over.wires.start(port)
    yield over
    over.a.close()
    over.b.close()
    await over.wires.stop()


async def echo(peer: ServerId, body: Body) -> Body:
    return {"from": peer, "got": dict(body)}


def failing(error: Exception) -> Callable[[ServerId, Body], Awaitable[Body]]:
    async def handler(peer: ServerId, body: Body) -> Body:
        raise error

    return handler


async def test_a_call_is_answered_and_names_its_caller(pair: Pair) -> None:
    pair.b.serve("echo", echo)
    for number in range(3):
        assert await pair.a.call(B, "echo", {"n": number, "text": "ä"}) == {
            "from": A,
            "got": {"n": number, "text": "ä"},
        }


async def test_a_server_may_call_itself(pair: Pair) -> None:
    pair.a.serve("echo", echo)
    assert (await pair.a.call(A, "echo", {}))["from"] == A


async def test_many_calls_at_once_keep_their_answers_apart(pair: Pair) -> None:
    pair.b.serve("echo", echo)
    answers = await asyncio.gather(*(pair.a.call(B, "echo", {"n": n}) for n in range(20)))
    assert [answer["got"]["n"] for answer in answers] == list(range(20))


@pytest.mark.parametrize("kind", [NotFound, Conflict, NotAllowed, Unavailable])
async def test_an_error_arrives_in_its_own_class_with_its_words(pair: Pair, kind: type[KmgrError]) -> None:
    pair.b.serve("fail", failing(kind("the words")))
    pair.b.serve("echo", echo)
    with pytest.raises(kind, match="the words") as caught:
        await pair.a.call(B, "fail", {})
    assert type(caught.value) is kind
    assert await pair.a.call(B, "echo", {})


async def test_a_stable_code_survives_the_way(pair: Pair) -> None:
    pair.b.serve("fail", failing(Refused("no", code="none_ready")))
    with pytest.raises(Refused) as caught:
        await pair.a.call(B, "fail", {})
    assert caught.value.code == "none_ready"


async def test_a_bug_of_the_handler_reaches_the_caller_as_one(pair: Pair) -> None:
    pair.b.serve("fail", failing(KeyError("size")))
    with pytest.raises(KmgrError, match="KeyError") as caught:
        await pair.a.call(B, "fail", {})
    assert caught.value.code == "bug"


async def test_an_unknown_operation_is_not_found(pair: Pair) -> None:
    for ask in (pair.a.call, pair.a.open):
        with pytest.raises(NotFound, match="'nothing'"):
            await ask(B, "nothing", {})


async def test_a_server_that_is_gone_is_unavailable(pair: Pair) -> None:
    pair.b.serve("echo", echo)
    assert await pair.a.call(B, "echo", {})
    await pair.lose_b()
    for ask in (pair.a.call, pair.a.open):
        with pytest.raises(Unavailable, match="cannot be reached"):
            await ask(B, "echo", {})
        with pytest.raises(Unavailable, match="cannot be reached"):
            await ask(C, "echo", {})


async def test_a_handler_that_is_too_slow_is_given_up(pair: Pair) -> None:
    asleep = asyncio.Event()

    async def slow(peer: ServerId, body: Body) -> Body:
        await asleep.wait()
        return {}

    async def slow_stream(peer: ServerId, body: Body, accept: Accept) -> None:
        await asleep.wait()

    pair.b.serve("slow", slow)
    pair.b.serve_stream("slow", slow_stream)
    for ask in (pair.a.call, pair.a.open):
        with pytest.raises(Unavailable, match="did not answer within"):
            await ask(B, "slow", {}, timeout_s=0.05)
    asleep.set()


async def test_a_body_that_is_too_large_is_refused_both_ways(pair: Pair) -> None:
    pair.b.serve("echo", echo)

    async def much(peer: ServerId, body: Body) -> Body:
        return {"x": "y" * (1 << 20)}

    pair.b.serve("much", much)
    with pytest.raises(Refused, match="stream"):
        await pair.a.call(B, "echo", {"x": "y" * (1 << 20)})
    with pytest.raises(Refused, match="stream"):
        await pair.a.call(B, "much", {})
    assert len((await pair.a.call(B, "echo", {"x": "y" * 1_000_000}))["got"]["x"]) == 1_000_000


async def test_a_stream_carries_bytes_both_ways_until_the_handler_returns(pair: Pair) -> None:
    async def reverse(peer: ServerId, body: Body, accept: Accept) -> None:
        assert (peer, body) == (A, {"times": 2})
        stream = await accept()
        for _ in range(body["times"]):
            line = await stream.reader.readline()
            stream.writer.write(line[::-1].strip() + b"\n")
            await stream.writer.drain()

    pair.b.serve_stream("reverse", reverse)
    stream = await pair.a.open(B, "reverse", {"times": 2})
    for _ in range(2):
        stream.writer.write(b"abc\n")
        assert await stream.reader.readline() == b"cba\n"
    assert await stream.reader.read() == b""
    stream.writer.close()


async def test_a_stream_may_be_opened_to_this_server_itself(pair: Pair) -> None:
    async def hello(peer: ServerId, body: Body, accept: Accept) -> None:
        stream = await accept()
        stream.writer.write(peer.encode())

    pair.a.serve_stream("hello", hello)
    stream = await pair.a.open(A, "hello", {})
    assert await stream.reader.read() == A.encode()
    stream.writer.close()


async def test_much_data_arrives_whole_even_when_the_reader_is_late(pair: Pair) -> None:
    block = bytes(range(256)) * 4096

    async def blocks(peer: ServerId, body: Body, accept: Accept) -> None:
        stream = await accept()
        for _ in range(8):
            stream.writer.write(block)
            await stream.writer.drain()

    pair.b.serve_stream("blocks", blocks)
    stream = await pair.a.open(B, "blocks", {})
    await asyncio.sleep(0)
    for _ in range(8):
        assert await stream.reader.readexactly(len(block)) == block
    assert await stream.reader.read() == b""
    stream.writer.close()


async def test_a_stream_refused_before_it_began_raises_the_refusal(pair: Pair) -> None:
    async def refuse(peer: ServerId, body: Body, accept: Accept) -> None:
        raise NotAllowed("not yours")

    async def forget(peer: ServerId, body: Body, accept: Accept) -> None:
        return

    pair.b.serve_stream("refuse", refuse)
    pair.b.serve_stream("forget", forget)
    with pytest.raises(NotAllowed, match="not yours"):
        await pair.a.open(B, "refuse", {})
    with pytest.raises(NotFound, match="before it began"):
        await pair.a.open(B, "forget", {})


async def test_open_returns_only_when_the_handler_has_accepted(pair: Pair) -> None:
    gate = asyncio.Event()

    async def later(peer: ServerId, body: Body, accept: Accept) -> None:
        await gate.wait()
        await accept()

    pair.b.serve_stream("later", later)
    opening = asyncio.create_task(pair.a.open(B, "later", {}))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not opening.done()
    gate.set()
    (await opening).writer.close()


async def test_the_handler_notices_that_its_caller_hung_up(pair: Pair) -> None:
    ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(peer: ServerId, body: Body, accept: Accept) -> None:
        stream = await accept()
        ended.set_result(await stream.reader.read())

    pair.b.serve_stream("listen", listen)
    stream = await pair.a.open(B, "listen", {})
    stream.writer.write(b"bye")
    stream.writer.close()
    with contextlib.suppress(ConnectionError):
        await stream.writer.wait_closed()
    async with asyncio.timeout(5):
        assert await ended == b"bye"


async def test_a_caller_who_is_stopped_as_its_stream_opens_leaves_no_open_end(pair: Pair) -> None:
    ended = asyncio.Event()

    async def tell(peer: ServerId, body: Body, accept: Accept) -> None:
        stream = await accept()
        asking.cancel()
        with contextlib.suppress(ConnectionError):  # or in order, as it happens
            await stream.reader.read()
        ended.set()

    pair.b.serve_stream("tell", tell)
    asking = asyncio.create_task(pair.a.open(B, "tell", {}))
    with pytest.raises(asyncio.CancelledError):
        await asking
    async with asyncio.timeout(10):
        await ended.wait()
