"""A publication that goes wrong, and one that goes well, on real daemons, libvirt and guests.

A version that does not boot is stopped by its canary: nobody else is touched,
one alarm names it. A version that boots passes, and one action leads back.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.demo.cluster import Cluster
from appliance.demo.progress import Progress
from appliance.demo.scene import Director, Scene
from tests.lab import grids
from tests.lab.api import Api, wait_for

pytestmark = pytest.mark.libvirt

SCENE = Scene(image="guest", template="lab", user="anna", memory_mib=192, standby=1, maximum=3)
MIB = 1 << 20


@pytest.fixture(scope="module")
def lab(make_grid: Callable[..., Cluster], tiny_image: Path) -> Cluster:
    """One server with the test guest and one desktop of it standing by."""
    grid = make_grid("canary", names=("one",))
    grid.start()
    director = Director(grid.admin(), SCENE, Progress())
    director.image(tiny_image, 1)
    director.template()
    director.user(grid.password(SCENE.user))
    director.ready()
    return grid


def template(boss: Api) -> dict[str, Any]:
    return next(one for one in boss.items("templates") if one["name"] == SCENE.template)


def versions(boss: Api) -> dict[int, dict[str, Any]]:
    return {one["number"]: one for one in boss.items(f"templates/{template(boss)['id']}/versions")}


def import_version(boss: Api, file: Path) -> int:
    boss.ask("POST", f"/images?name={SCENE.image}&file={file.name}", raw=file.read_bytes(), kind="x/y").ok()
    made = grids.version(boss, SCENE.image)
    assert made is not None
    return int(made["number"])


def publish(boss: Api, number: int, **more: Any) -> None:
    boss.ask("POST", f"/templates/{template(boss)['id']}/publish", {"version": number, **more}).ok()


def ready_of(boss: Api, number: int) -> bool:
    found = versions(boss)[number]
    return bool(found["ready"])


def test_a_version_that_does_not_boot_is_stopped_and_nobody_else_is_touched(lab: Cluster, tmp_path: Path) -> None:
    server = lab.servers[0]
    boss, anna = grids.admin(lab, server), grids.person(lab, server, "anna")
    working = grids.claim(anna, SCENE.template)
    waiting = grids.standby(boss)[0]
    blank = tmp_path / "blank.raw"
    blank.write_bytes(bytes(510) + b"\x55\xaa" + bytes(8 * MIB - 512))
    number = import_version(boss, blank)
    boss.ask("PATCH", "/settings", {"build_timeout_s": 30}).ok()
    publish(boss, number, canary=1, watch_s=5, notes="an empty disk by mistake")

    wait_for("its canary is on its way", lambda: versions(boss)[number]["building"], timeout_s=60)
    assert ready_of(boss, 1), "the present version goes on serving"
    wait_for("it is stopped", lambda: versions(boss)[number]["stand"] == "stopped", timeout_s=180)

    stopped = versions(boss)[number]
    assert stopped["step"] == "guest"
    assert "1 of one desktop failed" in stopped["cause"]
    alarms = [one["text"] for one in boss.items("events") if one["kind"] == "alarm"]
    assert len([text for text in alarms if f"version {number} was stopped" in text]) == 1
    after = template(boss)
    assert (after["version_number"], after["broken_cause"], after["canary"]) == (1, "", None)
    desktops = {one["id"]: one for one in boss.items("desktops")}
    assert (desktops[working["id"]]["state"], desktops[working["id"]]["user"]) == ("in_use", "anna")
    assert desktops[waiting["id"]]["state"] == "ready"
    assert grids.emulator(working["id"]), "anna's desktop runs on"
    anna.ask("DELETE", f"/desktops/{working['id']}").ok()


def test_a_version_that_boots_passes_and_one_action_leads_back_to_warm_desktops(
    lab: Cluster, tiny_image: Path, tmp_path: Path
) -> None:
    server = lab.servers[0]
    boss, anna = grids.admin(lab, server), grids.person(lab, server, "anna")
    larger = tmp_path / "larger.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", tiny_image, larger], check=True)
    os.truncate(larger, larger.stat().st_size + MIB)
    number = import_version(boss, larger)
    boss.ask("PATCH", "/settings", {"build_timeout_s": 300}).ok()
    publish(boss, number, canary=1, watch_s=3)
    wait_for("its canary is over", lambda: versions(boss)[number]["stand"] != "canary", timeout_s=360)
    assert versions(boss)[number]["stand"] == "published", versions(boss)[number]
    assert template(boss)["version_number"] == number
    wait_for("only its desktops stand by", lambda: not ready_of(boss, 1) and ready_of(boss, number), timeout_s=240)

    boss.ask("POST", f"/templates/{template(boss)['id']}/rollback", {}).ok()
    assert template(boss)["version_number"] == 1
    wait_for("a desktop of the former version is warm", lambda: ready_of(boss, 1), timeout_s=grids.DESKTOP_S)
    given = grids.claim(anna, SCENE.template)
    assert versions(boss)[1]["in_use"] == 1
    assert versions(boss)[number]["stand"] == "withdrawn"
    wait_for("none of the withdrawn one is left", lambda: not ready_of(boss, number), timeout_s=60)
    anna.ask("DELETE", f"/desktops/{given['id']}").ok()
