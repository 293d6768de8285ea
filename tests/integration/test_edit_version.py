"""A version is changed in a running desktop and published from it: what was written is in the next one."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.demo.cluster import ADMIN, Cluster
from appliance.demo.progress import Progress
from appliance.demo.scene import Director, Scene
from appliance.demo.server import Server
from tests.lab import grids
from tests.lab.api import Api, wait_for

pytestmark = pytest.mark.libvirt

SCENE = Scene(image="guest", template="lab", user="anna", memory_mib=192, standby=1, maximum=3)


@pytest.fixture(scope="module")
def lab(make_grid: Callable[..., Cluster], tiny_image: Path) -> Cluster:
    """One server with the test guest, and no desktop but those that are asked for."""
    grid = make_grid("edit", names=("one",))
    grid.start()
    director = Director(grid.admin(), SCENE, Progress())
    director.image(tiny_image, 1)
    director.template()
    boss = grids.admin(grid, grid.servers[0])
    boss.ask("PATCH", f"/templates/{template(boss)['id']}", {"standby": 0}).ok()
    wait_for("its hypervisor has answered", lambda: boss.items("servers")[0]["can_run_desktops"], timeout_s=60)
    return grid


def template(boss: Api) -> dict[str, Any]:
    return next(one for one in boss.items("templates") if one["name"] == SCENE.template)


def bench(boss: Api, version: int | str, purpose: str) -> dict[str, Any]:
    made = boss.ask("POST", f"/templates/{template(boss)['id']}/bench", {"version": version, "purpose": purpose}).ok()

    def works() -> dict[str, Any] | None:
        found: dict[str, Any] = boss.ask("GET", f"/desktops/{made['id']}").ok()
        assert found["state"] != "broken", found
        return found if found["state"] == "in_use" else None

    return wait_for(f"a desktop to {purpose} works", works, timeout_s=240)


def run(server: Server, desktop: str, command: str) -> str:
    """Run a command in a guest through its agent, and return what it printed."""

    def ask(name: str, **arguments: Any) -> Any:
        words = json.dumps({"execute": name, "arguments": arguments})
        return json.loads(grids.virsh(server, "qemu-agent-command", f"kmgr-{desktop}", words))["return"]

    pid = ask("guest-exec", path="/bin/sh", arg=["-c", command], **{"capture-output": True})["pid"]
    done = wait_for("it ran", lambda: (s := ask("guest-exec-status", pid=pid))["exited"] and s, timeout_s=60)
    return base64.b64decode(done.get("out-data", "")).decode()


def test_what_is_changed_in_a_desktop_is_in_the_version_that_is_published_from_it(lab: Cluster) -> None:
    server = lab.servers[0]
    boss = grids.admin(lab, server)
    edited = bench(boss, "default", "edit")
    assert edited["user"] == ADMIN
    run(server, edited["id"], "echo chemistry > /mnt/kmgr-edited; sync")
    wanted = boss.ask("POST", f"/desktops/{edited['id']}/version", {"publish": True, "notes": "chemistry"}).ok()
    wait_for("it is published", lambda: template(boss)["version"] == wanted["version"], timeout_s=240)
    assert template(boss)["version_number"] == 2
    wait_for(
        "the desktop is gone", lambda: edited["id"] not in {d["id"] for d in boss.items("desktops")}, timeout_s=60
    )
    tested = bench(boss, 2, "test")
    assert run(server, tested["id"], "cat /mnt/kmgr-edited").strip() == "chemistry"
    newest = boss.items(f"templates/{template(boss)['id']}/versions")[0]
    assert (newest["notes"], newest["author"], newest["tags"]) == ("chemistry", ADMIN, ["default", "head"])
    boss.ask("DELETE", f"/desktops/{tested['id']}").ok()
