"""The grid address in network namespaces: three real servers at a switch, a client that knows no other address."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kmgr.control import ask
from kmgr.errors import KmgrError
from tests.faults.network import Network, both
from tests.lab.api import wait_for
from tests.lab.daemons import KMGR

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

FLOATING = "10.203.0.100"
MOVED_WITHIN_S = 5.0
CLIENT = 3
NAMES = ("one", "two", "three")
ROOT = Path(__file__).parents[2]


class Place:
    """One server in its namespace."""

    def __init__(self, network: Network, number: int, folder: Path) -> None:
        self.network, self.number, self.name = network, number, NAMES[number]
        self.data = folder / self.name
        self.address = network.address(number)
        self.child: subprocess.Popen[bytes] | None = None

    def kmgr(self, *words: str, stdin: str = "") -> str:
        command = self.network.inside(self.number, str(KMGR), *words, "--data", str(self.data))
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sets(self) -> list[str]:
        values = {"web_host": "0.0.0.0", "libvirt_uri": "", "mdns": "false", "grid_address": f"{self.address}:8440"}  # noqa: S104
        return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]

    def start(self) -> None:
        with self.data.with_suffix(".log").open("ab") as out:
            self.child = subprocess.Popen(
                self.network.inside(self.number, str(KMGR), "run", "--data", str(self.data)),
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_for(f"{self.name} has a majority", lambda: self.status().get("majority"), timeout_s=30)

    def end(self, how: signal.Signals) -> None:
        if self.child is not None:
            self.child.send_signal(how)
            self.child.wait(20)
            self.child = None

    def status(self) -> Mapping[str, Any]:
        # The local door is a file: no namespace is in its way, and asking it is cheaper than a command.
        try:
            return asyncio.run(ask(self.data, "status"))
        except KmgrError:
            return {}

    def choose(self, address: str) -> None:
        asyncio.run(ask(self.data, "set", {"name": "grid_address_ip", "value": address}))

    def holds(self) -> bool:
        done = subprocess.run(
            ["ip", "-n", self.network.namespace(self.number), "-o", "-4", "addr", "show", "dev", "eth0"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return f" {FLOATING}/" in done.stdout

    def dropped(self) -> bool:
        return not self.holds()

    def log(self) -> str:
        return self.data.with_suffix(".log").read_text()


class Client:
    """Knocks at the grid address all the time and keeps every answer."""

    def __init__(self, network: Network) -> None:
        self.heard: list[tuple[float, str]] = []
        self._child = subprocess.Popen(
            network.inside(CLIENT, sys.executable, "-m", "tests.lab.knocker", FLOATING),
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            at, who = json.loads(line)
            self.heard.append((at, who))

    def stop(self) -> None:
        self._child.kill()
        self._child.wait(10)
        self._thread.join(10)
        if self._child.stdout is not None:
            self._child.stdout.close()

    def now(self) -> str:
        return self.heard[-1][1] if self.heard else ""

    def moved(self, since: float, *, to_other_than: str) -> float:
        """Wait until another server answers, steadily, and return how long after `since` it did first."""

        def look() -> float | None:
            later = [(at, who) for at, who in self.heard if at > since and who not in ("", to_other_than)]
            return later[0][0] - since if len(later) >= 5 and self.now() not in ("", to_other_than) else None

        return wait_for(f"another server than {to_other_than} answers", look, timeout_s=20, every_s=0.05)


class Office:
    """The servers, the client, and who holds the address."""

    def __init__(self, folder: Path) -> None:
        self.network = Network(4)
        self.places = [Place(self.network, number, folder) for number in range(3)]
        self.twice: list[tuple[float, tuple[str, ...]]] = []

    def open(self) -> None:
        asyncio.run(self.network.open())
        one, *others = self.places
        one.kmgr(
            "init", "--name", "one", "--grid", "floating", "--password-file", "-", *one.sets(), stdin="right-horse-7"
        )
        one.child = None
        one.start()
        for place in others:
            phrase = one.kmgr("invite", "--plain").strip()
            words = ["join", "--name", place.name, "--to", f"{one.address}:8440", "--phrase-file", "-", *place.sets()]
            place.kmgr(*words, stdin=phrase)
            place.start()
        wait_for("all vote", lambda: len(one.status().get("voters", ())) == 3, timeout_s=30)
        one.kmgr("set", "grid_address_ip", f"{FLOATING}/24")
        self.client = Client(self.network)
        wait_for("somebody answers at the grid address", self.client.now, timeout_s=20)

    def close(self) -> None:
        self.client.stop()
        for place in self.places:
            place.end(signal.SIGKILL)
        asyncio.run(self.network.close())

    def holder(self) -> Place:
        held = [place for place in self.places if place.holds()]
        assert len(held) == 1, [place.name for place in held]
        return held[0]

    def others(self, holder: Place) -> list[Place]:
        return [place for place in self.places if place is not holder]


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    office = Office(tmp_path_factory.mktemp("floating"))
    try:
        office.open()
        yield office
    finally:
        office.close()


def record(what: str, seconds: float) -> None:
    print(f"grid address, {what}: answered by another server after {seconds:.2f} s")


def test_a_killed_holder_loses_it_to_another_within_five_seconds(office: Office) -> None:
    for _ in range(3):
        holder = office.holder()
        began = time.monotonic()
        holder.end(signal.SIGKILL)
        took = office.client.moved(began, to_other_than=holder.name)
        record("holder killed", took)
        assert took <= MOVED_WITHIN_S
        wait_for("the dead one answers no more", holder.dropped, timeout_s=4, every_s=0.05)
        assert office.holder() is not holder
        holder.start()
        assert not holder.holds()


def test_a_holder_that_is_cut_off_drops_it_by_itself(office: Office) -> None:
    holder = office.holder()
    ways = both([holder.number], [place.number for place in office.others(holder)])
    began = time.monotonic()
    # The servers do not hear each other; the client hears all of them, and so does ARP.
    asyncio.run(office.network.block(ways))
    try:
        wait_for("it drops the address", lambda: not holder.holds(), timeout_s=MOVED_WITHIN_S, every_s=0.05)
        record("holder cut off, dropped", time.monotonic() - began)
        took = office.client.moved(began, to_other_than=holder.name)
        record("holder cut off", took)
        assert took <= MOVED_WITHIN_S
        # As an island it may hold the address only where nobody else does.
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            assert not holder.holds()
            time.sleep(0.3)
    finally:
        asyncio.run(office.network.unblock(ways))
    wait_for("all have a majority again", lambda: holder.status().get("majority"), timeout_s=20)
    assert office.holder() is not holder


def test_a_holder_whose_wire_is_pulled_loses_it_to_another(office: Office) -> None:
    holder = office.holder()
    switch, plug = office.network.namespace(0).rsplit("-", 1)[0] + "-switch", f"plug{holder.number}"
    began = time.monotonic()
    subprocess.run(["ip", "-n", switch, "link", "set", plug, "down"], check=True)
    took = office.client.moved(began, to_other_than=holder.name)
    record("wire of the holder pulled", took)
    assert took <= MOVED_WITHIN_S
    wait_for("it has dropped the address", lambda: not holder.holds(), timeout_s=3, every_s=0.05)
    subprocess.run(["ip", "-n", switch, "link", "set", plug, "up"], check=True)
    wait_for("it has a majority again", lambda: holder.status().get("majority"), timeout_s=20)
    assert office.holder() is not holder


def test_a_stopped_holder_drops_it_at_once(office: Office) -> None:
    holder = office.holder()
    began = time.monotonic()
    holder.end(signal.SIGTERM)
    assert not holder.holds()
    record("holder stopped in order", office.client.moved(began, to_other_than=holder.name))
    holder.start()


def test_an_address_that_somebody_else_has_is_not_taken_and_that_is_said(office: Office) -> None:
    taken = office.network.address(CLIENT)
    holder = office.holder()
    holder.choose(f"{taken}/24")
    try:
        wait_for(
            "the problem names the other machine",
            lambda: any(taken in text and "answers for it" in text for text in holder.status()["problems"]),
            timeout_s=20,
        )
        assert not any(place.holds() for place in office.places)
    finally:
        holder.choose(f"{FLOATING}/24")
    wait_for("the address is held again", lambda: any(place.holds() for place in office.places), timeout_s=10)


def test_the_certificate_is_good_for_the_grid_address(office: Office) -> None:
    holder = office.holder()
    command = [
        "openssl",
        "x509",
        "-in",
        str(holder.data / "identity" / "web.crt"),
        "-noout",
        "-ext",
        "subjectAltName",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert FLOATING in shown
