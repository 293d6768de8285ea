"""The grid port on loopback: who gets in, who is cut off, and what people are told."""

import asyncio
import logging
import ssl
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from kmgr.clock import ManualClock, SystemClock
from kmgr.errors import ConfigError, Unavailable
from kmgr.grid import authority, identity
from kmgr.grid.channel import MAX_FRAME
from kmgr.grid.contacts import Contacts, contacts, split_address
from kmgr.grid.fence import Greeting, read, spell
from kmgr.grid.model import Server, ServerState
from kmgr.grid.raftlink import RaftLink
from kmgr.grid.requests import GridRequests
from kmgr.grid.wire import CALL, RAFT, Connection, GridPort, Guardian
from kmgr.ids import ServerId
from tests.lab.wires import Wires

A, B, C = ServerId("srv-a"), ServerId("srv-b"), ServerId("srv-c")


@pytest.fixture
async def wires(tmp_path: Path) -> AsyncIterator[Wires]:
    wires = Wires(tmp_path)
    yield wires
    await wires.stop()


class Heard:
    """Collects what a link reports."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.frames: list[bytes] = []
        self.news = asyncio.Event()
        self.on_up: Callable[[], object] = lambda: None
        self._loop = asyncio.get_running_loop()

    def peer_up(self, server: ServerId) -> None:
        self.on_up()
        self._tell(f"{server} up")

    def peer_down(self, server: ServerId) -> None:
        self._tell(f"{server} down")

    def frame(self, server: ServerId, data: bytes) -> None:
        self.frames.append(data)
        self._loop.call_soon_threadsafe(self.news.set)

    async def until(self, count: int, *, frames: int = 0) -> None:
        async with asyncio.timeout(5):
            while len(self.said) < count or len(self.frames) < frames:
                self.news.clear()
                await self.news.wait()

    def _tell(self, text: str) -> None:
        self.said.append(text)
        self.news.set()


class Told(Guardian):
    """Collects what a server is told about its own end."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def fenced(self, words: str) -> None:
        """Note it."""
        self.told.append(words)


class Linked:
    """One server with its port, link and what it heard."""

    def __init__(self, wires: Wires, server: ServerId, clock: ManualClock | SystemClock | None = None) -> None:
        self.port = wires.port(server)
        self.heard = Heard()
        self.link = RaftLink(self.port, clock=clock or SystemClock())
        self.link.attach(self.heard)
        self.task: asyncio.Task[None] | None = None
        self.orders: deque[Callable[[], object]] = deque()
        self._over = False
        self._turning = threading.Thread(target=self._turn, daemon=True)
        self._turning.start()

    def run(self) -> None:
        self.task = asyncio.create_task(self.link.run())

    async def send(self, server: ServerId, *frames: bytes) -> list[bool]:
        """Send frames from the thread that turns the link, all before it turns again."""
        sent: Future[list[bool]] = Future()
        self.orders.append(lambda: sent.set_result([self.link.send(server, frame) for frame in frames]))
        self.link.wake()
        return await asyncio.wrap_future(sent)

    async def turned(self) -> None:
        """Return when the link was turned once more from beginning to end."""
        for _ in range(2):
            await self.send(self.port.server)

    def _turn(self) -> None:
        while not self._over:
            while self.orders:
                self.orders.popleft()()
            self.link.turn(0.05)

    async def stop(self) -> None:
        self._over = True
        self.link.wake()
        await asyncio.to_thread(self._turning.join)
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.port.stop()


@pytest.fixture
async def two(wires: Wires) -> AsyncIterator[tuple[Linked, Linked]]:
    pair = Linked(wires, A), Linked(wires, B)
    for one in pair:
        await wires.start(one.port)
        one.run()
    for one in pair:
        await one.heard.until(1)
    yield pair
    for one in pair:
        await one.stop()


async def refused(port: GridPort, context: ssl.SSLContext, data: bytes = b"\0\0\0\2{}") -> None:
    """Connect, say something, and expect to be cut off without an answer."""
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port, ssl=context)
        try:
            writer.write(data)
            async with asyncio.timeout(5):
                await reader.readexactly(1)
        finally:
            writer.transport.abort()


