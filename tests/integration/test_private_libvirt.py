"""The laboratory's libvirt: two side by side, sudden death, and nothing left behind."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from appliance.lab.node import PrivateLibvirt
from kmgr.errors import Unavailable

pytestmark = pytest.mark.libvirt

DOMAIN = """
<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>
"""


def virsh(server: PrivateLibvirt, *words: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        ["virsh", "-q", "-c", server.uri, *words], capture_output=True, text=True, timeout=60, check=True, input=stdin
    )
    return done.stdout.strip()


def create(server: PrivateLibvirt, name: str) -> None:
    file = server.folder / f"{name}.xml"
    file.write_text(DOMAIN.format(name=name))
    virsh(server, "create", str(file))


def qemus(name: str) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["name", "cmdline"])
        if (process.info["name"] or "").startswith("qemu") and f"guest={name}," in " ".join(process.info["cmdline"])
    ]


@pytest.fixture
def one(tmp_path: Path) -> Iterator[PrivateLibvirt]:
    server = PrivateLibvirt(tmp_path / "one", "one")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[PrivateLibvirt]:
    # Longer than a unix socket's path may be.
    server = PrivateLibvirt(tmp_path / ("two-" + "x" * 100), "two")
    server.start()
    yield server
    server.stop()


def test_two_on_one_machine_know_nothing_of_each_other(one: PrivateLibvirt, two: PrivateLibvirt) -> None:
    create(one, "lab-same-name")
    create(two, "lab-same-name")
    assert virsh(one, "hostname") == "one"
    assert virsh(two, "hostname") == "two"
    assert len(qemus("lab-same-name")) == 2
    one.power_cut()
    assert len(qemus("lab-same-name")) == 1
    assert virsh(two, "list", "--name") == "lab-same-name"


def test_a_desktop_survives_a_restart_of_libvirtd_and_not_a_power_cut(one: PrivateLibvirt) -> None:
    create(one, "lab-survivor")
    before = qemus("lab-survivor")
    one.restart_libvirtd()
    assert qemus("lab-survivor") == before
    assert virsh(one, "list", "--name") == "lab-survivor"
    one.power_cut()
    assert not one.is_running
    assert qemus("lab-survivor") == []
    one.start()
    assert virsh(one, "list", "--name") == ""


def test_a_stopped_libvirtd_is_told_from_a_dead_server(one: PrivateLibvirt) -> None:
    one.stop_libvirtd()
    assert one.is_running
    assert not one.answers()
    one.start()
    assert one.answers()


def test_a_server_started_by_a_process_that_died_is_found_and_stopped(one: PrivateLibvirt) -> None:
    heir = PrivateLibvirt(one.folder, "one")
    assert heir.is_running
    heir.start()
    heir.stop()
    assert not one.is_running


def test_nothing_is_left_after_stop(tmp_path: Path) -> None:
    server = PrivateLibvirt(tmp_path / ("long" * 30), "long")
    server.start()
    create(server, "lab-leftover")
    server.stop()
    assert qemus("lab-leftover") == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert not (server.folder / "run").exists()
    assert not (server.folder / "server.pid").exists()
    server.stop()


def test_what_is_asked_of_a_stopped_server_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does not run"):
        PrivateLibvirt(tmp_path, "nobody").restart_libvirtd()
