"""What strangers and former members do to the grid port: a word for each, bounded, and the log goes on meanwhile."""

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from kmgr.clock import SystemClock
from kmgr.grid import authority, gate, identity
from kmgr.grid.channel import MAX_FRAME
from kmgr.grid.fence import MOST_BYTES, PROTOCOL, Greeting, read, spell
from kmgr.grid.requests import GridRequests
from kmgr.grid.wire import CALL, JOIN, GridPort
from kmgr.ids import ServerId
from tests.contract.test_raft_over_tls import Grids
from tests.lab.certificates import TestAuthority
from tests.lab.raft_lab import A, B, put
from tests.lab.wires import Wires

CALM_S = 2.0


@pytest.fixture
async def wires(tmp_path: Path) -> AsyncIterator[Wires]:
    wires = Wires(tmp_path)
    yield wires
    await wires.stop()


@pytest.fixture
async def port(wires: Wires) -> GridPort:
    port = wires.port(A)
    GridRequests(port, clock=SystemClock())
    port.handle_raft(lambda _: asyncio.sleep(60))
    await wires.start(port)
    return port


def credentials(wires: Wires, server: ServerId, *, alpn: str = CALL) -> ssl.SSLContext:
    place = identity.folder(wires.folder / server)
    return authority.client_context(place / "server.crt", place / "server.key", wires.ca.cert_pem, alpn=[alpn])


async def told(port: GridPort, words: str) -> str:
    """Wait until the console would show a problem with these words, and return it."""
    async with asyncio.timeout(10):
        while True:
            for problem in port.problems():
                if words in problem:
                    return problem
            await asyncio.sleep(0.02)


async def is_cut_off(port: GridPort, context: ssl.SSLContext | None, data: bytes) -> None:
    """Connect, say something, and hear nothing but the end."""
    with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port, ssl=context)
        try:
            writer.write(data)
            async with asyncio.timeout(gate.HANDSHAKE_S + 3):
                # A refused TLS handshake is answered by one alert, a refused member by one greeting.
                assert len(await reader.read(1 << 16)) < MOST_BYTES
                assert await reader.read(1) == b""
        finally:
            writer.transport.abort()


async def still_serves(wires: Wires, port: GridPort) -> None:
    other = wires.port(B)
    connection = await other.dial(A, CALL)
    assert connection.greeting is not None
    connection.cut()


async def test_garbage_instead_of_tls(wires: Wires, port: GridPort) -> None:
    chance = random.Random(1)  # noqa: S311 - the same bytes each time
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", chance.randbytes(4000), b"SSH-2.0-x\r\n"):
        await is_cut_off(port, None, data)
    assert "does not speak TLS" in await told(port, "127.0.0.1")
    await still_serves(wires, port)


async def test_a_client_without_certificate_and_one_of_a_web_site(wires: Wires, port: GridPort) -> None:
    await is_cut_off(port, authority.stranger_context(alpn=[CALL]), spell(Greeting("0")))
    await told(port, "showed no certificate of this grid")
    cert, key = TestAuthority().issue("example.org")
    place = wires.folder / "foreign"
    place.mkdir()
    (place / "crt").write_text(cert)
    (place / "key").write_text(key)
    context = authority.client_context(place / "crt", place / "key", wires.ca.cert_pem, alpn=[CALL])
    await is_cut_off(port, context, spell(Greeting("0")))
    await told(port, "its certificate is not one of this grid")
    await still_serves(wires, port)


async def test_a_server_of_another_grid(wires: Wires, port: GridPort, tmp_path: Path) -> None:
    other = Wires(tmp_path / "other", "factory")
    other.identity(B)
    context = credentials(other, B)
    context.load_verify_locations(cadata=wires.ca.cert_pem.decode())
    await is_cut_off(port, context, spell(Greeting("0")))
    assert "not one of this grid" in await told(port, "127.0.0.1")