def context_of(wires: Wires, server: ServerId, *, alpn: str) -> ssl.SSLContext:
    place = identity.folder(wires.folder / server)
    return authority.client_context(place / "server.crt", place / "server.key", wires.ca.cert_pem, alpn=[alpn])


async def introduced(
    wires: Wires, port: GridPort, server: ServerId
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Greeting]:
    """Connect and exchange greetings by hand."""
    context = context_of(wires, server, alpn=RAFT)
    reader, writer = await asyncio.open_connection("127.0.0.1", port.port, ssl=context)
    writer.write(spell(Greeting("0")))
    return reader, writer, read(await reader.readexactly(int.from_bytes(await reader.readexactly(4))))


def ear(writer: asyncio.StreamWriter) -> asyncio.Transport:
    """Return what stops and goes on reading from a connection."""
    assert isinstance(writer.transport, asyncio.Transport)
    return writer.transport


async def test_who_shows_no_certificate_is_cut_off_unheard(wires: Wires) -> None:
    port = wires.port(A)
    GridRequests(port, clock=SystemClock())
    await wires.start(port)
    await refused(port, authority.stranger_context(alpn=[CALL]))
    await refused(port, authority.stranger_context(alpn=["http/1.1"]))


async def test_who_comes_from_another_grid_is_cut_off(wires: Wires, tmp_path: Path) -> None:
    port = wires.port(A)
    GridRequests(port, clock=SystemClock())
    await wires.start(port)
    other = Wires(tmp_path / "other")
    other.identity(B)
    context = context_of(other, B, alpn=CALL)
    context.load_verify_locations(cadata=wires.ca.cert_pem.decode())
    await refused(port, context)


async def test_a_removed_server_is_cut_off_at_once_and_stays_out(
    wires: Wires, two: tuple[Linked, Linked], caplog: pytest.LogCaptureFixture
) -> None:
    a, b = two
    wires.removed = frozenset({B})
    with caplog.at_level(logging.WARNING):
        a.port.refresh()
        await a.heard.until(2)
        await b.heard.until(2)
        assert a.heard.said == ["srv-b up", "srv-b down"]
        for _ in range(2):
            reader, writer, greeting = await introduced(wires, a.port, B)
            assert greeting.refused is not None
            assert "kmgr reset" in greeting.refused[1]
            assert await reader.read(1) == b""
            writer.close()
        with pytest.raises(Unavailable, match=r"refuses this one: this server was removed"):
            await b.port.dial_raft(A)
    causes = [r.cause for r in caplog.records if hasattr(r, "cause")]
    assert len(causes) == 1
    assert "removed from the grid" in causes[0]
    assert any("this server was removed" in text for text in b.port.problems())


async def test_a_removed_server_speaks_of_the_log_until_its_vote_has_ended_and_of_nothing_else(
    wires: Wires, two: tuple[Linked, Linked]
) -> None:
    a, b = two
    told: list[str] = []
    b.port.guardian = Told(told)
    GridRequests(a.port, clock=SystemClock())
    wires.removed = wires.leaving = frozenset({B})
    a.port.refresh()
    assert await b.send(A, b"the last of the log") == [True]
    await a.heard.until(1, frames=1)
    with pytest.raises(Unavailable, match=r"this server is being removed"):
        await b.port.dial(A, CALL)
    assert told == []
    wires.leaving = frozenset()
    a.port.refresh()
    await b.heard.until(2)
    with pytest.raises(Unavailable, match=r"this server was removed from the grid"):
        await b.port.dial_raft(A)
    assert "kmgr reset" in told[0]


async def test_rubbish_ends_the_connection_and_is_logged_once(wires: Wires, caplog: pytest.LogCaptureFixture) -> None:
    port = wires.port(A)
    GridRequests(port, clock=SystemClock())
    await wires.start(port)
    wires.identity(B)
    with caplog.at_level(logging.WARNING):
        for rubbish in (b"\0\0\0\2[]", b"\xff\xff\xff\xff", b"\0\0\0\2{}", b"\0\0\0\1x"):
            await refused(port, context_of(wires, B, alpn=CALL), rubbish)
    assert len(caplog.records) == 1


async def test_a_port_in_use_says_so(wires: Wires) -> None:
    port = wires.port(A)
    await wires.start(port)
    with pytest.raises(ConfigError, match="in use by another program"):
        await wires.port(B).start("127.0.0.1", port.port)


