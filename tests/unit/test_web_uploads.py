"""Large bodies that nobody wants: whoever sends them hears why, also a program that sends first and reads then."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.clock import SystemClock
from kmgr.grid.identity import ensure_web_certificate
from kmgr.web.app import make_app
from kmgr.web.server import WebServer
from tests.lab.web_lab import ADMIN, USER, WebLab

HERE = "127.0.0.1"
UPLOAD = "/api/v1/images?name=win"
PIECE = bytes(256 << 10)
LARGE = 40 << 20
ENDLESS = 1 << 40


@pytest.fixture
async def server(lab: WebLab, tmp_path: Path) -> AsyncIterator[WebServer]:
    cert, key = ensure_web_certificate(tmp_path, frozenset({HERE}), now_ms=SystemClock().now_ms())
    server = WebServer(make_app(lab.services()), host=HERE, port=0, cert=cert, key=key)
    await server.start()
    yield server
    await server.stop()


class Plain:
    """A client as simple as they come: it sends everything, then it reads."""

    def __init__(self, port: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._socket = context.wrap_socket(socket.create_connection((HERE, port), timeout=30))

    def begin(self, path: str, *headers: str) -> None:
        head = [f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]
        self._socket.sendall("\r\n".join(head).encode())

    def send(self, size: int) -> int:
        """Send so many bytes; return how many were taken before the connection was closed."""
        sent = 0
        try:
            while sent < size:
                self._socket.sendall(PIECE[: size - sent])
                sent += len(PIECE[: size - sent])
        except OSError:
            pass
        return sent

    def read(self) -> str:
        """Read until the server closes."""
        got = b""
        try:
            while data := self._socket.recv(1 << 16):
                got += data
        except OSError:
            pass
        self._socket.close()
        return got.decode()


async def answered(server: WebServer, path: str, size: int, *headers: str) -> tuple[int, str]:
    """Send a body as a simple client does; return how much was taken and the answer."""

    def talk() -> tuple[int, str]:
        client = Plain(server.port)
        client.begin(path, f"Content-Length: {size}", *headers)
        return client.send(size), client.read()

    return await asyncio.to_thread(talk)


BINARY = "Content-Type: application/octet-stream"


async def test_an_upload_without_a_log_in_is_told_so(server: WebServer) -> None:
    taken, said = await answered(server, UPLOAD, LARGE, BINARY)
    assert taken == LARGE
    assert said.startswith("HTTP/1.1 401 ")
    assert '"code": "not_logged_in"' in said
    assert "Connection: close" in said


@pytest.mark.parametrize(
    ("who", "path", "status", "told"),
    [
        (USER, UPLOAD, 403, "anna is not an administrator"),
        (ADMIN, "/api/v1/images", 400, "name: required"),
        (ADMIN, "/api/v1/accounts", 400, "Send the body as JSON"),
    ],
)
async def test_whoever_is_logged_in_hears_the_reason(
    lab: WebLab, server: WebServer, who: str, path: str, status: int, told: str
) -> None:
    bearer = f"Authorization: Bearer {await lab.token(who)}"
    kind = BINARY if "images" in path else "Content-Type: text/plain"
    size = LARGE if "images" in path else 900 << 10
    taken, said = await answered(server, path, size, bearer, kind, "Connection: close")
    assert (taken, said.split()[1]) == (size, str(status))
    assert told in said


async def test_a_body_that_is_too_large_for_its_address_is_told_so(lab: WebLab, server: WebServer) -> None:
    headers = (f"Authorization: Bearer {await lab.token(ADMIN)}", "Content-Type: application/json")
    taken, said = await answered(server, "/api/v1/accounts", LARGE, *headers)
    assert (taken, said.split()[1]) == (LARGE, "413")
    assert "at most 1 MiB" in said


async def test_not_more_than_so_much_is_dropped(server: WebServer) -> None:
    async with asyncio.timeout(20):
        taken, said = await answered(server, UPLOAD, ENDLESS, BINARY)
    assert LARGE < taken < ENDLESS
    assert said.startswith("HTTP/1.1 401 ")


async def test_whoever_asks_before_sending_is_refused_before_sending(server: WebServer) -> None:
    def talk() -> str:
        client = Plain(server.port)
        client.begin(UPLOAD, f"Content-Length: {LARGE}", BINARY, "Expect: 100-continue")
        return client.read()

    assert (await asyncio.to_thread(talk)).startswith("HTTP/1.1 401 ")


async def test_whoever_asks_before_sending_and_may_is_told_to_go_on(lab: WebLab, server: WebServer) -> None:
    bearer = f"Authorization: Bearer {await lab.token(ADMIN)}"
    text = b"Dear administrator, this is no disk."

    def talk() -> str:
        client = Plain(server.port)
        wanted = (f"Content-Length: {len(text)}", BINARY, bearer, "Expect: 100-continue", "Connection: close")
        client.begin(UPLOAD, *wanted)
        assert client._socket.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client._socket.sendall(text)
        return client.read()

    said = await asyncio.to_thread(talk)
    assert said.startswith("HTTP/1.1 400 ")
    assert "the upload cannot be imported" in said


async def test_a_short_body_that_is_refused_costs_no_connection(server: WebServer) -> None:
    def talk() -> list[bytes]:
        client, answers = Plain(server.port), []
        for _ in range(2):
            client.begin("/api/v1/templates", "Content-Length: 2", "Content-Type: application/json")
            client.send(0)
            client._socket.sendall(b"{}")
            answers.append(client._socket.recv(1 << 16))
        client._socket.close()
        return answers

    for said in await asyncio.to_thread(talk):
        assert said.startswith(b"HTTP/1.1 401 ")
        assert b"Connection: close" not in said
