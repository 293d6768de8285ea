"""A server loses its power: until its users, its share of the pool and a personal desktop are back; and a roll-back.

Three whole servers on this machine, each with a libvirt of its own, real guests. Whoever had a desktop there logs in
at another server and asks again and again, as the portal's page does.
"""

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from appliance.demo.cluster import Cluster
from appliance.demo.scene import Director, Scene
from appliance.demo.server import Server
from appliance.image import tiny
from tests.bench.harness import Figure, Limit, figure
from tests.bench.people import Silent
from tests.bench.ports import WEB_PORT, quiet
from tests.lab import grids
from tests.lab.api import Api, wait_for
from tests.lab.grids import Item
from tests.lab.writing import Guest

POOL = 20
# As many users as this have their desktops where the power is cut.
HIT = 3
MOST = 12
SCENE = Scene(image="guest", template="pool", memory_mib=192, standby=POOL, maximum=3 * POOL)
OWN = "own"
OWNER = "frida"
LONG_S = 600.0
MIB = 1 << 20


async def measure(folder: Path, short: bool) -> list[Figure]:
    """Return the figures of lost servers and of a roll-back."""
    return await asyncio.to_thread(_measure, folder, 1 if short else 5)


def _measure(folder: Path, runs: int) -> list[Figure]:
    grid = Cluster(folder / "loss", web_port=WEB_PORT + 600, grid_port=WEB_PORT + 700, say=quiet)
    try:
        _set_up(grid)
        lost = [Loss(grid, turn).figures() for turn in range(runs)]
        back = _roll_back(grid, folder)
    finally:
        grid.stop()
    told, users, pool, own = ([one[part] for one in lost] for part in range(4))
    return [
        figure("power cut until the server is told lost", told, unit="s", limit=Limit(8)),
        figure(f"power cut until all of {HIT} users have another desktop", users, unit="s", limit=Limit(15)),
        figure(f"power cut until {POOL} stand by elsewhere", pool, unit="s", limit=Limit(90)),
        figure("power cut until a personal desktop's guest answers elsewhere", own, unit="s", limit=Limit(45)),
        figure("roll-back until a desktop of the former version stands by", back, unit="s", limit=Limit(60)),
    ]


def _set_up(grid: Cluster) -> None:
    grid.start()
    boss = grid.admin()
    director = Director(boss, SCENE, Silent())
    director.image(tiny.cached(), len(grid.servers))
    director.template()
    shape = {"vcpus": 1, "memory_mib": 192, "standby": 0, "maximum": 3}
    boss.ask("POST", "/templates", {"name": OWN, "image": SCENE.image, "kind": "personal", **shape}).ok()
    boss.ask("PATCH", "/settings", {"copy_target_s": 30}).ok()
    grids.claim(grids.person(grid, grid.servers[0], OWNER), OWN, timeout_s=LONG_S)


