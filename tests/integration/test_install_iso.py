"""From an ISO to version 1: it is uploaded, boots beside an empty disk, installs, and what it wrote is published.

The installer is a real one to the machine (`tests.lab.boot_iso`): it writes a system onto the disk and restarts, and
that system runs from the disk then. One server, a real daemon, libvirt and QEMU.
"""

import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.demo.cluster import ADMIN, Cluster
from appliance.demo.server import Server
from tests.lab import boot_iso, efi_iso, grids
from tests.lab.api import Api, wait_for

pytestmark = pytest.mark.libvirt

SHAPE = {"vcpus": 1, "memory_mib": 64, "standby": 1, "maximum": 1, "disk_gib": 1}
SECTOR = 512


@pytest.fixture(scope="module")
def lab(make_grid: Callable[..., Cluster]) -> Cluster:
    """One server with nothing on it."""
    grid = make_grid("install", names=("one",))
    grid.start()
    boss = grids.admin(grid, grid.servers[0])
    wait_for("its hypervisor has answered", lambda: boss.items("servers")[0]["can_run_desktops"], timeout_s=60)
    return grid


def upload(boss: Api, name: str, data: bytes) -> Any:
    return boss.ask("POST", f"/images?name={name}&file={name}.iso", raw=data, kind="application/octet-stream")


def template(boss: Api) -> dict[str, Any]:
    return next(one for one in boss.items("templates") if one["name"] == "fresh")


def goes_off(server: Server, desktop: str) -> bool:
    """Press a key in a guest; true once it is off."""
    if grids.emulator(desktop) is None:
        return True
    with suppress(AssertionError):  # it has gone off meanwhile
        grids.virsh(server, "send-key", f"kmgr-{desktop}", "KEY_ENTER")
    return False


def written(disk: Path) -> bool:
    """Tell whether anything is on an empty disk by now; it may have been there before anybody looked."""
    found = subprocess.run(["qemu-img", "map", "-U", "--output=json", disk], capture_output=True, check=True)
    return any(stretch["data"] for stretch in json.loads(found.stdout))


def test_what_an_iso_installs_is_version_one(lab: Cluster) -> None:
    server = lab.servers[0]
    boss = grids.admin(lab, server)
    refused = upload(boss, "notes", b"This is no installer.\n" * 4000)
    assert refused.status == 400
    assert "it is a text file" in refused.body["error"]["message"]
    iso = upload(boss, "setup", boot_iso.image()).ok()
    assert iso["kind"] == "iso"

    made = boss.ask("POST", f"/images/{iso['id']}/install", {"name": "fresh", **SHAPE}).ok()
    assert made["user"] == ADMIN
    assert (template(boss)["installing"], template(boss)["enabled"]) == (iso["versions"][-1]["id"], False)

    def works() -> bool:
        found = boss.ask("GET", f"/desktops/{made['id']}").ok()
        assert found["state"] != "broken", found
        return bool(found["state"] == "in_use")

    wait_for("its desktop is there, though no agent answers", works, timeout_s=60)
    boss.ask("POST", f"/desktops/{made['id']}/ticket").ok()  # its screen opens as everybody's does
    overlay = server.data / "desktops" / f"{made['id']}.qcow2"
    wait_for("it has written on the disk", lambda: written(overlay), timeout_s=60)

    # A person shuts it down from inside: the installed system does so when a key is pressed.
    body = {"publish": True, "notes": "installed"}
    wanted = boss.ask("POST", f"/desktops/{made['id']}/version", body).ok()
    wait_for("it goes off", lambda: goes_off(server, made["id"]), timeout_s=60, every_s=1)
    wait_for("it is published", lambda: template(boss)["version"] == wanted["version"], timeout_s=120)
    after = template(boss)
    assert (after["image_name"], after["version_number"], after["installing"]) == ("fresh", 1, None)
    assert after["enabled"]
    raw = grids.raw_file(server, wanted["version"])
    assert raw.stat().st_size == 1 << 30
    with raw.open("rb") as disk:
        assert disk.read(SECTOR) == boot_iso.system(), "what the installer wrote"
        assert disk.read(SECTOR) == boot_iso.system(), "what the installed system wrote when it ran from the disk"
    boss.ask("PATCH", f"/templates/{after['id']}", {"enabled": False, "standby": 0}).ok()


def test_an_iso_that_only_uefi_starts_is_recognised_and_speaks(lab: Cluster) -> None:
    server = lab.servers[0]
    boss = grids.admin(lab, server)
    iso = upload(boss, "modern-setup", efi_iso.image()).ok()
    drivers = upload(boss, "drivers", boot_iso.image(bootable=False)).ok()
    assert drivers["kind"] == "drivers"
    body = {"name": "modern", **SHAPE, "system": "other_uefi", "drivers": drivers["id"]}
    made = boss.ask("POST", f"/images/{iso['id']}/install", body).ok()
    log = server.data / "desktops" / f"{made['id']}.log"

    def speaks() -> bool:
        found = boss.ask("GET", f"/desktops/{made['id']}").ok()
        assert found["state"] != "broken", found
        return log.exists() and efi_iso.HELLO in log.read_text(errors="replace")

    wait_for("its firmware has started what lies in the drive", speaks, timeout_s=180)
    variables = server.data / "desktops" / f"{made['id']}.nvram.fd"
    assert variables.exists()
    boss.ask("DELETE", f"/desktops/{made['id']}").ok()
    wait_for("its variables are gone with it", lambda: not variables.exists(), timeout_s=60)