async def test_a_members_certificate_after_its_removal(
    wires: Wires, port: GridPort, caplog: pytest.LogCaptureFixture
) -> None:
    wires.identity(B)
    wires.removed = frozenset({B})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port.port, ssl=credentials(wires, B))
            writer.write(spell(Greeting("0")))
            said = read(await reader.readexactly(int.from_bytes(await reader.readexactly(4))))
            assert said.refused is not None
            assert "removed from the grid" in said.refused[1]
            assert await reader.read(1) == b""
            writer.close()
    assert "removed from the grid" in await told(port, B)
    assert len(caplog.records) == 1


async def test_a_certificate_that_has_run_out_is_no_outage(wires: Wires, port: GridPort) -> None:
    # Membership decides who may speak, not dates: a server that slept for ten years may come back.
    old = authority.new_key()
    request = authority.certificate_request(old, B)
    cert = authority.sign_request(request, B, wires.ca, now_ms=0)
    place = wires.folder / "old"
    place.mkdir()
    (place / "crt").write_bytes(cert)
    (place / "key").write_bytes(old)
    context = authority.client_context(place / "crt", place / "key", wires.ca.cert_pem, alpn=[CALL])
    reader, writer = await asyncio.open_connection("127.0.0.1", port.port, ssl=context)
    writer.write(spell(Greeting("0")))
    said = read(await reader.readexactly(int.from_bytes(await reader.readexactly(4))))
    assert said.refused is None
    writer.transport.abort()


async def test_another_version_of_the_protocol_is_named_on_both_sides(wires: Wires, port: GridPort) -> None:
    wires.identity(B)
    reader, writer = await asyncio.open_connection("127.0.0.1", port.port, ssl=credentials(wires, B))
    writer.write(spell(Greeting("9.9", protocol=PROTOCOL + 1)))
    said = read(await reader.readexactly(int.from_bytes(await reader.readexactly(4))))
    assert said.refused is not None
    assert said.refused[0] == "version"
    assert "install the same version" in said.refused[1]
    assert "kmgr 9.9" in await told(port, "install the same version")
    writer.transport.abort()


@pytest.mark.parametrize(
    "rubbish",
    [
        (MOST_BYTES + 1).to_bytes(4) + b"x" * (MOST_BYTES + 1),
        b"\xff\xff\xff\xff",
        b"\0\0\0\2{}",
        b"\0\0\0\3[1]",
        spell(Greeting("0"))[:-3] + b"}}}",
        spell(Greeting("0")) + b"\0\0\0\2[]",
        spell(Greeting("0")) + b"\x7f\xff\xff\xff",
        spell(Greeting("0")) + b"\0\0\0\x10" + b"\xff" * 16,
    ],
)
async def test_rubbish_from_a_member_cuts_it_off_with_a_word(wires: Wires, port: GridPort, rubbish: bytes) -> None:
    wires.identity(B)
    await is_cut_off(port, credentials(wires, B), rubbish)
    await told(port, B)


async def test_a_member_that_stops_in_the_middle_is_not_waited_for(wires: Wires, port: GridPort) -> None:
    wires.identity(B)
    began = time.monotonic()
    await is_cut_off(port, credentials(wires, B), b"\0\0")
    await is_cut_off(port, credentials(wires, B), spell(Greeting("0")) + b"\0\0\1\0{")
    assert time.monotonic() - began < 2 * gate.HANDSHAKE_S + 4


async def test_half_open_connections_are_few_and_short(wires: Wires, port: GridPort) -> None:
    connections = [await asyncio.open_connection("127.0.0.1", port.port) for _ in range(gate.AT_ONCE_FROM_ONE + 40)]
    began = time.monotonic()
    await told(port, "too many connections")
    ended = await asyncio.gather(*(_end_of(reader) for reader, _ in connections))
    took = time.monotonic() - began
    early = sum(1 for at in ended if at - began < gate.HANDSHAKE_S / 2)
    assert early >= 40
    assert took < gate.HANDSHAKE_S + 3
    for _, writer in connections:
        writer.transport.abort()
    await asyncio.sleep(0.1)
    await still_serves(wires, port)


