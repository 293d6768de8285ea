"""From a click to an answering guest, when what stands by sleeps; and a hundred people who log in at once.

Three whole servers on this machine, each with a libvirt of its own. The click goes
through the HTTPS of a server that is not the leader; the guest counts as answering
when its agent does, asked from outside as soon as the claim is answered.
"""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from appliance.demo.cluster import ADMIN, Cluster
from appliance.demo.scene import Director, Scene
from appliance.demo.server import Server
from appliance.image import tiny
from kmgr.ids import DesktopId
from kmgr.provision import domainxml
from tests.bench.harness import Figure, Limit, Stopwatch, alternate, figure
from tests.bench.people import Caller, Silent
from tests.bench.ports import WEB_PORT, quiet

STANDBY = 30
PEOPLE = 100
PASSWORD = "a-long-password-1"
LIMIT_S = 900.0
_PING = json.dumps({"execute": "guest-ping"})


async def measure(folder: Path, short: bool) -> list[Figure]:
    """Return the figures of claims one by one and of the storm."""
    standby, people = (6 if short else STANDBY), PEOPLE
    scene = Scene(image="test-guest", template="bench", memory_mib=192, standby=standby, maximum=standby)
    grid = Cluster(folder / "claims", web_port=WEB_PORT + 400, grid_port=WEB_PORT + 500, say=quiet)
    try:
        await asyncio.to_thread(_set_up, grid, scene)
        claims = Claims(grid, scene)
        try:
            await claims.log_in(people)
            return [*await claims.one_by_one(10 if short else 30), *await claims.storm(people)]
        finally:
            await claims.close()
    finally:
        await asyncio.to_thread(grid.stop)


def _set_up(grid: Cluster, scene: Scene) -> None:
    grid.start()
    admin = grid.admin()
    director = Director(admin, scene, Silent())
    director.image(tiny.cached(), len(grid.servers))
    director.template()
    (template,) = admin.items("templates")
    admin.ask("PATCH", f"/templates/{template['id']}/policy", {"suspend_standby": True}).ok("sleeping standbys")
    everyone = {"kind": "everyone", "subject": ""}
    admin.ask("POST", f"/templates/{template['id']}/assignments", everyone).ok("everyone may use it")


