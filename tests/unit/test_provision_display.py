"""A desktop's screen: bytes both ways over a request to its server, and who is turned away."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from kmgr.errors import ConfigError, Conflict, NotFound, Unavailable
from kmgr.grid.local import LocalNetwork, LocalRequests
from kmgr.grid.port import Accept
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.attendance import Attendance
from kmgr.provision.display import OPERATION, SCREENSHOT, fetch_screenshot, serve_display, socket_finder
from tests.lab.provision import A, B, Desk, done

D1 = DesktopId("dsk-4k2mzzzzzzzz")
GREETING = b"RFB 003.008\n"


class Screen:
    """Greets as QEMU does, then gives everything back."""

    def __init__(self) -> None:
        self.shown: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.shown.add(task)
        try:
            writer.write(GREETING)
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # whoever looked has gone
        finally:
            writer.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    await desk.found()
    yield desk
    await desk.agent.stop()
    desk.grid.close()


@pytest.fixture
async def far(desk: Desk) -> AsyncIterator[LocalRequests]:
    """Server b's requests; server a has a ready desktop with a screen."""
    network = LocalNetwork()
    socket = socket_finder(desk.folder)
    attendance = Attendance(desk.grid, clock=desk.clock)
    serve_display(network.port(A), desk.grid, desk.hypervisor, socket=socket, attendance=attendance)
    done(await desk.place(D1))
    await desk.live(14)
    screen = Screen()
    listening = await asyncio.start_unix_server(screen.connected, str(socket(D1)))
    yield network.port(B)
    listening.close()
    await asyncio.wait_for(asyncio.gather(*screen.shown), 5)  # every one was closed


def asked(generation: int = 1, desktop: str = D1) -> dict[str, object]:
    return {"desktop": desktop, "generation": generation}


async def test_a_screen_is_shown_and_typed_at_over_the_grid(far: LocalRequests) -> None:
    stream = await far.open(A, OPERATION, asked())
    assert await stream.reader.readexactly(len(GREETING)) == GREETING
    sent = os.urandom(3_000_000)
    stream.writer.write(sent)
    back = await stream.reader.readexactly(len(sent))
    assert back == sent
    stream.writer.close()


async def test_it_ends_at_the_far_side_when_the_guest_goes(far: LocalRequests, desk: Desk) -> None:
    stream = await far.open(A, OPERATION, asked())
    await stream.reader.readexactly(len(GREETING))
    stream.writer.write_eof()
    assert await asyncio.wait_for(stream.reader.read(), 5) == b""
    stream.writer.close()


async def test_only_a_live_desktop_of_this_server_and_generation_is_shown(far: LocalRequests, desk: Desk) -> None:
    with pytest.raises(Conflict, match="made anew"):
        await far.open(A, OPERATION, asked(generation=2))
    with pytest.raises(NotFound, match="not on this server"):
        await far.open(A, OPERATION, asked(desktop="dsk-none"))
    done(await desk.do("desktop.retire", desktop=D1, why="a test"))
    with pytest.raises(Conflict):
        await far.open(A, OPERATION, asked())


async def test_a_screen_opens_only_for_whom_its_own_server_takes_for_its_user(far: LocalRequests, desk: Desk) -> None:
    for user in ("anna", "berta"):
        with pytest.raises(Conflict, match="somebody else"):
            await far.open(A, OPERATION, {**asked(), "user": user})
    done(await desk.do("desktop.claim", user="anna", template="tpl"))
    with pytest.raises(Conflict, match="somebody else"):
        await fetch_screenshot(far, A, D1, "berta")
    with pytest.raises(Conflict, match="somebody else"):
        await far.open(A, OPERATION, {**asked(), "user": None})
    stream = await far.open(A, OPERATION, {**asked(), "user": "anna"})
    assert await stream.reader.readexactly(len(GREETING)) == GREETING
    stream.writer.close()


async def test_what_is_looked_at_is_known(desk: Desk, far: LocalRequests) -> None:
    network = LocalNetwork()
    attendance = Attendance(desk.grid, clock=desk.clock)
    looked_at, socket = attendance.watched, socket_finder(desk.folder)
    serve_display(network.port(A), desk.grid, desk.hypervisor, socket=socket, attendance=attendance)
    assert looked_at() == frozenset()
    streams = [await network.port(B).open(A, OPERATION, asked()) for _ in range(2)]
    for stream in streams:
        await stream.reader.readexactly(len(GREETING))
    assert looked_at() == {D1}
    streams[0].writer.close()
    await asyncio.sleep(0.05)
    assert looked_at() == {D1}
    streams[1].writer.close()
    async with asyncio.timeout(5):
        while looked_at():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


async def test_a_screen_that_is_not_there_is_said(far: LocalRequests, desk: Desk) -> None:
    (desk.folder / "run" / f"{D1}.vnc").unlink()
    with pytest.raises(Unavailable, match="screen cannot be reached: No such file"):
        await far.open(A, OPERATION, asked())


async def test_a_picture_of_any_size_arrives_whole(far: LocalRequests, desk: Desk) -> None:
    assert (await fetch_screenshot(far, A, D1, None)).startswith(b"\x89PNG")
    desk.hypervisor.picture = os.urandom(3_000_000)
    assert await fetch_screenshot(far, A, D1, None) == desk.hypervisor.picture
    desk.hypervisor.power_off(D1)
    with pytest.raises(Unavailable, match="powered off"):
        await fetch_screenshot(far, A, D1, None)
    with pytest.raises(NotFound, match="not on this server"):
        await fetch_screenshot(far, A, DesktopId("dsk-none"), None)


@pytest.mark.parametrize(
    ("sent", "told"), [(b"\0\0\0\x09PNG", "broke off"), (b"\x7f\0\0\0", "2032 MiB was announced")]
)
async def test_a_picture_that_is_not_whole_is_none(sent: bytes, told: str) -> None:
    async def serve(_: ServerId, body: Mapping[str, object], accept: Accept) -> None:
        (await accept()).writer.write(sent)

    network = LocalNetwork()
    network.port(A).serve_stream(SCREENSHOT, serve)
    with pytest.raises(Unavailable, match=told):
        await fetch_screenshot(network.port(B), A, D1, None)


def test_sockets_lie_in_the_data_folder(tmp_path: Path) -> None:
    assert socket_finder(tmp_path)(D1) == tmp_path / "run" / f"{D1}.vnc"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where short folders are made."""
    with tempfile.TemporaryDirectory(prefix="kmgr-", dir="/tmp") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield Path(folder)


def test_a_long_data_folder_gets_a_short_folder_of_its_own(tmp_path: Path, short: Path) -> None:
    long, other = tmp_path / ("x" * 100) / "a", tmp_path / ("x" * 100) / "b"
    path = socket_finder(long)(D1)
    assert len(os.fsencode(path)) <= 107
    assert path.parent.parent == short
    assert path.parent.stat().st_mode & 0o777 == 0o711
    assert socket_finder(long)(D1) == path
    assert socket_finder(other)(D1).parent != path.parent


def test_a_short_folder_that_somebody_else_laid_out_is_not_used(tmp_path: Path, short: Path) -> None:
    long = tmp_path / ("x" * 100)
    folder = socket_finder(long)(D1).parent
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="not a folder of this user"):
        socket_finder(long)
