"""kill -9 of a daemon at random moments while people work: nothing acknowledged is lost, nothing is left over."""

import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from appliance.demo.cluster import Cluster
from appliance.demo.server import Server
from tests.lab import grids
from tests.lab.api import Api, wait_for

pytestmark = pytest.mark.libvirt

TEMPLATE = "office"
KILLS = 8
SEED = 20
# Longer than an import or a log-in takes, so that kills fall before, into and after them.
LONGEST_S = 1.2
DISK_MIB = 24


@dataclass(slots=True)
class Ledger:
    """What was acknowledged: must be there afterwards, on every server."""

    images: set[str] = field(default_factory=set)
    accounts: set[str] = field(default_factory=set)
    sessions: dict[str, str] = field(default_factory=dict)
    note: int = -1


def disk(path: Path, chance: random.Random, mebibytes: int) -> Path:
    """Write a raw disk that begins with a boot sector and holds no zeros."""
    data = bytearray(chance.randbytes(mebibytes << 20))
    data[510:512] = b"\x55\xaa"
    path.write_bytes(data)
    return path


class Work:
    """People at work at one server; what fails because it is killed is not counted, what is granted is."""

    def __init__(self, grid: Cluster, server: Server, file: Path, ledger: Ledger) -> None:
        self._grid = grid
        self._server = server
        self._file = file
        self._ledger = ledger

    def import_image(self, number: int) -> None:
        name = f"random-{number}"
        boss = grids.admin(self._grid, self._server)
        boss.ask("POST", f"/images?name={name}&file=x.raw", raw=self._file.read_bytes(), kind="x/y").ok()
        self._ledger.images.add(name)

    def make_account(self, number: int) -> None:
        name = f"guest-{number}"
        body = {"name": name, "display_name": name, "role": "user", "groups": [], "password": "long-enough-1"}
        grids.admin(self._grid, self._server).ask("POST", "/accounts", body).ok()
        self._ledger.accounts.add(name)
        self._ledger.sessions[name] = grids.api(self._server).log_in(name, "long-enough-1").token

    def change_template(self, number: int) -> None:
        boss = grids.admin(self._grid, self._server)
        template = next(t for t in boss.items("templates") if t["name"] == TEMPLATE)
        boss.ask("PATCH", f"/templates/{template['id']}", {"notes": f"note {number}"}).ok()
        self._ledger.note = number

    def claim_and_release(self, number: int) -> None:
        client = grids.person(self._grid, self._server, f"visitor-{number % 2}")
        answer = client.ask("POST", "/desktops", {"template": TEMPLATE})
        if answer.status < 202:
            client.ask("DELETE", f"/desktops/{answer.body['id']}").ok()


