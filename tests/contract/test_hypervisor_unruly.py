"""Guest agents that hang, flood, or say far too much: libvirt bears it, and nobody waits but who asks them."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from appliance.lab import processes
from appliance.lab.node import PrivateLibvirt
from kmgr.errors import KmgrError, Refused
from kmgr.provision.causes import Trouble, recognise
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.libvirt_driver import LibvirtDriver
from tests.lab import unruly
from tests.lab.hypervisors import D1, D2, until
from tests.lab.real_domains import defined

libvirt = pytest.importorskip("libvirt")
libvirt_qemu = pytest.importorskip("libvirt_qemu")
pytestmark = pytest.mark.libvirt

BOOT_S = 120
MIB = 1 << 20


@pytest.fixture(scope="module")
def booted(libvirtd: PrivateLibvirt, guest: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where libvirt has D1, whose guest answers, and D2, which is off and boots nothing."""
    folder = tmp_path_factory.mktemp("unruly")
    empty = folder / "empty.raw"
    empty.write_bytes(bytes(MIB))
    with defined(libvirtd.uri, folder, D1, guest) as domain, defined(libvirtd.uri, folder, D2, empty):
        domain.create()
        deadline = time.monotonic() + BOOT_S
        while not _answered(domain):
            assert time.monotonic() < deadline, "the guest does not boot"
            time.sleep(0.2)
        yield libvirtd.uri


def _answered(domain: Any) -> bool:
    with suppress(libvirt.libvirtError):
        return bool(libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": "guest-ping"}), 1, 0))
    return False


class Counted:
    """The driver, and how many connections it opened."""

    def __init__(self, uri: str) -> None:
        self.opened = 0
        self.driver = LibvirtDriver(uri, grid="grid-1", deadline_s=20, open=self._open)

    def _open(self, uri: str) -> Any:
        self.opened += 1
        return libvirt.open(uri)


@pytest.fixture
async def it(booted: str) -> AsyncIterator[Counted]:
    made = Counted(booted)
    yield made
    await made.driver.close()


async def test_an_answer_too_long_to_be_passed_on_is_the_guests_fault_and_no_dead_libvirt(it: Counted) -> None:
    program = unruly.captured("head -c 4000000 /dev/zero")
    pid = (await it.driver.agent(D1, "guest-exec", program, 10))["pid"]
    opened = it.opened

    async def ended() -> bool:
        return bool((await it.driver.agent(D1, "guest-exec-status", {"pid": pid}, 10)).get("exited"))

    with pytest.raises(Refused, match="sends more than it was asked for") as refusal:
        await until(ended, 60)
    assert recognise("guest", refusal.value.message) is Trouble.AGENT_FLOODS
    assert it.opened == opened, "the connection is as good as before"
    assert await it.driver.answers(D1)


@pytest.mark.parametrize(
    ("deed", "seconds", "trouble"),
    [
        pytest.param(unruly.HANGS, 7, None, id="hangs"),
        pytest.param(unruly.writes(unruly.LINES), 5, None, id="line after line"),
        # libvirt gives it up after 10 MiB, which it looks through again with each KiB.
        pytest.param(unruly.writes(unruly.ONE_LINE), 10, Trouble.AGENT_FLOODS, id="one endless line"),
    ],
)
async def test_an_agent_that_hangs_or_floods_keeps_nobody_else_waiting(
    it: Counted,
    libvirtd: PrivateLibvirt,
    record_property: Callable[[str, object], None],
    deed: str,
    seconds: int,
    trouble: Trouble | None,
) -> None:
    daemon = _libvirtd(libvirtd)
    await until(lambda: it.driver.answers(D1), 60)
    taken, used = daemon.memory_info().rss, sum(daemon.cpu_times()[:2])
    await it.driver.agent(D1, "guest-exec", unruly.detached(unruly.harmed(deed, seconds)), 10)

    async def silent() -> bool:
        return not await it.driver.answers(D1)

    await until(silent, 60)
    # As a build, a look for who is logged on and a canary's watch may ask at once.
    asked = [asyncio.ensure_future(it.driver.answers(D1)) for _ in range(3)]
    longest = 0.0
    for _ in range(5):
        began = time.monotonic()
        await it.driver.start(D2)
        states = {status.desktop: status.state for status in await it.driver.domains()}
        await it.driver.suspend(D2)
        longest = max(longest, time.monotonic() - began)
        assert states == {D1: DomainState.RUNNING, D2: DomainState.RUNNING}
        await asyncio.sleep(0.5)  # so that it goes on for a while meanwhile
    await asyncio.gather(*asked)
    words = await _refusal(it.driver)
    while trouble is not None and words and recognise("guest", words) is not trouble:
        words = await _refusal(it.driver)
    record_property("claim_longest_s", round(longest, 3))
    record_property("libvirtd_grew_mib", (daemon.memory_info().rss - taken) // MIB)
    record_property("libvirtd_cpu_s", round(sum(daemon.cpu_times()[:2]) - used, 1))
    record_property("words", words)
    assert daemon.memory_info().rss - taken < 64 * MIB
    assert trouble is None or recognise("guest", words) is trouble, words
    await until(lambda: it.driver.answers(D1), 60)

    async def nothing_left() -> bool:
        return not [thread for thread in threading.enumerate() if thread.name == "timely"]

    await until(nothing_left, 10)


async def _refusal(driver: LibvirtDriver) -> str:
    try:
        await driver.agent(D1, "guest-ping", {}, 2)
    except KmgrError as error:
        return error.message
    return ""


def _libvirtd(server: PrivateLibvirt) -> psutil.Process:
    init = server._init()
    assert init is not None
    (daemon,) = [one for one in processes.children(init) if processes.name_of(one) == "libvirtd"]
    return psutil.Process(daemon.pid)
