"""Real guests restored from a saved memory: each is itself, sleeps until claimed, is whole after kills and cuts."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.image import tiny
from appliance.lab.node import PrivateLibvirt
from kmgr.ids import DesktopId
from kmgr.provision import domainxml, warm_files
from kmgr.provision.guest import printed
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.identity import Identity, answer, problem, program
from kmgr.provision.model import Origin
from kmgr.provision.warm import is_builder
from tests.lab.provision import done
from tests.lab.raw_disk import raw_disk
from tests.lab.real_desk import Real

pytestmark = pytest.mark.libvirt

PATIENCE_S = 600
# What a call takes to reach a guest on a busy machine.
SKEW_S = 15
NAMES = [DesktopId(f"dsk-00000000000{number}") for number in range(1, 5)]
LOOK = "hostname; cat /sys/class/net/e*/address; date +%s; ip -4 -o addr show | grep -c 10.0.2; cat /mnt/README"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test guest whose kernel notices that it was restored from another's memory."""
    return raw_disk(tiny.cached(), tmp_path_factory.mktemp("raw") / "ver-1.raw")


@pytest.fixture
async def real(libvirtd: PrivateLibvirt, raw: Path, tmp_path: Path) -> AsyncIterator[Real]:
    libvirtd.start()
    made = Real(tmp_path, libvirtd.uri, raw, mode="shared", max_builds=2, deadline_s=30)
    await made.found(memory_mib=128)
    yield made
    libvirtd.start()
    await made.end()


async def look(real: Real, desktop: DesktopId) -> list[str]:
    """Return what a guest says of itself."""
    program = {"path": "/bin/sh", "arg": ["-c", LOOK], "capture-output": True}
    pid = (await real.hypervisor.agent(desktop, "guest-exec", program, 20))["pid"]
    for _ in range(100):
        told = await real.hypervisor.agent(desktop, "guest-exec-status", {"pid": pid}, 20)
        if told["exited"]:
            return base64.b64decode(told["out-data"]).decode().splitlines()
        await asyncio.sleep(0.2)
    raise AssertionError("the guest's shell does not end")


async def states(real: Real) -> dict[DesktopId, DomainState]:
    return {status.desktop: status.state for status in await real.hypervisor.domains()}


async def answers(real: Real, desktop: DesktopId) -> bool:
    return await real.hypervisor.answers(desktop)


async def all_ready(real: Real) -> None:
    await real.until(lambda: list(real.states().values()) == ["ready"] * len(NAMES), PATIENCE_S)


async def is_itself(real: Real, name: DesktopId) -> None:
    before = time.time()
    told = await look(real, name)
    own = real.one(name)
    assert told[:2] == [own.name, domainxml.mac_address(name, own.generation)]
    assert before - SKEW_S < int(told[2]) < time.time() + SKEW_S
    assert told[4] == "The test guest's own disk."
    for _ in range(60):
        if told[3] == "1":
            break
        await asyncio.sleep(1)
        told = await look(real, name)
    assert told[3] == "1", "it has an address again"


async def is_on_time(real: Real, desktop: DesktopId) -> None:
    for _ in range(20):
        before = time.time()
        if before - SKEW_S < int((await look(real, desktop))[2]) < time.time() + SKEW_S:
            return
        await asyncio.sleep(0.5)
    raise AssertionError("it was not told the time")


async def test_each_is_itself_sleeps_until_it_is_claimed_and_boots_from_its_own_disk(
    real: Real, libvirtd: PrivateLibvirt
) -> None:
    for name in NAMES:
        done(await real.place(name))
    await all_ready(real)
    origins = [real.one(name).origin for name in NAMES]
    assert origins == [Origin.COLD, *[Origin.WARM] * 3], real.agent.vitals()
    assert not any(is_builder(desktop) for desktop in await states(real))
    for name in NAMES:  # the first one booted: it has its own name like the others
        await is_itself(real, name)

    done(await real.do("template.update", template="tpl", policy={"suspend_standby": True}))

    async def asleep() -> bool:
        return set((await states(real)).values()) == {DomainState.PAUSED}

    for _ in range(100):
        if await asleep():
            break
        await asyncio.sleep(1)
    assert await asleep()
    assert set(real.states().values()) == {"ready"}
    await asyncio.sleep(2 * SKEW_S)
    claimed = DesktopId(done(await real.do("desktop.claim", user="bea", template="tpl"))["desktop"])
    for _ in range(200):
        if await real.hypervisor.answers(claimed):
            break
        await asyncio.sleep(0.05)
    assert (await states(real))[claimed] is DomainState.RUNNING
    await is_on_time(real, claimed)

    done(await real.do("template.update", template="tpl", policy={"suspend_standby": False}))
    await asyncio.to_thread(libvirtd.power_cut)
    await asyncio.to_thread(libvirtd.start)
    await asyncio.sleep(5)
    for _ in range(PATIENCE_S):
        whole = set((await states(real)).values()) == {DomainState.RUNNING}
        if whole and sorted(real.states().values()) == ["in_use", *["ready"] * 3] and await answers(real, claimed):
            break
        await asyncio.sleep(1)
    assert sorted(real.states().values()) == ["in_use", *["ready"] * 3]
    assert (await look(real, claimed))[1] == domainxml.mac_address(claimed, 1)


async def test_an_agent_that_ends_at_any_moment_leaves_nothing_half(real: Real) -> None:
    for name in NAMES:
        done(await real.place(name))
    for pause in (8, 6, 4, 2, 1, 0.5):
        await asyncio.sleep(pause)
        await real.stop()
        real.start()
    await all_ready(real)
    await real.until(lambda: len(warm_files.kept(real.folder)) == 1, PATIENCE_S)
    await real.until(lambda: real.agent.vitals()["extra"]["warm"]["n"] == 1, 60)
    assert {status.desktop for status in await real.hypervisor.domains() if not is_builder(status.desktop)} == set(
        NAMES
    )
    assert not any(status.provisional for status in await real.hypervisor.domains())
    for name in NAMES:
        if real.one(name).origin is Origin.WARM:
            assert (await look(real, name))[0] == real.one(name).name


# A DHCP client that was begun a moment ago: it takes no signals yet.
BEGINS = r"""
kill -KILL $(pidof udhcpc); ip addr flush dev eth0
printf '#!/bin/sh\nsleep 5\nexec udhcpc "$@"\n' >/run/udhcpc; chmod +x /run/udhcpc
/run/udhcpc -i eth0 -b -S -s /etc/guest-dhcp </dev/null >/dev/null 2>&1 &
"""


async def test_one_whose_dhcp_client_was_just_begun_has_an_address_all_the_same(real: Real) -> None:
    done(await real.place(NAMES[0]))
    await real.until(lambda: real.states() == {NAMES[0]: "ready"}, PATIENCE_S)
    begins = {"path": "/bin/sh", "arg": ["-c", BEGINS], "capture-output": True}
    await printed(real.hypervisor, real.real, NAMES[0], begins)
    own = real.one(NAMES[0])
    wanted = Identity(own.name, domainxml.mac_address(own.id, own.generation), "seed", round(time.time()))
    told = answer(await printed(real.hypervisor, real.real, NAMES[0], program(wanted)))
    assert problem(wanted, told) == ""
    await is_itself(real, NAMES[0])
