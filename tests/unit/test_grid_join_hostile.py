"""Strangers between a newcomer and its grid, and in the grid's place: they learn nothing and are refused."""

import asyncio
import re
import ssl
from pathlib import Path

import pytest

from kmgr.errors import NotAllowed, Unavailable
from kmgr.grid import authority, identity
from kmgr.grid.discovery import Announcement, Announcer, browse
from kmgr.grid.exchange import Exchange, Proofs, Side
from kmgr.grid.join import TRIES
from kmgr.grid.joindesk import AT_ONCE, SILENT_FROM_ONE
from kmgr.grid.phrase import password_of
from kmgr.grid.wire import JOIN
from tests.lab.join_lab import A, Fresh, Office, opened

LOOPBACK = ["127.0.0.1"]


class Stranger:
    """A listener with a certificate of its own that speaks TLS to whoever comes; `heard` is all it could read."""

    def __init__(self, folder: Path, *, to: str = "") -> None:
        folder.mkdir()
        made = authority.web_certificate(["localhost"], now_ms=1_700_000_000_000)
        (folder / "crt").write_bytes(made.cert_pem)
        (folder / "key").write_bytes(made.key_pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "crt", folder / "key")
        self._context.set_alpn_protocols([JOIN])
        self._to = to
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.heard = b""
        self.address = ""

    async def __aenter__(self) -> "Stranger":
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.address = f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._to.split(":")
        context = authority.stranger_context(alpn=[JOIN])
        far_reader, far_writer = await asyncio.open_connection(host, int(port), ssl=context)
        for source, target in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, target))
            self._tasks.add(task)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            self.heard += data
            target.write(data)
            await target.drain()
        target.close()


class Impostor(Stranger):
    """Says that it is a server of the grid and takes part in the exchange with a phrase that it guesses."""

    guess = "zoo-zoo-zoo-zoo"
    key = b""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await self._frame(reader)
        exchange = Exchange(Side.GRID, password_of(self.guess))
        mine = b'{"half": "' + exchange.message.hex().encode() + b'"}'
        writer.write(len(mine).to_bytes(4) + mine)
        await self._frame(reader)
        # It cannot prove anything, so it repeats what it heard and hopes.
        writer.write(len(first).to_bytes(4) + first)
        self.heard += await reader.read()
        writer.close()

    async def _frame(self, reader: asyncio.StreamReader) -> bytes:
        data = await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
        self.heard += data
        return data


def leaked(heard: bytes, office: Office, phrase: str, fresh: Fresh) -> list[str]:
    """Name what a stranger should not have been able to read."""
    text = heard.decode(errors="replace")
    secrets = {
        "the phrase": phrase,
        "what it becomes": password_of(phrase).hex(),
        "the grid secret": office.own.secret.hex(),
        "the grid's CA": "BEGIN CERTIFICATE",
        "the newcomer's name": f'"{fresh.newcomer.name}"',
        "its addresses": str(fresh.newcomer.listen[1]),
    }
    # The protocol's own keys may be words of the list that phrases are drawn from: "proof" is one.
    values = re.sub(r'"\w+":', "", text)
    words = [word for word in phrase.split("-") if f'"{word}' in values or f"-{word}" in values]
    return [name for name, secret in secrets.items() if secret in text] + words


async def test_a_man_in_the_middle_is_refused_on_both_sides_and_learns_nothing(
    office: Office, tmp_path: Path
) -> None:
    phrase = await office.phrase()
    fresh = Fresh(tmp_path, "newcomer-b")
    async with Stranger(tmp_path / "middle", to=office.address) as stranger:
        with pytest.raises(NotAllowed, match="is not a server of the grid that showed it; nothing was given away"):
            await fresh.join(office, phrase, at=stranger.address)
    assert len(stranger.heard) > 200, "it was not in the middle"
    assert leaked(stranger.heard, office, phrase, fresh) == []
    assert office.names() == ["a"] and office.tries_left() == TRIES - 1
    assert identity.load(fresh.data_dir) is None and identity.unfinished(fresh.data_dir) is None
    await fresh.join(office, phrase)


async def test_a_middle_that_only_passes_bytes_on_is_a_network(office: Office, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = office.address.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                seen.append(data)
                target.write(data)
            target.close()

        await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))

    seen: list[bytes] = []
    relay = await asyncio.start_server(serve, "127.0.0.1", 0)
    phrase = await office.phrase()
    fresh = Fresh(tmp_path)
    await fresh.join(office, phrase, at=f"127.0.0.1:{relay.sockets[0].getsockname()[1]}")
    relay.close()
    assert leaked(b"".join(seen), office, phrase, fresh) == []


