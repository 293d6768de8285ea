"""Programs that use the API over HTTPS, and connections that break off or make no sense."""

import asyncio
import logging
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.demo.client import Client
from appliance.demo.progress import Progress
from appliance.demo.scene import Director, Scene
from kmgr.clock import SystemClock
from kmgr.grid.identity import ensure_web_certificate
from kmgr.web.app import make_app
from kmgr.web.server import WebServer
from tests.lab.api import Api
from tests.lab.people import RIGHT
from tests.lab.web_lab import ADMIN, WebLab, opened

HERE = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Running:
    """A web server on loopback and the certificate that it shows."""

    lab: WebLab
    address: str
    certificate: Path

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a bare TLS connection."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return await asyncio.open_connection(HERE, int(self.address.rpartition(":")[2]), ssl=context)

    def left_over(self) -> list[str]:
        """Name the files of uploads."""
        return [file.name for file in (self.lab.folder / "data-srv-a" / "images" / "tmp").iterdir()]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    cert, key = ensure_web_certificate(tmp_path, frozenset({HERE}), now_ms=SystemClock().now_ms())
    async with opened(tmp_path) as lab:
        server = WebServer(make_app(lab.services()), host=HERE, port=0, cert=cert, key=key)
        await server.start()
        yield Running(lab, f"{HERE}:{server.port}", cert)
        await server.stop()


async def until(what: Callable[[], bool]) -> None:
    """Look every few milliseconds, ten seconds at most."""
    for _ in range(1000):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about within ten seconds")


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_the_demonstration_sets_its_scene_and_may_repeat_it(running: Running, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"\x33" * 510 + b"\x55\xaa" + bytes((2 << 20) - 512))
    scene = Scene(image="small", template="small", user="demo")

    def play() -> dict[str, list[str]]:
        client = Client(running.address, running.certificate).log_in(ADMIN, RIGHT)
        director = Director(client, scene, Progress())
        director.image(disk, 1)
        director.template()
        director.user("a password")
        names = {what: [one["name"] for one in client.items(what)] for what in ("images", "templates", "accounts")}
        demo = Client(running.address, running.certificate).log_in("demo", "a password")
        return {**names, "offers": [one["name"] for one in demo.items("offers", limit="1")]}

    for _ in range(2):
        found = await asyncio.to_thread(play)
        assert found["images"] == ["debian", "small"]
        assert found["templates"] == ["office", "small"]
        assert "demo" in found["accounts"]
        assert found["offers"] == ["small"]


async def test_the_benchmarks_client_gets_words_with_every_refusal(running: Running) -> None:
    def ask() -> None:
        api = Api(running.address).log_in("anna", RIGHT)
        assert api.reachable()
        assert api.items("desktops") == []
        refused = api.ask("GET", "/servers")
        assert (refused.status, refused.body["error"]["code"]) == (403, "not_allowed")

    await asyncio.to_thread(ask)


async def test_an_upload_that_breaks_off_leaves_nothing_behind_and_is_no_bug(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    token = await running.lab.token(ADMIN)
    with caplog.at_level(logging.WARNING):
        _, writer = await running.connect()
        head = f"POST /api/v1/images?name=x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        writer.write(f"{head}Content-Length: 5000000\r\n\r\n".encode() + bytes(100_000))
        await until(lambda: bool(running.left_over()))
        writer.close()
        await until(lambda: not running.left_over())
    assert not caplog.records


@pytest.mark.parametrize(
    "data",
    [b"\x00\x01\x02 nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"GET /" + b"x" * 20_000],
)
async def test_what_is_no_http_is_answered_and_forgotten(
    running: Running, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        reader, writer = await running.connect()
        writer.write(data + b"\r\n\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read(4096)
        writer.close()
    assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    assert b"Traceback" not in answer
    assert not caplog.records
