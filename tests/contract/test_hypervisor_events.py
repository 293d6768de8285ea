"""libvirt tells by itself what happens to domains: its own test driver, and real QEMU under a private libvirtd."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.image import tiny
from appliance.lab import processes
from appliance.lab.node import PrivateLibvirt
from kmgr.errors import Unavailable
from kmgr.ids import DesktopId
from kmgr.provision import domainxml
from kmgr.provision.happening import Happening, What
from kmgr.provision.libvirt_events import LibvirtEvents, events
from kmgr.provision.listening import FIRMWARE_S
from tests.lab.raw_disk import raw_disk
from tests.lab.real_domains import defined

libvirt = pytest.importorskip("libvirt")

D1 = DesktopId("dsk-1")
XML = """<domain type='{kind}'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"""


class Ear:
    """Collects what is told until the connection breaks."""

    def __init__(self, uri: str) -> None:
        self.events = LibvirtEvents(uri, deadline_s=5)
        self.heard: list[Happening] = []
        self.over = ""
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        try:
            async for happening in self.events.happenings():
                self.heard.append(happening)
        except Unavailable as error:
            self.over = error.message

    async def until(self, what: What, desktop: DesktopId | None = None, limit_s: float = 10) -> float:
        """Wait for something to be told; returns how long it took."""
        return await self._wait(lambda: Happening(what, desktop) in self.heard, f"{what} of {desktop}", limit_s)

    async def until_over(self, limit_s: float) -> None:
        await self._wait(lambda: bool(self.over), "the end", limit_s)

    async def _wait(self, so: Any, what: str, limit_s: float) -> float:
        started = time.monotonic()
        while not so():
            assert time.monotonic() - started < limit_s, f"{what} was not told, but {self.heard} {self.over}"
            await asyncio.sleep(0.02)
        return time.monotonic() - started

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.events.close()


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    server = PrivateLibvirt(tmp_path_factory.mktemp("libvirt") / "s", "events")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def ear(libvirtd: PrivateLibvirt) -> AsyncIterator[Ear]:
    libvirtd.start()
    made = Ear(libvirtd.uri)
    await made.until(What.LISTENING)
    yield made
    await made.close()


@contextlib.contextmanager
def domain(uri: str, name: str, kind: str = "qemu") -> Iterator[Any]:
    connection = libvirt.open(uri)
    made = connection.defineXML(XML.format(name=name, kind=kind))
    try:
        yield made
    finally:
        for end in (made.destroy, made.undefine):
            with contextlib.suppress(libvirt.libvirtError):
                end()
        connection.close()


async def test_the_test_driver_tells_of_its_domains_too() -> None:
    ear = Ear("test:///default")
    await ear.until(What.LISTENING)
    # The test driver's domains live in the connection.
    connection = ear.events._connection
    made = await asyncio.to_thread(connection.defineXML, XML.format(name="kmgr-dsk-1", kind="test"))
    await ear.until(What.CHANGED, D1)
    await asyncio.to_thread(made.undefine)
    await ear.close()


def test_without_an_address_there_is_nothing_to_listen_to() -> None:
    assert events("") is None


async def test_a_libvirt_that_is_not_there_is_said(tmp_path: Path) -> None:
    ear = Ear(f"qemu+unix:///system?socket={tmp_path}/none")
    await ear.until_over(10)
    assert "libvirt is not answering" in ear.over
    await ear.close()


@pytest.mark.libvirt
async def test_start_halt_reset_and_end_are_told_and_strangers_are_not(ear: Ear, libvirtd: PrivateLibvirt) -> None:
    with domain(libvirtd.uri, "kmgr-dsk-1") as ours, domain(libvirtd.uri, "somebodys") as theirs:
        await asyncio.to_thread(theirs.create)
        for deed in (ours.create, ours.suspend, ours.resume, ours.destroy):
            await ear.until(What.CHANGED, D1)
            ear.heard.clear()
            await asyncio.to_thread(deed)
        await ear.until(What.CHANGED, D1)
        assert {happening.desktop for happening in ear.heard} == {D1}


@pytest.mark.libvirt
async def test_each_reboot_is_told(ear: Ear, libvirtd: PrivateLibvirt) -> None:
    with domain(libvirtd.uri, "kmgr-dsk-1") as ours:
        await asyncio.to_thread(ours.create)
        for _ in range(3):
            ear.heard.clear()
            await asyncio.to_thread(ours.reset)
            await ear.until(What.REBOOTED, D1)
            await asyncio.sleep(FIRMWARE_S)  # its own resets, which nothing counts


@pytest.mark.libvirt
async def test_a_libvirtd_that_goes_ends_it_at_once_and_one_that_is_back_tells_again(
    ear: Ear, libvirtd: PrivateLibvirt
) -> None:
    await asyncio.to_thread(libvirtd.stop_libvirtd)
    await ear.until_over(5)
    assert "broke off" in ear.over
    await asyncio.to_thread(libvirtd.start_libvirtd)
    again = Ear(libvirtd.uri)
    await again.until(What.LISTENING)
    with domain(libvirtd.uri, "kmgr-dsk-1"):
        await again.until(What.CHANGED, D1)
    await again.close()


@pytest.mark.libvirt
async def test_a_libvirtd_that_hangs_is_found_out_by_its_silence(ear: Ear, libvirtd: PrivateLibvirt) -> None:
    init = libvirtd._init()
    assert init is not None
    (daemon,) = [p for p in processes.children(init) if processes.name_of(p) == "libvirtd"]
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        await ear.until_over(40)
        assert "did not answer" in ear.over
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


@pytest.mark.libvirt
async def test_the_agent_of_a_booted_guest_is_told_before_anybody_asks(
    ear: Ear, libvirtd: PrivateLibvirt, tmp_path: Path
) -> None:
    raw = await asyncio.to_thread(lambda: raw_disk(tiny.quick(), tmp_path / "tiny.raw"))
    with defined(libvirtd.uri, tmp_path, D1, raw) as ours:
        await asyncio.to_thread(ours.create)
        await ear.until(What.ANSWERS, D1, limit_s=120)


async def test_one_thread_serves_all_connections() -> None:
    ears = [Ear("test:///default") for _ in range(3)]
    for ear in ears:
        await ear.until(What.LISTENING)
    assert [thread.name for thread in threading.enumerate()].count("libvirt-events") == 1
    for ear in ears:
        await ear.close()


def test_the_name_of_a_domain_is_that_of_its_desktop() -> None:
    assert domainxml.domain_name(D1) == "kmgr-dsk-1"
