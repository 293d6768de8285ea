"""A real daemon is killed while a disk image arrives: what was acknowledged is there, and the command goes on."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.api import wait_for
from tests.lab.daemons import KMGR, Daemon, kmgr, sets
from tests.lab.ports import port

MIB = 1 << 20
DISK_MIB = 320


@pytest.fixture
def one() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="kmgr-", dir="/tmp") as folder:
        data = Path(folder) / "one"
        init = kmgr(
            *("init", "--name", "one", "--grid", "office", "--password-file", "-", "--data", str(data)),
            *sets(port(640), port(641)),
            stdin="long-enough-1",
        )
        assert init.returncode == 0, init.stderr
        daemon = Daemon(data)
        daemon.start()
        yield daemon
        daemon.stop()


def arrived(daemon: Daemon) -> int:
    """Return how much the daemon acknowledged, as it lies on the disk."""
    records = list((daemon.data / "images" / "tmp").glob("arr-*.json"))
    return int(json.loads(records[0].read_text())["offset"]) if records else 0


def test_an_import_goes_on_after_its_daemon_was_killed(one: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "office.raw"
    with file.open("wb") as disk:
        disk.write(bytes(510) + b"\x55\xaa")
        for _ in range(DISK_MIB // 32):
            disk.write(os.urandom(32 * MIB))
        disk.truncate(DISK_MIB * MIB)
    words = ("image", "import", str(file), "--name", "office", "--data", str(one.data))
    with subprocess.Popen([str(KMGR), *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
        wait_for("some of it is here", lambda: arrived(one) > 0, timeout_s=30, every_s=0.02)
        one.kill()
        _, told = sender.communicate(timeout=60)
    assert sender.returncode == 69, told
    kept = arrived(one)
    assert 0 < kept < DISK_MIB * MIB
    one.start()
    assert arrived(one) == kept
    again = kmgr(*words)
    assert again.returncode == 0, again.stderr
    listed = kmgr("image", "list", "--data", str(one.data), "--json")
    told_of = json.loads(listed.stdout)
    assert [(image["name"], len(image["versions"])) for image in told_of["images"]] == [("office", 1)]
    assert told_of["imports"] == []
    (raw,) = (one.data / "images").glob("ver-*.raw")
    assert raw.read_bytes() == file.read_bytes()
    assert not list((one.data / "images" / "tmp").iterdir())
