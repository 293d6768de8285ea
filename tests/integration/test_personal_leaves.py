"""A personal desktop that cannot be moved while it runs leaves a draining server: real daemons, a real guest."""

import pytest

from appliance.demo.cluster import Cluster
from tests.integration.test_personal_desktop import IMAGE, protected, shown
from tests.lab import grids
from tests.lab.api import wait_for
from tests.lab.writing import Guest, Writer

pytestmark = pytest.mark.libvirt

GONE_S = 180.0


def test_it_is_shut_down_and_goes_on_from_its_safe_copy_with_every_record(branch: Cluster) -> None:
    boss = grids.admin(branch, branch.servers[0])
    boss.ask("PATCH", "/settings", {"copy_target_s": 30}).ok()
    # QEMU does not move a desktop whose clipboard is shared.
    shape = {"vcpus": 1, "memory_mib": 192, "standby": 1, "maximum": 3, "policy": {"devices": {"clipboard": True}}}
    made = boss.ask("POST", "/templates", {"name": "stuck", "image": IMAGE, "kind": "personal", **shape}).ok()
    boss.ask("POST", f"/templates/{made['id']}/assignments", {"kind": "everyone"}).ok()
    given = grids.claim(grids.person(branch, branch.servers[0], "gerda"), "stuck")
    desktop = given["id"]
    home = next(server for server in branch.servers if server.id == given["server"])
    wait_for("there is a safe copy", lambda: protected(boss, desktop), timeout_s=120)
    refuge = next(s for s in branch.servers if s.id == shown(boss, desktop)["protection"]["server"])
    writer = Writer(Guest(home, desktop))
    writer.start()

    boss.ask("POST", f"/servers/{home.id}/drain", {"force": True}).ok()
    wait_for("it is handed over", lambda: shown(boss, desktop)["server"] == refuge.id, timeout_s=GONE_S, every_s=0.5)
    writer.ended.set()
    guest = Guest(refuge, desktop)
    wait_for("its guest answers there", guest.answers, timeout_s=120)
    writer.join(30)
    saved = {number for number, _ in writer.saved}
    found = guest.records()
    print(f"{len(saved)} records were saved, {len(found)} found")
    assert len(saved) > 10
    assert saved <= found, f"{sorted(saved - found)} are lost"
    told = shown(boss, desktop)
    assert (told["generation"], told["user"], told["state"]) == (2, "gerda", "in_use")
    assert "was shut down and goes on elsewhere" in home.log.read_text()
    assert not told["taken_over"], "nothing is missing, and nobody is told that something were"
    wait_for("nothing of it runs where it was", lambda: desktop not in grids.domains(home), timeout_s=30)
    wait_for("it is protected again", lambda: protected(boss, desktop), timeout_s=120)
    boss.ask("POST", f"/servers/{home.id}/undrain", {}).ok()
    boss.ask("DELETE", f"/desktops/{desktop}?lose=gerda").ok()
    wait_for("it is gone", lambda: desktop not in {d["id"] for d in boss.items("desktops")}, timeout_s=60)