async def test_another_server_at_an_address_is_not_taken_for_the_one(wires: Wires) -> None:
    a, c = wires.port(A), wires.port(C)
    await wires.start(a)
    await wires.start(c)
    wires.addresses[B] = wires.addresses[C]
    with pytest.raises(Unavailable, match=r"b \(127.*srv-c answers"):
        await a.dial(B, CALL)


async def test_an_unreachable_server_is_named_with_its_address(wires: Wires) -> None:
    a = wires.port(A)
    wires.addresses[B] = "127.0.0.1:1"
    with pytest.raises(Unavailable, match=r"b \(127\.0\.0\.1:1\) cannot be reached: nothing listens"):
        await a.dial(B, CALL)
    wires.addresses[B] = "nonsense"
    with pytest.raises(Unavailable, match="host:port"):
        await a.dial(B, CALL)
    with pytest.raises(Unavailable, match="no address"):
        await a.dial(C, CALL)


async def test_frames_arrive_whole_and_in_order(two: tuple[Linked, Linked]) -> None:
    a, b = two
    sent = [bytes([n]) * (1 + n * 1000) for n in range(50)] + [b"z" * MAX_FRAME]
    assert all(await a.send(B, *sent))
    await b.heard.until(1, frames=51)
    assert b.heard.frames == sent
    assert await b.send(A, b"back") == [True]
    await a.heard.until(1, frames=1)
    assert await a.send(C, b"nobody") == [False]


async def test_a_full_queue_drops_the_frame_and_says_so(two: tuple[Linked, Linked]) -> None:
    a, _ = two
    assert await a.send(B, *[b"x" * MAX_FRAME] * 3) == [True, False, False]


async def test_a_server_that_reads_nothing_holds_up_nobody_else(wires: Wires) -> None:
    a, c = Linked(wires, A), Linked(wires, C)
    for one in (a, c):
        await wires.start(one.port)
        one.run()
    await c.heard.until(1)
    wires.identity(B)
    _, writer, _ = await introduced(wires, a.port, B)
    ear(writer).pause_reading()
    await a.heard.until(2)
    # More than the kernel takes: the rest stays queued until the queue is full.
    while all(await a.send(B, b"x" * MAX_FRAME)):
        pass
    assert await a.send(C, b"meanwhile") == [True]
    await c.heard.until(1, frames=1)
    writer.transport.abort()
    await a.heard.until(3)
    await a.stop()
    await c.stop()


async def test_what_did_not_fit_follows_when_there_is_room(wires: Wires) -> None:
    a = Linked(wires, A)
    await wires.start(a.port)
    wires.identity(B)
    reader, writer, _ = await introduced(wires, a.port, B)
    await a.heard.until(1)
    assert await reader.readexactly(4) == bytes(4)
    ear(writer).pause_reading()
    assert await a.send(B, b"x" * MAX_FRAME) == [True]
    await asyncio.sleep(0.2)
    ear(writer).resume_reading()
    assert await reader.readexactly(MAX_FRAME + 4) == MAX_FRAME.to_bytes(4) + b"x" * MAX_FRAME
    writer.transport.abort()
    await a.stop()


async def test_what_is_sent_the_moment_a_connection_stands_may_be_more_than_fits(wires: Wires) -> None:
    a = Linked(wires, A)
    await wires.start(a.port)
    wires.identity(B)

    def send_at_once() -> None:
        a.orders.append(lambda: a.link.send(B, b"x" * MAX_FRAME))
        a.link.wake()
        time.sleep(0.2)  # the turning thread has its chance before the connection is all in place

    a.heard.on_up = send_at_once
    reader, writer, _ = await introduced(wires, a.port, B)
    assert await reader.readexactly(MAX_FRAME + 8) == bytes(4) + MAX_FRAME.to_bytes(4) + b"x" * MAX_FRAME
    writer.transport.abort()
    await a.stop()


async def test_a_link_that_nobody_turns_any_more_takes_on_nothing(two: tuple[Linked, Linked]) -> None:
    a, b = two
    b.link.close()
    await a.heard.until(2)
    await b.heard.until(2)
    assert b.link.connected() == frozenset()
    with pytest.raises(OSError, match=r".*"):
        # The port welcomes it, for the log may begin anew, but nothing stands.
        connection = await a.port.dial_raft(B)
        try:
            assert await connection.line.read_exactly(4) == bytes(4)
            await connection.line.read_exactly(1)
        except EOFError as error:
            raise OSError from error
        finally:
            connection.line.close()