@contextmanager
def busy(work: Work, number: int) -> Iterator[None]:
    """Do everything there is to do at once, each in a thread; failing is allowed, hanging is not."""

    def attempt(deed: str) -> None:
        try:
            getattr(work, deed)(number)
        except (OSError, AssertionError):
            return  # the server died, or said that it could not: not acknowledged

    deeds = ("import_image", "make_account", "change_template", "claim_and_release")
    threads = [threading.Thread(target=attempt, args=[deed]) for deed in deeds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(timeout=40)
        assert not any(thread.is_alive() for thread in threads), "a request hangs for ever"


def kill(server: Server) -> None:
    """Kill the daemon as the kernel would for want of memory; libvirt and desktops stay."""
    daemon = server.daemon
    assert daemon is not None
    daemon.send(signal.SIGKILL)
    assert daemon.gone_within(10)


@pytest.fixture
def patient(office: Cluster) -> Iterator[Cluster]:
    """The grid, patient: a daemon that is back within a minute keeps its desktops, however busy this machine is."""
    boss = grids.admin(office, office.servers[0])
    boss.ask("PATCH", "/settings", {"lost_after_ms": 60_000}).ok()
    yield office
    boss = grids.admin(office, office.servers[0])
    boss.ask("PATCH", "/settings", {"lost_after_ms": 6_500}).ok()


def test_a_daemon_killed_at_any_moment_loses_nothing_and_leaves_nothing(patient: Cluster, tmp_path: Path) -> None:
    office = patient
    chance = random.Random(SEED)  # noqa: S311 - the same moments each time
    ledger = Ledger()
    file = disk(tmp_path / "disk.raw", chance, DISK_MIB)
    worker = grids.person(office, office.servers[0], "worker")
    desktop = grids.claim(worker, TEMPLATE)
    ran = grids.emulator(desktop["id"])
    assert ran is not None

    for number in range(KILLS):
        victim = chance.choice(office.servers)
        # Half of the people are at the server that dies, half at another.
        seat = victim if chance.random() < 0.5 else chance.choice(office.servers)
        with busy(Work(office, seat, file, ledger), number):
            time.sleep(chance.uniform(0, LONGEST_S))  # the moment of the kill is what is being tested
            kill(victim)
        victim.start()

    clients = [grids.admin(office, server) for server in office.servers]
    grids.caught_up(office.servers, timeout_s=60)
    for client in clients:
        _all_are_up(client)
    for what in ("desktops", "templates", "accounts", "events"):
        grids.agreed(clients, what)
    assert len(ledger.images) + len(ledger.accounts) >= KILLS // 2, f"too little was granted to prove much: {ledger}"
    for client in clients:
        assert ledger.accounts <= {account["name"] for account in client.items("accounts")}
        assert ledger.images <= {image["name"] for image in client.items("images")}
        template = next(t for t in client.items("templates") if t["name"] == TEMPLATE)
        # A later change may have been made without its answer getting through; an earlier one may not be back.
        assert ledger.note < 0 or int(template["notes"].split()[1]) >= ledger.note
    for name, token in ledger.sessions.items():
        for server in office.servers:
            seen = grids.api(server)
            seen.token = token
            assert seen.ask("GET", "/offers").status == 200, f"{name}'s session is not known at {server.name}"

    _nothing_is_left_over(office, clients[0])
    assert grids.emulator(desktop["id"]) == ran, "a desktop that somebody worked at was restarted"
    mine = grids.person(office, office.servers[1], "worker")
    assert grids.claim(mine, TEMPLATE)["id"] == desktop["id"]
    mine.ask("DELETE", f"/desktops/{desktop['id']}").ok()
    _remove_images(clients[0], office)


def _all_are_up(client: Api) -> None:
    wait_for("all are up", lambda: set(grids.states(client).values()) == {"up"}, timeout_s=30)


def _nothing_is_half_imported(server: Server) -> bool:
    return not any(file.is_file() for file in (server.data / "images" / "tmp").iterdir())


def _nothing_is_left_over(grid: Cluster, boss: Api) -> None:
    for image in [image["name"] for image in boss.items("images") if image["versions"]]:
        version = grids.everywhere(boss, image, len(grid.servers), timeout_s=120)
        assert grids.same_bytes([grids.raw_file(server, version["id"]) for server in grid.servers]), image
    for server in grid.servers:
        grids.only_wanted_domains(server, boss)
        wait_for(f"{server.name} has nothing half-imported", partial(_nothing_is_half_imported, server), timeout_s=10)


def _remove_images(boss: Api, grid: Cluster) -> None:
    made = [image for image in boss.items("images") if image["name"].startswith("random-")]
    versions = [version["id"] for image in made for version in image["versions"]]
    for image in made:
        boss.ask("DELETE", f"/images/{image['id']}").ok()
    for server in grid.servers:
        files = [grids.raw_file(server, version) for version in versions]
        wait_for(f"{server.name} has deleted the files", partial(_all_are_gone, files), timeout_s=30)


def _all_are_gone(files: Sequence[Path]) -> bool:
    return not any(file.exists() for file in files)
