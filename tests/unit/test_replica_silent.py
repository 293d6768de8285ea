"""A receiver that says nothing any more keeps no place at a source from others; one that only waits keeps its own."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Unavailable
from kmgr.grid.local import LocalNetwork
from kmgr.grid.port import Stream
from kmgr.ids import ServerId
from kmgr.replica import frames
from kmgr.replica.choose import SERVED
from kmgr.replica.images import Images
from kmgr.replica.pace import Pace
from kmgr.replica.pull import Pull
from kmgr.replica.transfer import Source
from tests.lab.sites import MIB, V1, Site, disk, three_sites, until


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[list[Site]]:
    yield from three_sites(tmp_path)


class Office:
    """A source whose clock is moved by hand, and receivers that do nothing by themselves."""

    def __init__(self, folder: Path, images: Images) -> None:
        self.clock = ManualClock()
        self.network = LocalNetwork()
        self.server = ServerId("srv-source")
        Source(self.network.port(self.server), images, part_of=lambda _: None, clock=self.clock)

    async def comes(self, name: str) -> Stream:
        """Let a receiver open a stream and say its first words."""
        stream = await self.network.port(ServerId(f"srv-{name}")).open(self.server, "blocks", {"version": V1})
        stream.writer.write(frames.HELLO)
        await stream.reader.readexactly(frames.HEAD.size)
        return stream


async def test_places_of_silent_receivers_are_given_to_others(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    office = Office(tmp_path, sites[0].images)
    came = [await office.comes(str(number)) for number in range(SERVED)]
    with pytest.raises(Unavailable, match="given to 12 servers already"):
        await office.comes("late")
    await office.clock.advance(frames.SILENT_S - 1)
    came[0].writer.write(frames.HELLO)
    with pytest.raises(Unavailable, match="given to 12 servers already"):
        await office.comes("late")
    await office.clock.advance(1)
    late = await office.comes("late")
    # All that were silent lost their places, the one that said it was there did not.
    for stream in came[1:]:
        assert await stream.reader.read() == b""
    came[0].writer.write(frames.QUESTION.pack(0, 1, 0))
    await came[0].reader.readexactly(frames.HEAD.size)
    for stream in (*came, late):
        stream.writer.close()
    await asyncio.gather(*(stream.writer.wait_closed() for stream in (*came, late)), return_exceptions=True)


async def test_a_receiver_that_never_says_hello_is_silent_too(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    office = Office(tmp_path, sites[0].images)
    port = office.network.port(ServerId("srv-mute"))
    mute = [await port.open(office.server, "blocks", {"version": V1}) for _ in range(SERVED)]
    await office.clock.advance(frames.SILENT_S)
    late = await office.comes("late")
    for stream in mute:
        assert await stream.reader.read() == b""
    for stream in (*mute, late):
        stream.writer.close()
    await asyncio.gather(*(stream.writer.wait_closed() for stream in (*mute, late)), return_exceptions=True)


async def test_a_copy_that_waits_for_its_sources_tells_them_that_it_is_there(
    sites: list[Site], tmp_path: Path
) -> None:
    # Of a source that has nothing new nothing is asked, for as long as it takes.
    await sites[0].add_version(disk(tmp_path / "disk", size=64 * MIB, used=24 * MIB))
    heard: list[bytes] = []
    original = sites[0].requests._handlers.stream_handler("blocks")

    async def listening(peer, body, accept):  # type: ignore[no-untyped-def]
        async def accepted() -> Stream:
            stream = await accept()
            readexactly = stream.reader.readexactly

            async def noted(count: int) -> bytes:
                found = await readexactly(count)
                heard.append(found)
                return bytes(found)

            stream.reader.readexactly = noted
            stream.writer.writelines = lambda _: None  # it never answers
            return stream  # type: ignore[no-any-return]

        await original(peer, body, accepted)

    sites[0].requests.serve_stream("blocks", listening)
    pull = Pull(
        sites[0].version(), images=sites[1].images, requests=sites[1].requests, clock=sites[1].clock,
        sources=lambda: [sites[0].id], pace=Pace(look_s=0.02, here_s=0.04),
    )  # fmt: skip
    running = asyncio.create_task(pull.run())
    await until(lambda: heard.count(frames.HELLO) >= 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
