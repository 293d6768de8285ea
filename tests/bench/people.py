"""What people wait for: a desktop after the click, and the console's first page.

Through the HTTPS of a server that is not the leader, on connections that are kept
open as browsers keep them.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp

from appliance.demo.cluster import ADMIN, Cluster
from appliance.demo.progress import Progress
from appliance.demo.scene import Director, Scene
from appliance.demo.server import Server
from appliance.image import tiny
from tests.bench.harness import Figure, Stopwatch, alternate, figure
from tests.bench.ports import WEB_PORT, quiet

SCENE = Scene(image="test-guest", template="bench", memory_mib=192, standby=2, maximum=6)
READY_S = 120.0


class Silent(Progress):
    """Progress that nobody wants to see."""

    def say(self, text: str) -> None:
        """Nothing."""

    def show(self, text: str) -> None:
        """Nothing."""


class Caller:
    """One person's kept connections to one server."""

    def __init__(self, server: Server) -> None:
        self._base = f"https://{server.portal}"
        self._http = aiohttp.ClientSession()
        self._token = ""

    async def log_in(self, user: str, password: str) -> "Caller":
        """Log in and keep the token."""
        told = await self.ask("POST", "/api/v1/sessions", {"user": user, "password": password})
        self._token = told["token"]
        return self

    def elsewhere(self, server: Server) -> "Caller":
        """Return the same person at another server: a log-in holds at all of them."""
        other = Caller(server)
        other._token = self._token
        return other

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return what came, parsed if it is JSON; refusals are errors."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        async with self._http.request(
            method, self._base + path, json=body, headers=headers, ssl=False, allow_redirects=False
        ) as answer:
            text = await answer.read()
            assert answer.status in (200, 201, 204), f"{method} {path}: {answer.status} {text[:300]!r}"
            return json.loads(text) if "json" in answer.content_type else text

    async def first_bytes(self, ticket: str) -> bytes:
        """Open a display and return the first thing that comes."""
        async with self._http.ws_connect(ticket, protocols=["binary"], ssl=False) as display:
            return await display.receive_bytes(timeout=10)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.close()


async def measure(folder: Path, runs: int) -> list[Figure]:
    """Return the figures of a claim and of the overview."""
    grid = Cluster(folder / "people", web_port=WEB_PORT + 200, grid_port=WEB_PORT + 300, say=quiet)
    try:
        await asyncio.to_thread(_set_up, grid)
        server = await asyncio.to_thread(_not_the_leader, grid)
        boss = await Caller(server).log_in(ADMIN, grid.password(ADMIN))
        user = await Caller(server).log_in(SCENE.user, grid.password(SCENE.user))
        try:
            return [*await _claims(boss, user, runs), await _overview(boss, runs)]
        finally:
            await boss.close()
            await user.close()
    finally:
        await asyncio.to_thread(grid.stop)


def _set_up(grid: Cluster) -> None:
    grid.start()
    director = Director(grid.admin(), SCENE, Silent())
    director.image(tiny.cached(), len(grid.servers))
    director.template()
    director.user(grid.password(SCENE.user))
    director.ready()


def _not_the_leader(grid: Cluster) -> Server:
    leader = grid.admin().ask("GET", "/status").ok()["leader"]
    return next(server for server in grid.servers if server.id != leader)


async def _claims(boss: Caller, user: Caller, runs: int) -> list[Figure]:
    given: list[float] = []

    async def ours(turn: int) -> float:
        await _all_standing_by(boss)
        watch = Stopwatch()
        desktop = await user.ask("POST", "/api/v1/desktops", {"template": SCENE.template})
        answered = watch.ms()
        ticket = await user.ask("POST", f"/api/v1/desktops/{desktop['id']}/ticket")
        assert (await user.first_bytes(ticket["url"])).startswith(b"RFB ")
        took = watch.ms()
        if turn:
            given.append(answered)
        await user.ask("DELETE", f"/api/v1/desktops/{desktop['id']}")
        await _all_standing_by(boss)
        return took

    async def floor(turn: int) -> float:
        watch = Stopwatch()
        await boss.ask("PATCH", "/api/v1/settings", {"session_hours": 12 + turn % 2})
        return watch.ms()

    shown, commit = await alternate(runs, ours, floor)
    return [
        figure("claim: desktop given (floor: one changed setting)", given, unit="ms", floor=commit),
        figure("claim: first bytes of its screen (same floor)", shown, unit="ms", floor=commit),
    ]


async def _all_standing_by(boss: Caller) -> None:
    deadline = asyncio.get_running_loop().time() + READY_S
    while True:
        # A boot in emulation takes a processor: only when all is quiet is a claim measured.
        states = [desktop["state"] for desktop in (await boss.ask("GET", "/api/v1/desktops"))["items"]]
        if states == ["ready"] * SCENE.standby:
            return
        assert asyncio.get_running_loop().time() < deadline, f"desktops: {states}"
        await asyncio.sleep(0.5)


async def _overview(boss: Caller, runs: int) -> Figure:
    async def ours(_: int) -> float:
        watch = Stopwatch()
        page = await boss.ask("GET", "/console")
        assert b"</html>" in page
        return watch.ms()

    async def floor(_: int) -> float:
        watch = Stopwatch()
        await boss.ask("GET", "/api/v1/status")
        return watch.ms()

    mine, low = await alternate(5 * runs, ours, floor)
    return figure("console: the overview's page (floor: GET status)", mine, unit="ms", floor=low)
