"""kill -9 of the daemon in the middle of real desktops' transitions: the next one converges, nothing is left over.

`KMGR_KILLS=20` (`make kills`) kills more often than a run of all tests has time for.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from appliance.demo.cluster import Cluster
from appliance.demo.server import Server
from tests.lab import grids
from tests.lab.api import Api, wait_for
from tests.lab.grids import Item

pytestmark = pytest.mark.libvirt

TEMPLATE = "office"
KILLS = int(os.environ.get("KMGR_KILLS", "6"))
SEED = int(os.environ.get("KMGR_SEED", "3"))
# What is begun takes longer than this to end: a boot some seconds, a removal half of one.
LONGEST_S = 3.0
HEAL_S = 300.0


@pytest.fixture
def patient(branch: Cluster) -> Iterator[Cluster]:
    """The grid, patient: a daemon that is back within a minute keeps its desktops, however busy this machine is."""
    boss = grids.admin(branch, branch.servers[0])
    boss.ask("PATCH", "/settings", {"lost_after_ms": 60_000}).ok()
    yield branch
    boss = grids.admin(branch, branch.servers[0])
    boss.ask("PATCH", "/settings", {"lost_after_ms": 6_500}).ok()


class Mischief:
    """What can be going on when the daemon dies; each returns the desktop that it is about, None if there is none."""

    def __init__(self, grid: Cluster, desk: Server, chance: random.Random) -> None:
        self._grid = grid
        self._desk = desk
        self._chance = chance
        self._boss: Api | None = None

    @property
    def boss(self) -> Api:
        self._boss = grids.admin(self._grid, self._desk)
        return self._boss

    def claim(self) -> Item | None:
        """A standby is claimed, and one made in its place."""
        who = grids.person(self._grid, self._desk, f"visitor-{self._chance.randrange(2)}")
        answer = who.ask("POST", "/desktops", {"template": TEMPLATE})
        return answer.body if answer.status < 202 else None

    def give_back(self) -> Item | None:
        """A desktop in use is given back: removed, and one made in its place."""
        return self._ended("in_use")

    def retire(self) -> Item | None:
        """A standby is removed, and one made in its place."""
        return self._ended("ready")

    def unplug(self) -> Item | None:
        """A desktop goes off: booted again, or powered on again."""
        found = self._one("ready", "in_use")
        if found is not None:
            server = next(one for one in self._grid.servers if one.id == found["server"])
            with suppress(AssertionError):  # it may be off, or just going
                grids.virsh(server, "destroy", f"kmgr-{found['id']}")
        return found

    def lose_disk(self) -> Item | None:
        """Somebody deletes the disk of a standby and unplugs it: broken, then made anew."""
        found = self._one("ready")
        if found is not None:
            server = next(one for one in self._grid.servers if one.id == found["server"])
            (server.data / "desktops" / f"{found['id']}.qcow2").unlink(missing_ok=True)
            with suppress(AssertionError):
                grids.virsh(server, "destroy", f"kmgr-{found['id']}")
        return found

    def _ended(self, state: str) -> Item | None:
        found = self._one(state)
        if found is not None:
            self.boss.ask("DELETE", f"/desktops/{found['id']}")
        return found

    def _one(self, *states: str) -> Item | None:
        mine = [d for d in self.boss.items("desktops") if d["state"] in states and d["user"] != "worker"]
        return self._chance.choice(sorted(mine, key=lambda d: d["id"])) if mine else None


def kill(server: Server) -> None:
    """Kill the daemon as the kernel would for want of memory; libvirt and desktops stay."""
    daemon = server.daemon
    assert daemon is not None
    daemon.send(signal.SIGKILL)
    assert daemon.gone_within(10)


def test_a_daemon_killed_in_the_middle_of_desktops_leaves_nothing_over(
    patient: Cluster, record_property: Callable[[str, object], None]
) -> None:
    branch = patient
    chance = random.Random(SEED)  # noqa: S311 - the same moments each time
    desk, others = branch.servers[0], branch.servers
    worker = grids.person(branch, desk, "worker")
    kept = grids.claim(worker, TEMPLATE)
    ran = grids.emulator(kept["id"])
    assert ran is not None
    deeds = ("claim", "give_back", "retire", "unplug", "lose_disk")
    done: dict[str, int] = {}
    killed = 0
    while killed < KILLS:
        mischief = Mischief(branch, desk, chance)
        deed = deeds[killed % len(deeds)]
        with suppress(AssertionError):
            grids.standby(mischief.boss, timeout_s=20)
        about = getattr(mischief, deed)() or mischief.claim()
        # The server whose desktop it is about dies; the new one may be made anywhere.
        victim = next((s for s in others if about is not None and s.id == about["server"]), chance.choice(others))
        time.sleep(chance.uniform(0, LONGEST_S))  # the moment of the kill is what is being tested
        kill(victim)
        killed += 1
        done[deed] = done.get(deed, 0) + 1
        victim.start()
        wait_for(f"{desk.name} answers", lambda: _answers(desk), timeout_s=60)
    started = time.monotonic()
    boss = grids.admin(branch, desk)
    _retry_all(boss)
    for server in branch.servers:
        grids.only_wanted_domains(server, boss, timeout_s=HEAL_S)
    wait_for("all desktops are well", lambda: _well(grids.admin(branch, desk)), timeout_s=HEAL_S)
    record_property("kills", killed)
    record_property("healed_s", round(time.monotonic() - started, 1))
    for server in branch.servers:
        assert _files(server) <= grids.overlays(server), "something lies beside the desktops"
    assert grids.emulator(kept["id"]) == ran, "a desktop that somebody worked at was restarted"
    boss = grids.admin(branch, desk)
    life = boss.ask("GET", f"/desktops/{kept['id']}/life").ok()["items"]
    assert [stage["state"] for stage in life][-1] == "in_use"
    for desktop in boss.items("desktops"):
        if desktop["user"] is not None:
            boss.ask("DELETE", f"/desktops/{desktop['id']}").ok()


def _answers(server: Server) -> bool:
    with suppress(OSError, AssertionError):
        return bool(grids.api(server).ask("GET", "/status").ok()["majority"])
    return False


def _retry_all(boss: Api) -> None:
    for desktop in boss.items("desktops"):
        if desktop["state"] == "broken":
            assert desktop["trouble"] in ("no_disk", "no_domain"), desktop
            assert desktop["advice"]
            boss.ask("POST", f"/desktops/{desktop['id']}/retry").ok()


def _well(boss: Api) -> bool:
    _retry_all(boss)
    return {desktop["state"] for desktop in boss.items("desktops")} <= {"ready", "in_use"}


def _files(server: Server) -> set[str]:
    folder = server.data / "desktops"
    return {file.name.partition(".")[0] for file in folder.iterdir() if file.is_file()}