async def test_strangers_that_take_all_places_do_not_keep_a_member_out(wires: Wires, port: GridPort) -> None:
    other = wires.port(B)
    # As from a machine of its own: the table says that B is there.
    wires.addresses[B] = "127.0.0.1:1"
    async with contextlib.AsyncExitStack() as stack:
        for number in range(gate.AT_ONCE + 20):
            source = (f"127.0.9.{number % 3 + 1}", 0)
            _, writer = await asyncio.open_connection("127.0.0.1", port.port, local_addr=source)
            stack.callback(writer.transport.abort)
        await told(port, "too many connections")
        began = time.monotonic()
        connection = await other.dial(A, CALL)
        assert time.monotonic() - began < gate.HANDSHAKE_S
        connection.cut()


async def _end_of(reader: asyncio.StreamReader) -> float:
    with contextlib.suppress(ConnectionError):
        await reader.read()
    return time.monotonic()


# ── the log meanwhile ──


class Crowd:
    """Threads that trouble a port until they are told to stop."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.done = 0

    def __enter__(self) -> "Crowd":
        for trouble in (self._half_open, self._drip, self._garbage, self._hello):
            thread = threading.Thread(target=self._run, args=(trouble,))
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)

    def _run(self, trouble: Callable[[], Iterator[None]]) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                for _ in trouble():
                    if self._over.is_set():
                        return

    def _connected(self) -> socket.socket:
        self.done += 1
        return socket.create_connection(("127.0.0.1", self._port), timeout=2)

    def _half_open(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(self._connected())
                yield
            self._over.wait(0.5)

    def _drip(self) -> Iterator[None]:
        with self._connected() as slow:
            for byte in b"\x16\x03\x01\x02\x00\x01\x00":
                slow.send(bytes((byte,)))
                self._over.wait(0.2)
                yield

    def _garbage(self) -> Iterator[None]:
        with self._connected() as rude:
            rude.send(random.Random(self.done).randbytes(20_000))  # noqa: S311 - no secret
            self._over.wait(0.02)
            yield

    def _hello(self) -> Iterator[None]:
        context = authority.stranger_context(alpn=[JOIN])
        with self._connected() as raw, context.wrap_socket(raw) as tls:
            tls.send((MAX_FRAME * 4).to_bytes(4) + b"x" * 1000)
            self._over.wait(0.05)
            yield


async def latencies(grids: Grids, seconds: float) -> list[float]:
    found, deadline, value = [], time.monotonic() + seconds, 1001
    leader = next(one.grid for one in grids.servers.values() if one.grid.status().is_leader)
    while time.monotonic() < deadline:
        began = time.monotonic()
        value = 1001 + (value - 1000) % 900
        await put(leader, value)
        found.append(time.monotonic() - began)
    return sorted(found)


async def test_a_crowd_at_the_port_does_not_hold_up_the_log(tmp_path: Path) -> None:
    grids = Grids(tmp_path)
    await grids.begin()
    leader = next(one for one in grids.servers.values() if one.grid.status().is_leader)
    term = leader.grid.status().term
    calm = await latencies(grids, CALM_S)
    with Crowd(leader.port.port) as crowd:
        busy = await latencies(grids, 3 * CALM_S)
    print(
        f"commits: calm median {1000 * statistics.median(calm):.1f} ms of {len(calm)}, under attack of {crowd.done} "
        f"connections median {1000 * statistics.median(busy):.1f} ms, worst {1000 * busy[-1]:.0f} ms of {len(busy)}"
    )
    assert crowd.done > 100
    # One election at most: all three servers live in this process, which other lanes of tests may hold up.
    assert leader.grid.status().majority
    assert leader.grid.status().term <= term + 1
    assert statistics.median(busy) < 10 * statistics.median(calm)
    # Beside what else this machine does: other lanes of tests may make it as slow.
    assert busy[int(0.99 * len(busy))] < max(0.5, 10 * calm[int(0.99 * len(calm))])
    for wired in grids.servers.values():
        await wired.end()
    await grids.wires.stop()
    assert grids.fatal == []
