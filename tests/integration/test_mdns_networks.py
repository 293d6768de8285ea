"""mDNS in network namespaces: Debian's own browser sees a grid; where multicast is dropped an address is enough."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.network import Network
from tests.lab.api import wait_for
from tests.lab.daemons import KMGR

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

GRID, FRESH, AVAHI = 0, 1, 2
ROOT = Path(__file__).parents[2]
LOOK = """
import asyncio, dataclasses, json
from kmgr.grid.discovery import browse
print(json.dumps(dataclasses.asdict(asyncio.run(browse(2.5)))))
"""
# Nobody but this test speaks on this bus, so everything is allowed on it.
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/>
<allow own="*"/><allow user="*"/></policy>
</busconfig>"""
AVAHI_CONF = "[server]\nhost-name=looker\nuse-ipv6=no\nenable-dbus=yes\n[publish]\ndisable-publishing=yes\n"


class Office:
    """A grid of one daemon at the first place, and what runs at the others."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.children: list[subprocess.Popen[bytes]] = []

    def sets(self, place: int) -> list[str]:
        return ["--set", "web_host=0.0.0.0", "--set", "libvirt_uri=", "--set", "web_port=8443"]

    def kmgr(self, place: int, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = self.network.inside(place, str(KMGR), *words, "--data", str(self.folder / str(place)))
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)

    def begin(self, place: int, *words: str, env: dict[str, str] | None = None) -> None:
        with (self.folder / f"{place}-{len(self.children)}.log").open("wb") as out:
            self.children.append(
                subprocess.Popen(
                    self.network.inside(place, *words), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env
                )
            )

    def found(self, place: int) -> dict[str, Any]:
        command = self.network.inside(place, sys.executable, "-c", LOOK)
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, cwd=ROOT)
        return dict(json.loads(done.stdout))

    def has_majority(self) -> bool:
        done = self.kmgr(GRID, "status", "--json")
        return done.returncode == 0 and bool(json.loads(done.stdout)["majority"])

    def end(self) -> None:
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
            child.wait(20)


@pytest.fixture
def office(short_tmp: Path) -> Iterator[Office]:
    network = Network(3)
    folder = short_tmp / "mdns"
    folder.mkdir()
    office = Office(network, folder)
    asyncio.run(network.open())
    try:
        made = office.kmgr(
            GRID, "init", "--name", "one", "--grid", "Attic school", "--password-file", "-", *office.sets(GRID),
            stdin="long enough",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        office.begin(GRID, str(KMGR), "run", "--data", str(folder / str(GRID)))
        wait_for("the grid is up", office.has_majority, timeout_s=30)
        yield office
    finally:
        office.end()
        asyncio.run(network.close())
        shutil.rmtree(folder)


@pytest.mark.skipif(shutil.which("avahi-browse") is None, reason="needs avahi-daemon and avahi-utils")
def test_debians_avahi_sees_the_grid(office: Office) -> None:
    bus, conf = office.folder / "bus.conf", office.folder / "avahi.conf"
    socket = office.folder / "bus.socket"
    bus.write_text(BUS.format(socket=socket))
    conf.write_text(AVAHI_CONF)
    env = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={socket}"}
    office.begin(AVAHI, "dbus-daemon", f"--config-file={bus}", "--nofork", "--nopidfile")
    wait_for("the bus is there", socket.exists, timeout_s=10)
    # A /run of its own, for its process id and socket.
    office.begin(
        AVAHI, "unshare", "-m", "sh", "-c",
        "mount -t tmpfs none /run && mkdir /run/avahi-daemon && "
        f"exec avahi-daemon -f {conf} --no-drop-root --no-chroot",
        env=env,
    )  # fmt: skip

    def seen() -> list[str]:
        command = office.network.inside(AVAHI, "avahi-browse", "-rtp", "_kmgr._tcp")
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=env, check=False)
        return [line for line in done.stdout.splitlines() if line.startswith("=")]

    wait_for("avahi resolves it", lambda: bool(seen()), timeout_s=20)
    line = next(line for line in seen() if ";IPv4;" in line)
    fields = line.split(";")
    address = office.network.address(GRID)
    assert (fields[4], fields[7], fields[8]) == ("_kmgr._tcp", address, "8440")
    for told in ('"grid_name=Attic school"', '"name=one"', f'"address={address}:8440"', '"version='):
        assert told in line


def test_a_server_finds_the_grid_and_joins_what_it_found(office: Office) -> None:
    found = office.found(FRESH)
    assert found["problem"] == ""
    (grid,) = found["grids"]
    assert grid["name"] == "Attic school"
    (one,) = grid["servers"]
    phrase = office.kmgr(GRID, "invite", "--plain").stdout
    joined = office.kmgr(
        FRESH, "join", "--name", "two", "--to", one["grid_address"], "--phrase-file", "-", *office.sets(FRESH),
        stdin=phrase,
    )  # fmt: skip
    assert joined.returncode == 0, joined.stderr


def test_where_multicast_is_dropped_the_hint_is_shown_and_a_typed_address_joins(office: Office) -> None:
    for chain in ("INPUT", "OUTPUT"):
        drop = ["iptables", "-w", "5", "-A", chain, "-d", "224.0.0.0/4", "-j", "DROP"]
        subprocess.run(office.network.inside(FRESH, *drop), check=True)
    found = office.found(FRESH)
    assert found["grids"] == []
    assert "firewall" in found["problem"] and "Typing the address of a server always works" in found["problem"]
    phrase = office.kmgr(GRID, "invite", "--plain").stdout
    joined = office.kmgr(
        FRESH, "join", "--name", "two", "--to", f"{office.network.address(GRID)}:8440", "--phrase-file", "-",
        *office.sets(FRESH), stdin=phrase,
    )  # fmt: skip
    assert joined.returncode == 0, joined.stderr
    office.begin(FRESH, str(KMGR), "run", "--data", str(office.folder / str(FRESH)))

    def both_up() -> bool:
        done = office.kmgr(GRID, "status", "--json")
        return [one["state"] for one in json.loads(done.stdout)["servers"]] == ["up", "up"]

    wait_for("both are up", both_up, timeout_s=40)


def test_a_firewall_that_lets_nobody_in_is_told_before_anything_changes(office: Office) -> None:
    drop = ["iptables", "-w", "5", "-A", "INPUT", "-p", "tcp", "--dport", "8440", "-j", "DROP"]
    subprocess.run(office.network.inside(FRESH, *drop), check=True)
    phrase = office.kmgr(GRID, "invite", "--plain").stdout
    words = ("join", "--name", "one", "--to", f"{office.network.address(GRID)}:8440", "--phrase-file", "-")
    refused = office.kmgr(FRESH, *words, *office.sets(FRESH), stdin=phrase)
    assert refused.returncode == 1
    assert (
        f"stops the join: the grid cannot reach the new server back at {office.network.address(FRESH)}"
        in refused.stderr
    )
    assert "stops the join: the name 'one' is taken" in refused.stderr
    assert "nothing was changed" in refused.stderr
    assert len(json.loads(office.kmgr(GRID, "status", "--json").stdout)["servers"]) == 1