class Loss:
    """One power cut, from a whole grid to a whole grid."""

    def __init__(self, grid: Cluster, turn: int) -> None:
        self._grid = grid
        self._turn = turn
        boss = grids.admin(grid, grid.servers[0])
        self._own = next(desktop for desktop in boss.items("desktops") if desktop["template"] == OWN)
        self._victim = next(server for server in grid.servers if server.id == self._own["server"])
        self._others = [server for server in grid.servers if server is not self._victim]
        self._boss = grids.admin(grid, self._others[0])
        self._began = 0.0

    def figures(self) -> tuple[float, float, float, float]:
        """Return after how many seconds the loss was told, users, pool and personal desktop were back."""
        here, people = self._busy()
        self._whole()
        clients = {name: grids.api(server).log_in(name, self._grid.password(name)) for name, server in here.items()}
        self._began = time.monotonic()
        self._victim.power_cut()
        told = users = pool = own = 0.0
        waiting = dict(clients)
        while not (told and users and pool and own):
            assert time.monotonic() - self._began < LONG_S, (told, users, pool, own)
            told = told or self._since(grids.states(self._boss)[self._victim.name] == "lost")
            waiting = {name: client for name, client in waiting.items() if not self._has_another(client)}
            users = users or self._since(not waiting)
            pool = pool or self._since(len(self._standing_by()) >= POOL)
            own = own or self._since(self._own_answers())
            time.sleep(0.2)
        self._return(people)
        return told, users, pool, own

    def _since(self, now: bool) -> float:
        return time.monotonic() - self._began if now else 0.0

    def _busy(self) -> tuple[dict[str, Server], list[Api]]:
        """Give people desktops until enough of them have theirs on the victim; tell where those come back."""
        here: dict[str, Server] = {}
        clients = []
        for number in range(MOST):
            name = f"user{self._turn}-{number}"
            client = grids.person(self._grid, self._others[0], name)
            given = grids.claim(client, SCENE.template, timeout_s=LONG_S)
            clients.append(client)
            if given["server"] == self._victim.id:
                here[name] = self._others[len(here) % len(self._others)]
            if len(here) == HIT:
                return here, clients
        raise AssertionError(f"of {MOST} desktops only {len(here)} are on {self._victim.name}")

    def _whole(self) -> None:
        """Wait until the pool is full and the personal desktop has a safe copy that is young."""

        def look() -> bool:
            told = self._boss.ask("GET", f"/desktops/{self._own['id']}").ok()["protection"]
            safe = bool(told) and told["state"] == "safe" and told["age_s"] is not None
            return safe and len(self._standing_by()) >= POOL

        wait_for("the grid is whole", look, timeout_s=LONG_S)

    def _standing_by(self) -> list[Item]:
        found = self._boss.items("desktops")
        # Before the loss is told, what lies there still seems to stand by.
        lying = self._victim.id if self._began else ""
        return [one for one in found if one["state"] == "ready" and one["server"] != lying]

    def _has_another(self, client: Api) -> bool:
        answer = client.ask("POST", "/desktops", {"template": SCENE.template})
        return bool(answer.status < 202 and answer.body["server"] != self._victim.id)

    def _own_answers(self) -> bool:
        server = self._boss.ask("GET", f"/desktops/{self._own['id']}").ok()["server"]
        holder = next(one for one in self._grid.servers if one.id == server)
        if holder is self._victim:
            return False
        with suppress(AssertionError):
            return Guest(holder, self._own["id"]).answers()
        return False

    def _return(self, people: list[Api]) -> None:
        """Start the server again and give all desktops back."""
        self._victim.start()
        grids.becomes(self._boss, self._victim, "up", timeout_s=LONG_S)
        for client in people:
            for desktop in client.items("desktops"):
                client.ask("DELETE", f"/desktops/{desktop['id']}")


def _roll_back(grid: Cluster, folder: Path) -> list[float]:
    """Publish a second version, wait until only its desktops stand by, and go back."""
    boss = grids.admin(grid, grid.servers[0])
    template = next(one for one in boss.items("templates") if one["name"] == SCENE.template)
    larger = folder / "larger.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", tiny.cached(), larger], check=True)
    os.truncate(larger, larger.stat().st_size + MIB)
    boss.ask("POST", f"/images?name={SCENE.image}&file={larger.name}", raw=larger.read_bytes(), kind="x/y").ok()
    number = grids.everywhere(boss, SCENE.image, len(grid.servers))["number"]
    boss.ask("POST", f"/templates/{template['id']}/publish", {"version": number}).ok()

    def ready(wanted: int) -> Callable[[], bool]:
        return lambda: bool(next(one for one in _versions(boss, template) if one["number"] == wanted)["ready"])

    wait_for("only the second version stands by", lambda: ready(number)() and not ready(1)(), timeout_s=LONG_S)
    began = time.monotonic()
    boss.ask("POST", f"/templates/{template['id']}/rollback", {}).ok()
    wait_for("the first version stands by", ready(1), timeout_s=LONG_S, every_s=0.1)
    return [time.monotonic() - began]


def _versions(boss: Api, template: Item) -> list[Item]:
    return boss.items(f"templates/{template['id']}/versions")
