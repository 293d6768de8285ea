"""Downloads from servers that do what they should not: each is refused, begun anew or given up, in words."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import KmgrError, Refused, Unavailable
from kmgr.replica.images import Images, Room
from kmgr.templates.addresses import Answer
from kmgr.templates.arrivals import Arrivals
from kmgr.templates.arriving import Arrival, Way
from kmgr.templates.download import TRIES, WINDOW_S, Downloader, Open
from kmgr.web.outgoing import WebOutgoing

MIB = 1 << 20
URL = "http://there.example/office.raw"
DATA = bytes(range(256)) * 1000


@dataclass(slots=True)
class Said:
    """One answer: `breaks` tells that the connection ends too early."""

    status: int = 200
    body: bytes = b""
    breaks: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class There:
    """Another server. `answers` are given one after the other, the last one for ever."""

    def __init__(self, *answers: Said) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    @asynccontextmanager
    async def get(self, url: str, *, start: int, etag: str, own: bool) -> AsyncIterator[Open]:
        self.asked.append((url, start))
        said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        yield Open(Answer(said.status, said.headers), self._chunks(said))

    async def _chunks(self, said: Said) -> AsyncIterator[bytes]:
        for at in range(0, len(said.body), 10_000):
            yield said.body[at : at + 10_000]
        if said.breaks:
            raise Unavailable("the download broke off", code="remote")


class Bench:
    """A server's arrivals, and a download into one of them."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.room = Room(free_bytes=1 << 40, total_bytes=1 << 41)
        self.arrivals = Arrivals(Images(folder, measure=lambda _: self.room), self.clock, keep_hours=lambda: 24)

    async def fetch(self, there: There, *, url: str = URL) -> bytes:
        """Fetch all of it, however long that takes on the clock; return what came."""
        new = Arrival("arr-1", Way.URL, "office", "anna", self.clock.now_ms(), self.clock.now_ms(), url=url)
        await self.arrivals.create(new)
        work = asyncio.create_task(Downloader(there, self.clock, own_allowed=lambda: False)(self.arrivals, "arr-1"))
        while not work.done():
            await asyncio.wait({work}, timeout=0.02)
            await self.clock.advance(60)
        await work
        return self.arrivals.path("arr-1").read_bytes()

    async def refusal(self, there: There, kind: type[KmgrError] = Refused, *, url: str = URL) -> str:
        with pytest.raises(kind) as caught:
            await self.fetch(there, url=url)
        return caught.value.message


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def whole(data: bytes = DATA, *, cut: int | None = None) -> Said:
    return Said(200, data[:cut], breaks=cut is not None, headers={"content-length": str(len(data))})


def rest(start: int, data: bytes = DATA, *, cut: int | None = None, size: int | None = None) -> Said:
    told = {"content-range": f"bytes {start}-{len(data) - 1}/{len(data) if size is None else size}"}
    return Said(206, data[start:cut], breaks=cut is not None, headers=told)


async def test_what_broke_off_goes_on_and_is_whole(bench: Bench) -> None:
    there = There(whole(cut=100_000), rest(100_000, cut=200_000), rest(200_000))
    assert await bench.fetch(there) == DATA
    assert [start for _, start in there.asked] == [0, 100_000, 200_000]


@pytest.mark.parametrize(
    "second",
    [
        rest(100_000, DATA + b"longer"),
        rest(100_000, DATA[:-1]),
        rest(100_000, size=7),
        Said(206, DATA, headers={"content-range": "bytes 5-9/10"}),
        Said(206, DATA, headers={"content-range": "nonsense"}),
        Said(416),
    ],
)
async def test_another_file_by_now_is_begun_anew(bench: Bench, second: Said) -> None:
    new = DATA[::-1] + b"longer"
    there = There(whole(cut=100_000), second, whole(new))
    assert await bench.fetch(there) == new
    assert [start for _, start in there.asked] == [0, 100_000, 0]


async def test_one_that_never_comes_further_is_given_up(bench: Bench) -> None:
    # It forgets in the middle what it has sent, each time.
    there = There(*[answer for _ in range(50) for answer in (whole(cut=100_000), Said(416))])
    assert "broke off" in await bench.refusal(there, Unavailable)
    assert len(there.asked) <= 2 * TRIES + 2


async def test_more_than_was_announced_is_refused(bench: Bench) -> None:
    longer = Said(200, DATA + b"more", headers={"content-length": str(len(DATA))})
    assert "longer than the" in await bench.refusal(There(longer))


async def test_more_than_was_announced_is_refused_in_the_middle_too(bench: Bench) -> None:
    longer = Said(206, DATA, headers={"content-range": f"bytes 100000-{len(DATA) - 1}/{len(DATA)}"})
    assert "longer than the" in await bench.refusal(There(whole(cut=100_000), longer))


@pytest.mark.parametrize("length", ["0", str(1 << 60)])
async def test_a_length_that_no_disk_has_is_refused(bench: Bench, length: str) -> None:
    assert "cannot be taken" in await bench.refusal(There(Said(200, DATA, headers={"content-length": length})))


