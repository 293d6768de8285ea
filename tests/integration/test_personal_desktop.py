"""A personal desktop outlives its server: three real daemons, real guests, and one of them dies while it writes."""

import os
import signal
import time
from pathlib import Path

import pytest

from appliance.demo.cluster import Cluster
from appliance.demo.server import Server
from tests.lab import grids
from tests.lab.api import Api, wait_for
from tests.lab.grids import Item
from tests.lab.mirrors import file_system
from tests.lab.writing import RECORDS, Guest, Writer

pytestmark = pytest.mark.libvirt

IMAGE = "test-guest"
BACK_WITHIN_S = 45.0
# The record that is written after the failover only.
SINCE = 900_001


def own_template(boss: Api) -> None:
    """Make a template of personal desktops for everybody, unless an earlier test of this grid has."""
    if any(template["name"] == "own" for template in boss.items("templates")):
        return
    shape = {"vcpus": 1, "memory_mib": 192, "standby": 1, "maximum": 3}
    made = boss.ask("POST", "/templates", {"name": "own", "image": IMAGE, "kind": "personal", **shape}).ok()
    boss.ask("POST", f"/templates/{made['id']}/assignments", {"kind": "everyone"}).ok()


def shown(client: Api, desktop: str) -> Item:
    return client.ask("GET", f"/desktops/{desktop}").ok()  # type: ignore[no-any-return]


def protected(client: Api, desktop: str) -> bool:
    told = shown(client, desktop)["protection"]
    return bool(told) and told["state"] == "safe" and told["age_s"] is not None


def test_a_personal_desktop_goes_on_with_all_that_was_older_than_the_shown_age_and_its_former_disk_is_put_back(
    branch: Cluster, tmp_path: Path
) -> None:
    boss = grids.admin(branch, branch.servers[0])
    boss.ask("PATCH", "/settings", {"copy_target_s": 30}).ok()
    own_template(boss)
    frida = grids.person(branch, branch.servers[0], "frida")
    given = grids.claim(frida, "own")
    desktop = given["id"]
    victim = next(server for server in branch.servers if server.id == given["server"])
    others = [server for server in branch.servers if server is not victim]
    watcher = grids.admin(branch, others[0])
    writer = Writer(Guest(victim, desktop))
    writer.start()
    wait_for("there is a safe copy", lambda: protected(watcher, desktop), timeout_s=120)
    first = shown(watcher, desktop)["protection"]
    assert first["server"] != victim.id
    # A few cycles, of which later ones bring only what changed.
    time.sleep(25)
    told = shown(watcher, desktop)["protection"]
    promised = time.time() - told["age_s"] - 1
    assert told["state"] == "safe"

    began = time.monotonic()
    victim.power_cut()
    writer.ended.set()
    holder = next(server for server in others if server.id == told["server"])
    wait_for("it goes on elsewhere", lambda: _goes_on(watcher, desktop, holder), timeout_s=BACK_WITHIN_S + 60)
    guest = Guest(holder, desktop)
    wait_for("its guest answers", guest.answers, timeout_s=120)
    took_s = time.monotonic() - began
    found = guest.records()
    writer.join(30)
    saved = dict(writer.saved)
    due = {number for number, at in saved.items() if at <= promised}
    assert len(due) > 10
    assert due <= found, f"{sorted(due - found)} were older than what the console showed"
    told = shown(watcher, desktop)
    assert (told["generation"], told["user"], told["state"]) == (2, "frida", "in_use")
    wait_for("what is missing is told", lambda: shown(watcher, desktop)["taken_over"], timeout_s=20)
    print(f"back after {took_s:.1f} s; {len(due)} of {len(saved)} records were promised, {len(found)} found")
    print(shown(watcher, desktop)["taken_over"]["text"])

    # Its first server returns: what it had is kept aside, and holds the next copy.
    victim.start()
    wait_for(f"{victim.name} is up", lambda: grids.states(watcher)[victim.name] == "up", timeout_s=60)
    aside = victim.data / "superseded" / f"{desktop}.1.qcow2"
    wait_for("its former disk is aside", aside.exists, timeout_s=30)
    assert desktop not in grids.domains(victim)
    wait_for("it is protected again", lambda: protected(watcher, desktop), timeout_s=120)
    assert _in(aside, tmp_path) >= set(saved)

    # It has the work that the copy did not: an administrator has it put back; what was done since is kept aside.
    guest.sh(f"echo {SINCE} >>{RECORDS} && sync {RECORDS}")
    _put_back(watcher, desktop, victim, 1)
    guest = Guest(victim, desktop)
    wait_for("the guest of its former disk answers", guest.answers, timeout_s=120)
    assert guest.records() >= set(saved)
    assert SINCE not in guest.records()
    assert grids.emulator(desktop) is not None
    assert desktop not in grids.domains(holder)
    other = holder.data / "superseded" / f"{desktop}.2.qcow2"
    wait_for("the other disk is aside", other.exists, timeout_s=30)
    assert SINCE in _in(other, tmp_path)
    (disk,) = shown(watcher, desktop)["superseded"]
    assert (disk["server"], disk["generation"]) == (holder.id, 2)
    watcher.ask("DELETE", _superseded(desktop, holder, 2)).ok()
    wait_for("the other disk is gone", lambda: not other.exists(), timeout_s=30)
    assert guest.sh("echo alive").strip() == "alive"
    watcher.ask("DELETE", f"/desktops/{desktop}?lose=frida").ok()
    wait_for("nothing is left", lambda: desktop not in {d["id"] for d in watcher.items("desktops")}, timeout_s=60)


def _superseded(desktop: str, server: Server, generation: int, then: str = "") -> str:
    return f"/desktops/{desktop}/superseded{then}?server={server.id}&generation={generation}"


def _put_back(client: Api, desktop: str, server: Server, generation: int) -> None:
    """Have a superseded disk put back, and wait until the desktop goes on from it."""
    client.ask("POST", _superseded(desktop, server, generation, "/put-back")).ok()
    wait_for("it goes on from its former disk", lambda: _goes_on(client, desktop, server), timeout_s=60)
    wait_for("it is in use there", lambda: shown(client, desktop)["state"] == "in_use", timeout_s=120)


def _in(disk: Path, scratch: Path) -> set[int]:
    """Return the records in a disk of which nobody has the file open, and whose file system must be clean."""
    return {int(line) for line in file_system(disk, scratch).split()}


def _goes_on(client: Api, desktop: str, holder: Server) -> bool:
    return shown(client, desktop)["server"] == holder.id and grids.emulator(desktop) is not None


def test_when_its_daemon_is_killed_the_guard_halts_it_and_the_next_daemon_lets_it_go_on(branch: Cluster) -> None:
    boss = grids.admin(branch, branch.servers[0])
    own_template(boss)
    given = grids.claim(grids.person(branch, branch.servers[0], "frida"), "own")
    home = next(server for server in branch.servers if server.id == given["server"])
    domain = f"kmgr-{given['id']}"
    wait_for("it runs", lambda: grids.virsh(home, "domstate", domain) == "running", timeout_s=60)
    daemon = home.daemon
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGKILL)
    wait_for(
        "the guard halts it", lambda: grids.virsh(home, "domstate", domain) == "paused", timeout_s=15, every_s=0.2
    )
    home.start()
    wait_for("it goes on", lambda: grids.virsh(home, "domstate", domain) == "running", timeout_s=60)
    watcher = grids.admin(branch, home)
    assert shown(watcher, given["id"])["generation"] == 1
    watcher.ask("DELETE", f"/desktops/{given['id']}?lose=frida").ok()