async def test_a_rogue_advertiser_is_found_by_mdns_and_refused(office: Office, tmp_path: Path) -> None:
    phrase = await office.phrase()
    fresh = Fresh(tmp_path, "newcomer-b")
    async with Impostor(tmp_path / "rogue") as rogue:
        announcer = Announcer(interfaces=LOOPBACK)
        await announcer.announce(Announcement("grid-1", "office", A, "a", rogue.address, "1"))
        found = await browse(2.5, interfaces=LOOPBACK)
        await announcer.stop()
        addresses = [one.grid_address for grid in found.grids for one in grid.servers if grid.grid == "grid-1"]
        assert rogue.address in addresses, "it was not heard, so nothing was tried"
        with pytest.raises((NotAllowed, Unavailable)):
            await fresh.join(office, phrase, at=rogue.address)
    assert leaked(rogue.heard, office, phrase, fresh) == []
    assert office.tries_left() == TRIES, "the grid never heard of it"
    assert identity.load(fresh.data_dir) is None and identity.unfinished(fresh.data_dir) is None


async def test_another_grid_that_calls_itself_the_same_is_refused(office: Office, tmp_path: Path) -> None:
    phrase = await office.phrase()
    async with opened(tmp_path / "evil") as evil:
        await evil.phrase()
        with pytest.raises(NotAllowed, match="not a server of the grid that showed it"):
            await Fresh(tmp_path).join(office, phrase, at=evil.address)
        assert evil.names() == ["a"]


async def test_an_error_of_a_stranger_cannot_paint_the_terminal(office: Office, tmp_path: Path) -> None:
    class Painter(Stranger):
        async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            said = b'{"error": {"class": "NotAllowed", "message": "\\u001b[31m' + b"x" * 5000 + b'"}}'
            writer.write(len(said).to_bytes(4) + said)
            await reader.read()
            writer.close()

    async with Painter(tmp_path / "painter") as painter:
        with pytest.raises(NotAllowed) as told:
            await Fresh(tmp_path).join(office, await office.phrase(), at=painter.address)
    assert "\x1b" not in told.value.message and len(told.value.message) < 1000


async def test_the_grid_proves_nothing_to_who_has_proven_nothing(office: Office) -> None:
    """Not even while it cannot count the try: a proof would tell whether a guess was right, for nothing."""
    phrase = await office.phrase()
    for majority in (True, False):
        if not majority:
            office.grid._log.cut_off.add(A)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", office.port.port, ssl=authority.stranger_context(alpn=[JOIN])
        )
        half = Exchange(Side.NEWCOMER, password_of(phrase)).message.hex()
        for said in (f'{{"half": "{half}", "version": "1"}}', '{"told": "{}", "proof": "00"}'):
            writer.write(len(said).to_bytes(4) + said.encode())
        answer = await reader.read()
        assert b'"error"' in answer and b'"proof":' not in answer
        writer.transport.abort()


def test_the_proofs_cover_certificate_words_order_and_direction() -> None:
    def pair(mine: bytes = b"cert", theirs: bytes = b"cert", said: bytes = b"said") -> tuple[Proofs, Proofs]:
        left, right = Exchange(Side.NEWCOMER, b"p" * 32), Exchange(Side.GRID, b"p" * 32)
        one = left.finish(right.message, certificate_der=mine, said=b"said")
        return one, right.finish(left.message, certificate_der=theirs, said=said)

    def passes(one: Proofs, other: Proofs) -> bool:
        return other.check(b"hello", one.prove(b"hello"))

    assert passes(*pair())
    assert not passes(*pair(theirs=b"another"))
    assert not passes(*pair(said=b"something else"))
    one, other = pair()
    first, second = one.prove(b"1"), one.prove(b"2")
    assert not other.check(b"2", second), "out of order"
    assert other.check(b"1", first) and not other.check(b"1", first), "twice"
    assert not one.check(b"2", second), "back to its sender"


async def test_strangers_that_say_nothing_keep_nobody_from_joining(office: Office, tmp_path: Path) -> None:
    host, port = office.address.split(":")
    context = authority.stranger_context(alpn=[JOIN])
    silent = [await asyncio.open_connection(host, int(port), ssl=context) for _ in range(AT_ONCE + 4)]
    await Fresh(tmp_path).join(office, await office.phrase())
    assert office.names() == ["a", "b"]
    # From one address they are few all the same.
    more = [await asyncio.open_connection(host, int(port), ssl=context) for _ in range(SILENT_FROM_ONE)]
    async with asyncio.timeout(5):
        assert b"too many servers ask to join" in await more[-1][0].read(1000)
    for _, writer in silent + more:
        writer.transport.abort()
