"""The HTTPS listener on loopback, and the application of a server without a grid."""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web
from aiohttp.test_utils import TestClient, TestServer

from kmgr.clock import SystemClock
from kmgr.config import Config
from kmgr.errors import ConfigError, Refused
from kmgr.grid.discovery import Found
from kmgr.grid.identity import ensure_web_certificate
from kmgr.grid.preflight import Finding
from kmgr.web.app import make_app, make_setup_app
from kmgr.web.server import WebServer, redirecting_app
from kmgr.web.services import JoinAnswers, NewGridAnswers, SetupServices
from tests.lab.web_lab import USER, WebLab

HERE = "127.0.0.1"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return ensure_web_certificate(tmp_path, frozenset({"localhost", HERE}), now_ms=SystemClock().now_ms())


@pytest.fixture
async def server(lab: WebLab, files: tuple[Path, Path]) -> AsyncIterator[WebServer]:
    server = WebServer(make_app(lab.services()), host=HERE, port=0, cert=files[0], key=files[1])
    await server.start()
    yield server
    await server.stop()


def tls(cert: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(cert))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


async def test_it_speaks_https_with_its_certificate(server: WebServer, files: tuple[Path, Path]) -> None:
    async with (
        ClientSession(connector=TCPConnector(ssl=tls(files[0]))) as browser,
        browser.get(f"https://{HERE}:{server.port}/api/v1/status") as answer,
    ):
        assert answer.status == 200
        assert (await answer.json())["name"] == "a"


async def test_old_tls_is_refused(server: WebServer, files: tuple[Path, Path]) -> None:
    context = tls(files[0])
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(HERE, server.port, ssl=context)


