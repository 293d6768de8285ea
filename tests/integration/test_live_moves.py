"""Desktops that somebody works on move off a draining server: three real daemons, real guests that count."""

import json
import time

import pytest

from appliance.demo.cluster import Cluster
from appliance.demo.server import Server
from tests.integration.test_personal_desktop import own_template
from tests.lab import grids
from tests.lab.api import Api, wait_for
from tests.lab.grids import Item
from tests.lab.writing import Guest

pytestmark = pytest.mark.libvirt

COUNT = (
    "[ -e /mnt/counts ] || { touch /mnt/counts; (i=0; while :; do i=$((i+1)); echo $i >/mnt/count; sleep 0.05; done) "
    ">/dev/null 2>&1 & }"
)
MOVED_S = 120.0


def shown(client: Api, desktop: str) -> Item:
    return client.ask("GET", f"/desktops/{desktop}").ok()  # type: ignore[no-any-return]


def sh(guest: Guest, script: str) -> str:
    """Run a script that may run twice; while a safe copy is being made, the agent answers now and then only."""

    def said() -> tuple[str] | None:
        try:
            return (guest.sh(script),)
        except AssertionError:
            return None

    return wait_for("the guest's agent answers", said, timeout_s=90)[0]


def at_work(home: Server, desktop: str) -> str:
    """Have a guest count, and save five MiB; returns their sum."""
    guest = Guest(home, desktop)
    sh(guest, COUNT)
    return sh(
        guest, "[ -e /mnt/work ] || dd if=/dev/urandom of=/mnt/work bs=1M count=5 2>/dev/null; sync; md5sum /mnt/work"
    ).split()[0]


def counted(guest: Guest) -> int:
    return int(sh(guest, "cat /mnt/count").strip() or 0)


def stood_still_ms(server: Server, name: str) -> int:
    """Return how long a desktop stood still when it left, by its server's own log."""
    lines = [line for line in server.log.read_text().splitlines() if "goes on elsewhere" in line and name in line]
    told = lines[-1]
    if told.startswith("{"):
        return int(json.loads(told)["stood_still_ms"])
    return int(told.partition("stood_still_ms=")[2].split()[0])


@pytest.mark.parametrize("kind", ["pooled", "personal"])
def test_a_drained_server_hands_a_running_desktop_over_and_its_count_goes_on(branch: Cluster, kind: str) -> None:
    boss = grids.admin(branch, branch.servers[0])
    if kind == "personal":
        own_template(boss)
    given = grids.claim(grids.person(branch, branch.servers[0], "heike"), "own" if kind == "personal" else "office")
    desktop = given["id"]
    home = next(server for server in branch.servers if server.id == given["server"])
    checksum = at_work(home, desktop)
    before = counted(Guest(home, desktop))
    began = time.monotonic()
    boss.ask("POST", f"/servers/{home.id}/drain", {}).ok()
    wait_for("it is handed over", lambda: shown(boss, desktop)["server"] != home.id, timeout_s=MOVED_S, every_s=0.2)
    told = shown(boss, desktop)
    target = next(server for server in branch.servers if server.id == told["server"])
    domain = f"kmgr-{desktop}"
    wait_for("it runs there", lambda: grids.virsh(target, "domstate", domain) == "running", timeout_s=20, every_s=0.2)
    took_s = time.monotonic() - began
    guest = Guest(target, desktop)
    first = counted(guest)
    wait_for("the count goes on", lambda: counted(guest) > first, timeout_s=20)
    assert first >= before > 0
    assert sh(guest, "md5sum /mnt/work").split()[0] == checksum
    assert (told["generation"], told["user"], told["state"]) == (2, "heike", "in_use")
    wait_for("nothing is left", lambda: desktop not in grids.domains(home), timeout_s=30)
    still = stood_still_ms(home, told["name"])
    print(f"{kind}: moved {took_s:.1f} s after the drain was asked for; it stood still for {still} ms")
    # Undone: the server is given desktops again, and nobody was thrown out.
    boss.ask("POST", f"/servers/{home.id}/undrain", {}).ok()
    wait_for("it is up", lambda: grids.states(boss)[home.name] == "up", timeout_s=20)
    assert shown(boss, desktop)["state"] == "in_use"
    lose = "?lose=heike" if kind == "personal" else ""
    boss.ask("DELETE", f"/desktops/{desktop}{lose}").ok()
    wait_for("it is gone", lambda: desktop not in {d["id"] for d in boss.items("desktops")}, timeout_s=60)