async def test_what_does_not_say_how_long_it_is_ends_where_it_ends_or_where_the_disk_is_full(bench: Bench) -> None:
    assert await bench.fetch(There(Said(200, DATA))) == DATA
    await bench.arrivals.drop("arr-1")

    class Endless(There):
        async def _chunks(self, said: Said) -> AsyncIterator[bytes]:
            while True:
                yield bytes(8 * MIB)
                bench.room = Room(free_bytes=0, total_bytes=1 << 41)

    assert "nearly full" in await bench.refusal(Endless(Said(200)), Unavailable)


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("file:///etc/passwd", "only http and https"),
        ("http://[::1", "which is none"),
        ("/office.raw", "leads on more than"),
        ("", "leads on more than"),
    ],
)
async def test_where_an_answer_leads_nowhere_it_is_not_followed(bench: Bench, to: str, words: str) -> None:
    there = There(Said(302, headers={"location": to}))
    assert words in await bench.refusal(there)
    assert {url.partition(":")[0] for url, _ in there.asked} == {"http"}


class Dribbling(There):
    """Sends a little every minute, for ever."""

    def __init__(self, clock: ManualClock, *, count: int = 1) -> None:
        super().__init__(Said(200, headers={"content-length": str(64 * MIB)}))
        self._clock, self._count = clock, count

    async def _chunks(self, said: Said) -> AsyncIterator[bytes]:
        while True:
            self._clock.skip(59)
            yield b"x" * self._count


async def test_one_from_which_hardly_anything_comes_is_given_up_and_what_came_is_kept(bench: Bench) -> None:
    there = Dribbling(bench.clock)
    said = await bench.refusal(there, Unavailable)
    assert "that server sends too slowly: 0 KiB came in 16 minutes, at least 4 KiB a second must come" in said
    assert "upload it" in said
    assert len(there.asked) == 1
    assert 10 < bench.arrivals.get("arr-1").offset < 20


async def test_one_that_breaks_off_after_every_byte_is_given_up_as_well(bench: Bench) -> None:
    class Crumbs(There):
        @asynccontextmanager
        async def get(self, url: str, *, start: int, etag: str, own: bool) -> AsyncIterator[Open]:
            self.asked.append((url, start))
            bench.clock.skip(WINDOW_S / 3)  # it takes its time with the answer
            said = rest(start, cut=start + 1) if start else whole(cut=1)
            yield Open(Answer(said.status, said.headers), self._chunks(said))

    there = Crumbs(Said())
    assert "too slowly" in await bench.refusal(there, Unavailable)
    assert len(there.asked) <= 4


async def test_a_slow_line_is_waited_for(bench: Bench) -> None:
    data = bytes(range(256)) * 1024 * 24

    class Slow(There):
        async def _chunks(self, said: Said) -> AsyncIterator[bytes]:
            for at in range(0, len(said.body), 1 << 18):
                bench.clock.skip(59)
                yield said.body[at : at + (1 << 18)]

    assert await bench.fetch(Slow(whole(data))) == data


async def test_a_file_of_checksums_that_does_not_come_keeps_nobody_waiting(bench: Bench) -> None:
    there = Dribbling(bench.clock)
    with pytest.raises(Unavailable, match="did not come within 60 s: try again later, or give the SHA-256 itself"):
        await Downloader(there, bench.clock, own_allowed=lambda: False).checksum(URL, "office.raw")


async def test_an_answer_that_trickles_is_not_waited_for_for_ever() -> None:
    async def trickles(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)

    server = await asyncio.start_server(trickles, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    with pytest.raises(Unavailable, match="no answer came in time") as caught:
        async with WebOutgoing(silent_s=5, answer_s=0.1).get(url, start=0, etag="", own=True):
            pass
    assert caught.value.code == "remote"
    server.close()
    await server.wait_closed()


class Leading(There):
    """Leads on to somewhere else, which is then asked as the daemon asks."""

    def __init__(self, to: str) -> None:
        super().__init__(Said(302, headers={"location": to}))
        self._real = WebOutgoing()

    @asynccontextmanager
    async def get(self, url: str, *, start: int, etag: str, own: bool) -> AsyncIterator[Open]:
        asks = super().get if url == URL else self._real.get
        async with asks(url, start=start, etag=etag, own=own) as opened:
            yield opened


class Raw:
    """A listener on the loopback that says just these bytes, and then stays silent."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.asked = 0
        self._open: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *error: object) -> None:
        for writer in self._open:
            writer.close()
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        self._open.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.text)
        await writer.drain()


@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f.1", "[::ffff:127.0.0.1]", "localhost", "0.0.0.0"])  # noqa: S104
async def test_an_address_of_ours_is_not_reached_by_a_detour(bench: Bench, host: str) -> None:
    listener = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    async with listener as port:
        assert "is this server itself" in await bench.refusal(Leading(f"http://{host}:{port}/office.raw"))
    assert listener.asked == 0


async def test_bytes_behind_the_announced_end_are_none_of_the_file() -> None:
    text, came = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + b"firstand much more", b""
    async with Raw(text) as port:
        url = f"http://127.0.0.1:{port}/"
        with suppress(Unavailable):
            async with WebOutgoing().get(url, start=0, etag="", own=True) as opened:
                async for chunk in opened.chunks:
                    came += chunk
    assert came in (b"", b"first")


@pytest.mark.parametrize("text", [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nfirst", b"HTTP/1.1 200 OK\r\n", b""])
async def test_who_falls_silent_is_not_waited_for_for_ever(text: bytes) -> None:
    async with Raw(text) as port:
        url = f"http://127.0.0.1:{port}/"
        with pytest.raises(Unavailable) as caught:
            async with WebOutgoing(silent_s=0.2).get(url, start=0, etag="", own=True) as opened:
                async for _ in opened.chunks:
                    pass
    assert caught.value.code == "remote"