async def test_a_broken_connection_is_made_anew(two: tuple[Linked, Linked]) -> None:
    a, b = two
    b.port.refresh()
    for channel in list(b.link._channels.values()):
        channel.line.cut()
    await a.heard.until(3)
    await b.heard.until(3)
    assert a.heard.said == ["srv-b up", "srv-b down", "srv-b up"]
    assert await a.send(B, b"again") == [True]
    await b.heard.until(3, frames=1)


async def test_the_other_side_dials_when_the_first_does_not_know_it(wires: Wires) -> None:
    clock = ManualClock()
    a, b = Linked(wires, A), Linked(wires, B, clock)
    await wires.start(a.port)
    b.run()
    await clock.advance(0)
    await clock.advance(1.9)
    assert b.link.connected() == frozenset()
    await clock.advance(0.3)
    await b.heard.until(1)
    await a.heard.until(1)
    await b.stop()
    await a.stop()


async def test_a_server_that_says_nothing_is_cut_off_within_three_seconds(wires: Wires) -> None:
    clock = ManualClock()
    a = Linked(wires, A, clock)
    await wires.start(a.port)
    a.run()
    wires.identity(B)
    reader, writer, _ = await introduced(wires, a.port, B)
    await a.heard.until(1)
    for _ in range(14):
        await clock.advance(0.2)
        await a.turned()
    await a.heard.until(2)
    assert a.heard.said == ["srv-b up", "srv-b down"]
    with pytest.raises(ConnectionError):
        while await reader.read(1000):
            pass
        raise ConnectionError
    writer.transport.abort()
    await a.stop()


async def test_a_frame_that_is_too_long_is_never_read(wires: Wires) -> None:
    a = Linked(wires, A)
    await wires.start(a.port)
    wires.identity(B)
    reader, writer, _ = await introduced(wires, a.port, B)
    writer.write((MAX_FRAME + 1).to_bytes(4))
    await a.heard.until(2)
    writer.transport.abort()
    await a.stop()
    assert reader is not None


async def test_a_newer_connection_replaces_the_older(wires: Wires) -> None:
    a = Linked(wires, A)
    await wires.start(a.port)
    wires.identity(B)
    writers = []
    for count in (1, 2):
        _, writer, _ = await introduced(wires, a.port, B)
        writers.append(writer)
        await a.heard.until(count)
    assert a.heard.said == ["srv-b up", "srv-b up"]
    for writer in writers:
        writer.transport.abort()
    await a.heard.until(3)
    await a.stop()


async def test_a_pooled_connection_that_died_is_replaced_unnoticed(wires: Wires) -> None:
    ports = [wires.port(A), wires.port(B)]
    a, b = (GridRequests(port, clock=SystemClock()) for port in ports)
    for port in ports:
        await wires.start(port)
    served: list[Connection] = []

    async def echo(peer: ServerId, body: object) -> dict[str, str]:
        return {"from": peer}

    b.serve("echo", echo)
    assert await a.call(B, "echo", {})
    ports[1]._cut(A, CALL)
    assert await a.call(B, "echo", {}) == {"from": A}
    assert not served
    a.close()


def test_contacts_come_from_the_state_and_before_it_from_the_join() -> None:
    def server(id: ServerId, state: ServerState) -> Server:
        return Server(id, id[4:], f"{id}:1", "", state, "", "", 0, 0)

    found = contacts([server(A, ServerState.UP), server(B, ServerState.REMOVED)], {A: "old:1", B: "b:1", C: "c:1"})
    assert found == Contacts({A: "srv-a:1", C: "c:1"}, {A: "a"}, frozenset({B}))
    assert found.admits(C)
    assert not found.admits(B)


@pytest.mark.parametrize(
    ("text", "parts"), [("a:1", ("a", 1)), ("[::1]:8440", ("::1", 8440)), ("10.0.0.1:65535", ("10.0.0.1", 65535))]
)
def test_an_address_is_split(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts


@pytest.mark.parametrize("text", ["", "a", "a:", ":1", "a:b", "a:0", "a:65536", "a:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(text)
