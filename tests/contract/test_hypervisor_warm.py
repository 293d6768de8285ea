"""One contract for every hypervisor: memory that is saved, domains restored from it, calls of the guest agent."""

import asyncio
import base64
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.image import tiny
from kmgr.errors import KmgrError, NotFound, Refused, Unavailable
from kmgr.ids import DesktopId
from kmgr.provision import domainxml, identity
from kmgr.provision.hypervisor import DomainSpec, DomainState, DomainStatus, Hypervisor, NoHypervisor
from kmgr.provision.identity import Identity
from tests.lab.hypervisors import D1, D2, NONE, OFF, RUNNING, Bench, WithLibvirt, domains, until
from tests.lab.raw_disk import raw_disk

WARM = DesktopId("warm-1")
BOOT_S = 300
SHARED = [False, True]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test guest whose kernel notices that it was restored from another's memory."""
    return raw_disk(tiny.cached(), tmp_path_factory.mktemp("guest") / "whole.raw")


def real(bench: Bench) -> bool:
    """libvirt's own test driver has guests without an agent and saves nothing that QEMU would."""
    if not bench.has_agent:
        pytest.skip("this driver has no guests")
    return isinstance(bench, WithLibvirt)


async def saved(bench: Bench, folder: Path, *, shared: bool) -> DomainSpec:
    """Boot a builder, save its memory; returns its spec, whose disk is as it was at that moment."""
    ram = folder / "ram"
    spec = replace(bench.spec(WARM), ram=str(ram) if shared else "")
    await asyncio.to_thread(folder.mkdir)
    if shared:
        await asyncio.to_thread(ram.touch)
    await bench.hypervisor.define(spec)
    await bench.hypervisor.start(WARM)
    await until(lambda: bench.hypervisor.answers(WARM), BOOT_S)
    await bench.hypervisor.save_warm(WARM, str(folder))
    return spec


def clone(bench: Bench, gold: DomainSpec, desktop: DesktopId) -> DomainSpec:
    spec = bench.spec(desktop)
    if Path(gold.disk).exists():
        shutil.copyfile(gold.disk, spec.disk)
    return spec


async def run(it: Hypervisor, desktop: DesktopId, arguments: Any) -> str:
    """Run a program in the guest; returns what it printed."""
    pid = (await it.agent(desktop, "guest-exec", arguments, 10))["pid"]
    while True:
        told = await it.agent(desktop, "guest-exec-status", {"pid": pid}, 10)
        if told["exited"]:
            assert told["exitcode"] == 0, told
            return base64.b64decode(told.get("out-data", "")).decode()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("shared", SHARED)
async def test_two_restored_from_one_memory_become_desktops_of_their_own(
    bench: Bench, tmp_path: Path, shared: bool
) -> None:
    real(bench)
    it = bench.hypervisor
    gold = await saved(bench, tmp_path / "warm", shared=shared)
    assert await domains(it) == [], "the builder is gone"
    drawn: list[str] = []
    for desktop in (D1, D2):
        spec = clone(bench, gold, desktop)
        await it.restore_warm(spec, str(tmp_path / "warm"))
        assert DomainStatus(desktop, 1, RUNNING, provisional=True) in await domains(it)
        assert await it.answers(desktop) or await until(partial(it.answers, desktop), 60)
        wanted = Identity(spec.name, domainxml.spec_mac(spec), f"seed of {desktop}", round(time.time()))
        told = identity.answer(await run(it, desktop, identity.program(wanted)))
        assert identity.problem(wanted, told, drawn=drawn) == ""
        drawn.append(told.sample)
        await it.define(spec)
        assert DomainStatus(desktop, 1, RUNNING) in await domains(it)
    bench.power_off(D1)
    assert await domains(it) == [DomainStatus(D1, 1, OFF), DomainStatus(D2, 1, RUNNING)]
    await it.start(D1)  # by booting, from its own disk
    await until(lambda: it.answers(D1), BOOT_S)
    await it.suspend(D2)
    assert not await it.answers(D2)
    await it.start(D2)
    await until(lambda: it.answers(D2), 60)
    for desktop in (D1, D2):
        await it.remove(desktop)
    assert await domains(it) == []


@pytest.mark.parametrize("shared", SHARED)
async def test_one_that_was_never_defined_is_replaced_or_removed(bench: Bench, tmp_path: Path, shared: bool) -> None:
    real(bench)
    it, warm = bench.hypervisor, tmp_path / "warm"
    gold = await saved(bench, warm, shared=shared)
    for _ in range(2):  # as after a kill in between
        await it.restore_warm(clone(bench, gold, D1), str(warm))
    assert await domains(it) == [DomainStatus(D1, 1, RUNNING, provisional=True)]
    await it.remove(D1)
    assert await domains(it) == []


@pytest.mark.parametrize("shared", SHARED)
async def test_a_memory_that_is_not_whole_is_refused_and_leaves_nothing(
    bench: Bench, tmp_path: Path, shared: bool
) -> None:
    it, warm = bench.hypervisor, tmp_path / "warm"
    if real(bench):
        gold = await saved(bench, warm, shared=shared)
        spec = clone(bench, gold, D1)
        file = warm / ("state" if shared else "memory")
        with file.open("r+b") as cut:
            cut.truncate(file.stat().st_size // 2)
    else:
        warm.mkdir()
        spec = bench.spec(D1)
    with pytest.raises(Refused):
        await it.restore_warm(spec, str(warm))
    assert await domains(it) == []


async def test_the_agent_is_called_and_says_what_it_will_not_do(bench: Bench) -> None:
    real(bench)
    it = bench.hypervisor
    with pytest.raises(NotFound, match=NONE):
        await it.agent(NONE, "guest-ping", {}, 1)
    await it.define(bench.spec(D1))
    with pytest.raises(Unavailable):
        await it.agent(D1, "guest-ping", {}, 1)
    await it.start(D1)
    await until(lambda: it.answers(D1), BOOT_S)
    assert await it.agent(D1, "guest-ping", {}, 3) == {}
    await it.suspend(D1)
    with pytest.raises(Unavailable, match="does not answer"):
        await it.agent(D1, "guest-ping", {}, 1)
    await it.start(D1)
    assert await it.agent(D1, "guest-set-time", {"time": 1_900_000_000 * 10**9}, 5) == {}


async def test_hardware_is_the_same_however_often_it_is_asked(bench: Bench) -> None:
    first = await bench.hypervisor.hardware()
    assert first
    assert first == await bench.hypervisor.hardware()


async def test_without_a_hypervisor_the_reason_is_told() -> None:
    none = NoHypervisor("no libvirt here")
    spec = DomainSpec(D1, 1, "x", "g", "t", 1, 64, "", "", "", "tcg", "user")
    calls = (
        none.agent(D1, "guest-ping", {}, 1), none.hardware(), none.save_warm(D1, ""), none.restore_warm(spec, ""),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(Unavailable, match="no libvirt here"):
            await call


async def test_an_agent_refuses_what_it_does_not_know(bench: Bench) -> None:
    if not real(bench):
        pytest.skip("the fake's guest does what a test says")
    it = bench.hypervisor
    await it.define(bench.spec(D1))
    await it.start(D1)
    await until(lambda: it.answers(D1), BOOT_S)
    with pytest.raises(KmgrError, match="guest-make-coffee"):
        await it.agent(D1, "guest-make-coffee", {}, 3)
    assert await domains(it) == [DomainStatus(D1, 1, DomainState.RUNNING)]
