"""Guests whose agents hang keep nobody waiting but who asks them: libvirt behind a connection that is played."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")

from kmgr.errors import Unavailable  # noqa: E402
from kmgr.ids import DesktopId  # noqa: E402
from kmgr.provision import domainxml  # noqa: E402
from kmgr.provision.hypervisor import DomainState  # noqa: E402
from kmgr.provision.libvirt_driver import LibvirtDriver  # noqa: E402
from tests.lab.hypervisors import plain  # noqa: E402

CLAIMED = DesktopId("dsk-claimed")
HUNG = [DesktopId(f"dsk-hung-{number}") for number in range(8)]


class Played:
    """A libvirt whose domains sleep; asking a guest's agent there takes until `gate` opens."""

    def __init__(self, folder: Path) -> None:
        self.gate = threading.Event()
        self.states = dict.fromkeys([CLAIMED, *HUNG], libvirt.VIR_DOMAIN_PAUSED)
        self.states |= dict.fromkeys(HUNG, libvirt.VIR_DOMAIN_RUNNING)
        self.xml = {one: domainxml.render(plain(folder, one, 1)) for one in self.states}
        self.opened = 0

    def open(self, _: str) -> Any:
        self.opened += 1
        return Connection(self)


class Connection:
    """One connection to it."""

    def __init__(self, played: Played) -> None:
        self.played = played

    def isAlive(self) -> bool:  # noqa: N802 - libvirt's name
        return True

    def lookupByName(self, name: str) -> Any:  # noqa: N802
        (found,) = [one for one in self.played.states if domainxml.domain_name(one) == name]
        return Domain(self.played, found)

    def listAllDomains(self) -> list[Any]:  # noqa: N802
        return [Domain(self.played, one) for one in self.played.states]

    def close(self) -> None:
        pass


class Domain:
    """One of its domains. What asks for its agent asks whether it is active first: there it hangs."""

    def __init__(self, played: Played, desktop: DesktopId) -> None:
        self.played, self.desktop = played, desktop

    def XMLDesc(self, _: int) -> str:  # noqa: N802
        return self.played.xml[self.desktop]

    def state(self) -> tuple[int, int]:
        return (self.played.states[self.desktop], 0)

    def isPersistent(self) -> bool:  # noqa: N802
        return True

    def isActive(self) -> bool:  # noqa: N802
        self.played.gate.wait()
        return False

    def shutdown(self) -> None:
        self.played.gate.wait()

    def resume(self) -> None:
        self.played.states[self.desktop] = libvirt.VIR_DOMAIN_RUNNING


@pytest.fixture
async def played(tmp_path: Path) -> AsyncIterator[Played]:
    played = Played(tmp_path)
    yield played
    played.gate.set()
    await asyncio.sleep(0.02)


async def test_a_claim_wakes_its_desktop_beside_eight_guests_that_hang(played: Played) -> None:
    driver = LibvirtDriver("played", grid="grid-1", deadline_s=30, open=played.open)
    asked = [asyncio.ensure_future(driver.answers(one)) for one in HUNG]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await driver.start(CLAIMED)
        states = {status.desktop: status.state for status in await driver.domains()}
    assert states[CLAIMED] is DomainState.RUNNING
    assert not any(one.done() for one in asked)
    assert played.opened == 2, "guests are asked over a connection of their own: libvirtd queues the calls of each"
    played.gate.set()
    assert await asyncio.gather(*asked) == [False] * 8
    await driver.close()


async def test_guests_that_do_not_say_whether_they_go_off_keep_only_who_asks_them_waiting(played: Played) -> None:
    driver = LibvirtDriver("played", grid="grid-1", deadline_s=0.5, open=played.open)
    for one in HUNG[:5]:
        with pytest.raises(Unavailable):
            await driver.shut_down(one)
    assert len(await driver.domains()) == 9, "this server runs desktops as before"
    played.gate.set()
    await asyncio.sleep(0.1)
    await driver.close()


async def test_guests_that_hang_do_not_look_like_a_libvirt_that_hangs(played: Played) -> None:
    driver = LibvirtDriver("played", grid="grid-1", deadline_s=0.5, open=played.open)
    for one in HUNG:
        with pytest.raises(Unavailable, match="libvirt, asked for guests that run here"):
            await driver.answers(one)
    assert len(await driver.domains()) == 9
    with pytest.raises(Unavailable, match="hangs: 4 calls are without an answer"):
        await driver.answers(HUNG[0])
    assert len(await driver.domains()) == 9, "this server runs desktops as before"
    played.gate.set()
    await asyncio.sleep(0.1)
    assert await driver.answers(HUNG[0]) is False
    await driver.close()