class Claims:
    """People at the three servers, and a look at every libvirt from outside."""

    def __init__(self, grid: Cluster, scene: Scene) -> None:
        self._grid = grid
        self._scene = scene
        self._libvirts = {server.id: libvirt.open(server.libvirt.uri) for server in grid.servers if server.libvirt}
        self._boss: Caller
        self._people: list[Caller] = []

    async def log_in(self, people: int) -> None:
        """Make the accounts, find who is not the leader."""
        admin = self._grid.admin()
        leader = admin.ask("GET", "/status").ok()["leader"]
        self._far: Server = next(server for server in self._grid.servers if server.id != leader)
        self._boss = await Caller(self._far).log_in(ADMIN, self._grid.password(ADMIN))
        for number in range(people):
            name = f"user{number}"
            body = {"name": name, "display_name": name, "role": "user", "groups": [], "password": PASSWORD}
            await self._boss.ask("POST", "/api/v1/accounts", body)

    async def one_by_one(self, runs: int) -> list[Figure]:
        """Return what a claim costs until the guest answers; the floor is one committed change."""
        user = await Caller(self._far).log_in("user0", PASSWORD)
        self._people.append(user)

        async def ours(_: int) -> float:
            await self._all_asleep()
            watch = Stopwatch()
            desktop = await user.ask("POST", "/api/v1/desktops", {"template": self._scene.template})
            await asyncio.to_thread(self._answers, desktop)
            took = watch.ms()
            await user.ask("DELETE", f"/api/v1/desktops/{desktop['id']}")
            return took

        async def floor(turn: int) -> float:
            watch = Stopwatch()
            await self._boss.ask("PATCH", "/api/v1/settings", {"session_hours": 12 + turn % 2})
            return watch.ms()

        mine, low = await alternate(runs, ours, floor)
        worst = sorted(mine)[min(len(mine) - 1, int(0.95 * len(mine)))]
        return [
            figure("claim of a sleeping standby: guest answers (floor: commit)", mine, unit="ms", floor=low),
            Figure("the same, 95th percentile", round(worst, 1), "ms", len(mine), limit=Limit(150)),
        ]

    async def storm(self, people: int) -> list[Figure]:
        """Let all log in and click at all three servers at once: nobody gets two desktops, no desktop two users."""
        await self._all_asleep()
        started = time.monotonic()
        took = await asyncio.gather(*(self._person(number) for number in range(people)))
        all_s = time.monotonic() - started
        given: dict[str, str] = {}
        items = (await self._boss.ask("GET", "/api/v1/desktops"))["items"]
        for desktop in items:
            if desktop["user"]:
                assert desktop["user"] not in given, f"{desktop['user']} has two desktops"
                given[desktop["user"]] = desktop["id"]
        told = {f"user{n}": set(got) for n, (got, _) in enumerate(took) if got}
        assert all(len(got) == 1 for got in told.values()), f"somebody was told two desktops: {told}"
        assert {user: next(iter(got)) for user, got in told.items()} == given
        assert len(given) == min(people, self._scene.standby), f"{len(given)} were given"
        print(
            f"storm: {people} people, {len(given)} desktops, each one's own; all answered in {all_s:.1f} s",
            flush=True,
        )
        served = [ms for got, ms in took if got]
        return [figure(f"storm of {people} log-ins at 3 servers: desktop given", served, unit="ms")]

    async def _person(self, number: int) -> tuple[list[str], float]:
        """Log in at every server and click at all of them; returns what was given, and when first."""
        watch = Stopwatch()
        servers = self._grid.servers
        callers = [await self._logged_in(servers[number % len(servers)], f"user{number}")]
        callers += [
            callers[0].elsewhere(server) for server in servers if server is not servers[number % len(servers)]
        ]
        self._people += callers
        body = {"template": self._scene.template}
        answers = await asyncio.gather(
            *(caller.ask("POST", "/api/v1/desktops", body) for caller in callers), return_exceptions=True
        )
        return [answer["id"] for answer in answers if isinstance(answer, dict) and "id" in answer], watch.ms()

    async def _logged_in(self, server: Server, user: str) -> Caller:
        """Log in as people do: one who is told that the grid is busy tries again."""
        caller = Caller(server)
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                return await caller.log_in(user, PASSWORD)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(1)

    def _answers(self, desktop: dict[str, Any]) -> None:
        connection = self._libvirts[desktop["server"]]
        domain = connection.lookupByName(domainxml.domain_name(DesktopId(desktop["id"])))
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(libvirt.libvirtError):
                if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
                    libvirt_qemu.qemuAgentCommand(domain, _PING, 5, 0)
                    return
            assert time.monotonic() < deadline, "the guest does not answer"
            time.sleep(0.002)

    async def _all_asleep(self) -> None:
        """Wait until every standby is ready and sleeps: what is made anew meanwhile takes a processor."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            items = (await self._boss.ask("GET", "/api/v1/desktops"))["items"]
            states = [desktop["state"] for desktop in items]
            if states == ["ready"] * self._scene.standby and await asyncio.to_thread(self._asleep, items):
                return
            assert time.monotonic() < deadline, f"desktops: {states}"
            await asyncio.sleep(1)

    def _asleep(self, items: list[dict[str, Any]]) -> bool:
        for desktop in items:
            name = domainxml.domain_name(DesktopId(desktop["id"]))
            if self._libvirts[desktop["server"]].lookupByName(name).state()[0] != libvirt.VIR_DOMAIN_PAUSED:
                return False
        return True

    async def close(self) -> None:
        """Let go of all connections."""
        for caller in (self._boss, *self._people):
            await caller.close()
        for connection in self._libvirts.values():
            connection.close()