async def test_plain_http_is_cut_off_without_a_line_in_the_log(
    server: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        reader, writer = await asyncio.open_connection(HERE, server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(5):
            assert b"HTTP" not in await reader.read()
        writer.close()
        await asyncio.sleep(0)
    assert not caplog.records


async def test_a_taken_port_is_named_with_what_to_do(
    lab: WebLab, server: WebServer, files: tuple[Path, Path]
) -> None:
    second = WebServer(make_app(lab.services()), host=HERE, port=server.port, cert=files[0], key=files[1])
    with pytest.raises(ConfigError, match=rf"port {server.port} .*ss -ltnp"):
        await second.start()
    await second.stop()


async def test_an_address_of_another_machine_is_named(lab: WebLab, files: tuple[Path, Path]) -> None:
    elsewhere = WebServer(make_app(lab.services()), host="192.0.2.1", port=0, cert=files[0], key=files[1])
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        await elsewhere.start()


async def test_a_certificate_that_is_none_is_named(lab: WebLab, tmp_path: Path) -> None:
    cert, key = tmp_path / "web.crt", tmp_path / "web.key"
    cert.write_text("no certificate")
    key.write_text("no key")
    with pytest.raises(ConfigError, match=r"web\.crt"):
        await WebServer(make_app(lab.services()), host=HERE, port=0, cert=cert, key=key).start()


async def test_it_stops_within_two_seconds_whatever_is_open(
    lab: WebLab, server: WebServer, files: tuple[Path, Path]
) -> None:
    desktop = await lab.office.standby()
    await lab.office.do("desktop.claim", user=USER, template="tpl-office")
    headers = {"Authorization": f"Bearer {await lab.token(USER)}"}
    base = f"https://{HERE}:{server.port}"
    async with (
        await lab.running(desktop),
        ClientSession(connector=TCPConnector(ssl=tls(files[0])), headers=headers) as browser,
    ):
        feed = await browser.get(f"{base}/api/v1/live")
        made = await (await browser.post(f"{base}/api/v1/desktops/{desktop}/ticket")).json()
        screen = await browser.ws_connect(made["url"].replace("wss:", "https:"), protocols=("binary",))
        await screen.send_bytes(b"x")
        assert await screen.receive_bytes() == b"x"
        _, hanging = await asyncio.open_connection(HERE, server.port, ssl=tls(files[0]))
        hanging.write(b"POST /api/v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        began = time.monotonic()
        await server.stop()
        assert time.monotonic() - began < 2
        feed.close()
        await screen.close()
        hanging.close()
    with pytest.raises(OSError):
        socket.create_connection((HERE, server.port), timeout=1)


async def test_port_80_only_sends_to_https() -> None:
    async with TestClient(TestServer(redirecting_app()), cookie_jar=DummyCookieJar()) as client:
        for host, to in (("two.example:80", "two.example"), ("two.example", "two.example"), ("[::1]:80", "[::1]")):
            answer = await client.post("/login?next=/x", headers={"Host": host}, allow_redirects=False)
            assert (answer.status, answer.headers["Location"]) == (308, f"https://{to}/login?next=/x")


class Wizard:
    """What the wizard was told."""

    def __init__(self, folder: Path) -> None:
        self.answers: list[object] = []
        self.services = SetupServices(
            config=Config(data_dir=folder, name="one"),
            version="0.1.0",
            fingerprint="aa:bb",
            browse=self.browse,
            create=self.create,
            join=self.join,
        )

    async def browse(self) -> Found:
        return Found((), "nothing was found")

    async def create(self, answers: NewGridAnswers) -> None:
        if len(answers.password) < 8:
            raise Refused("a password needs 8 to 256 characters")
        self.answers.append(answers)

    async def join(self, answers: JoinAnswers) -> Sequence[Finding]:
        self.answers.append(answers)
        return ()


@pytest.fixture
def wizard(tmp_path: Path) -> Wizard:
    return Wizard(tmp_path)


@pytest.fixture
async def newcomer(wizard: Wizard) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    client = TestClient(TestServer(make_setup_app(wizard.services)), cookie_jar=DummyCookieJar())
    await client.start_server()
    yield client
    await client.close()


async def test_a_server_without_a_grid_sends_everybody_to_the_wizard(
    newcomer: TestClient[web.Request, web.Application],
) -> None:
    home = await newcomer.get("/", allow_redirects=False)
    assert (home.status, home.headers["Location"]) == (303, "/setup")
    assert (await newcomer.get("/setup")).status == 200
    for method, path in (("GET", "/api/v1/status"), ("POST", "/api/v1/sessions"), ("GET", "/api/v1/none")):
        answer = await newcomer.request(method, path)
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "no_grid"
        assert answer.headers["Content-Security-Policy"]


async def test_the_two_questions_are_answered_by_json(
    newcomer: TestClient[web.Request, web.Application], wizard: Wizard
) -> None:
    about = await (await newcomer.get("/api/v1/setup")).json()
    assert about == {
        "fingerprint": "aa:bb", "server": "one", "version": "0.1.0", "grids": [], "problem": "nothing was found",
    }  # fmt: skip
    body = {"grid": {"name": "g"}, "server": {"name": "one"}, "admin": {"name": "admin", "password": "short"}}
    short = await newcomer.post("/api/v1/setup", json=body)
    assert (short.status, wizard.answers) == (400, [])
    body["admin"]["password"] = "long enough"
    made = await newcomer.post("/api/v1/setup", json=body)
    assert (made.status, await made.json()) == (201, {"ok": True, "warnings": []})
    assert wizard.answers == [NewGridAnswers("g", "one", "admin", "long enough")]


async def test_no_other_sites_page_answers_the_questions(
    newcomer: TestClient[web.Request, web.Application], wizard: Wizard
) -> None:
    body = b'{"grid": {"name": "g"}, "server": {"name": "x"}, "admin": {"name": "a", "password": "long enough"}}'
    for headers in ({"Content-Type": "text/plain"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = await newcomer.post("/api/v1/setup", data=body, headers=headers)
        assert answer.status in (400, 403)
    assert (await newcomer.post("/setup", data={"which": "new"})).status == 403
    assert wizard.answers == []
