"""One contract for every hypervisor: the fake, libvirt's own test driver, and real QEMU under a private libvirtd."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from appliance.lab import processes
from kmgr.clock import SystemClock
from kmgr.errors import NotFound, Refused, Unavailable
from kmgr.provision import domainxml
from kmgr.provision.hypervisor import DomainState, DomainStatus, NoHypervisor
from kmgr.provision.libvirt_driver import connect
from tests.lab.hypervisors import D1, D2, NONE, OFF, RUNNING, Bench, WithLibvirt, domains, plain, until

libvirt = pytest.importorskip("libvirt")


async def test_a_domains_life_from_nothing_to_nothing(bench: Bench) -> None:
    it = bench.hypervisor
    assert await domains(it) == []
    await it.define(bench.spec(D1, 3))
    assert await domains(it) == [DomainStatus(D1, 3, OFF)]
    assert not await it.answers(D1)
    await it.start(D1)
    assert await domains(it) == [DomainStatus(D1, 3, RUNNING)]
    if bench.has_agent:
        await until(lambda: it.answers(D1), 90)
    else:
        assert not await it.answers(D1)
    picture = await it.screenshot(D1)
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.rstrip(b"\n").endswith(b"IEND\xaeB`\x82")
    await it.remove(D1)
    assert await domains(it) == []


async def test_twice_is_once(bench: Bench) -> None:
    it = bench.hypervisor
    for _ in range(2):
        await it.define(bench.spec(D1))
    for _ in range(2):
        await it.start(D1)
    assert await domains(it) == [DomainStatus(D1, 1, RUNNING)]
    await it.define(bench.spec(D1))
    assert await domains(it) == [DomainStatus(D1, 1, RUNNING)], "a running one of the same generation goes on"
    for _ in range(2):
        await it.remove(D1)
    assert await domains(it) == []


async def test_all_at_once_is_as_good_as_one_after_another(bench: Bench) -> None:
    it = bench.hypervisor
    await asyncio.gather(*(it.define(bench.spec(d)) for d in (D1, D2)))
    await asyncio.gather(*(it.start(d) for d in (D1, D2, D1, D2)))
    assert await domains(it) == [DomainStatus(D1, 1, RUNNING), DomainStatus(D2, 1, RUNNING)]
    await asyncio.gather(*(it.remove(d) for d in (D1, D2)))
    assert await domains(it) == []


async def test_a_newer_generation_replaces_an_older_one_even_while_it_runs(bench: Bench) -> None:
    it = bench.hypervisor
    await it.define(bench.spec(D1, 1))
    await it.start(D1)
    await it.define(bench.spec(D1, 2))
    assert await domains(it) == [DomainStatus(D1, 2, OFF)]


async def test_a_personal_one_is_told_apart_halted_and_goes_on(bench: Bench) -> None:
    it = bench.hypervisor
    await it.define(replace(bench.spec(D1), personal=True))
    await it.suspend(D1)  # off: nothing to halt
    await it.start(D1)
    await it.define(bench.spec(D2))
    for _ in range(2):
        await it.suspend(D1)
    assert await domains(it) == [
        DomainStatus(D1, 1, DomainState.PAUSED, personal=True),
        DomainStatus(D2, 1, OFF, personal=False),
    ]
    await it.suspend(NONE)  # gone: nothing to halt
    await it.start(D1)
    assert await domains(it) == [DomainStatus(D1, 1, RUNNING, personal=True), DomainStatus(D2, 1, OFF)]
    await it.remove(D1)
    await it.remove(D2)


async def test_one_that_went_off_is_started_again(bench: Bench) -> None:
    it = bench.hypervisor
    await it.define(bench.spec(D1))
    await it.start(D1)
    bench.power_off(D1)
    assert await domains(it) == [DomainStatus(D1, 1, OFF)]
    assert not await it.answers(D1)
    with pytest.raises(Unavailable, match="powered off"):
        await it.screenshot(D1)
    await it.start(D1)
    assert await domains(it) == [DomainStatus(D1, 1, RUNNING)]


async def test_one_that_is_asked_to_shut_down_goes_off_in_order(bench: Bench) -> None:
    it = bench.hypervisor
    await it.define(bench.spec(D1))
    await it.shut_down(D1)  # off: nothing to ask
    await it.shut_down(NONE)  # gone: nothing to ask
    await it.start(D1)
    if bench.has_agent:
        await until(lambda: it.answers(D1), 90)
    await it.shut_down(D1)

    async def is_off() -> bool:
        return await domains(it) == [DomainStatus(D1, 1, OFF)]

    await until(is_off, 30)
    await it.start(D1)
    assert await domains(it) == [DomainStatus(D1, 1, RUNNING)]


async def test_what_is_not_there_is_said(bench: Bench) -> None:
    it = bench.hypervisor
    assert not await it.answers(NONE)
    await it.remove(NONE)
    for asked in (it.start(NONE), it.screenshot(NONE)):
        with pytest.raises(NotFound, match=NONE):
            await asked


# -- libvirt: others' domains ----------------------------------------------------------------------------------------


@pytest.fixture(params=["test-driver", pytest.param("qemu", marks=pytest.mark.libvirt)])
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[WithLibvirt]:
    """A libvirt on which somebody else has domains too."""
    uri, backing = "test:///default", None
    if request.param == "qemu":
        request.getfixturevalue("libvirtd").start()
        uri, backing = request.getfixturevalue("libvirtd").uri, request.getfixturevalue("guest")
    made = WithLibvirt(tmp_path, uri, backing=backing)
    yield made
    await made.close()


async def test_somebody_elses_domain_is_never_listed_changed_or_removed(shared: WithLibvirt) -> None:
    theirs = shared.stranger("their-windows")
    squatter = shared.stranger(domainxml.domain_name(D1))
    assert await domains(shared.hypervisor) == []
    await shared.hypervisor.remove(D1)
    with pytest.raises(Refused, match="not kmgr's: rename or remove it"):
        await shared.hypervisor.define(shared.spec(D1))
    with pytest.raises(NotFound):
        await shared.hypervisor.start(D1)
    assert not await shared.hypervisor.answers(D1)
    assert {theirs.name(), squatter.name()} <= {domain.name() for domain in shared.admin.listAllDomains()}
    assert not squatter.isActive()


async def test_another_grids_desktops_are_somebody_elses(shared: WithLibvirt) -> None:
    other = connect(shared.uri, grid="grid-2")
    await other.define(replace(shared.spec(D1), grid="grid-2"))
    assert await domains(shared.hypervisor) == []
    await shared.hypervisor.remove(D1)
    assert await domains(other) == [DomainStatus(D1, 1, OFF)]
    await other.close()


async def test_one_that_somebody_paused_goes_on(shared: WithLibvirt) -> None:
    await shared.hypervisor.define(shared.spec(D1))
    await shared.hypervisor.start(D1)
    shared.admin.lookupByName(domainxml.domain_name(D1)).suspend()
    assert await domains(shared.hypervisor) == [DomainStatus(D1, 1, DomainState.PAUSED)]
    await shared.hypervisor.start(D1)
    assert await domains(shared.hypervisor) == [DomainStatus(D1, 1, RUNNING)]


async def test_one_that_somebody_renamed_is_still_removed(shared: WithLibvirt) -> None:
    await shared.hypervisor.define(shared.spec(D1))
    try:
        shared.admin.lookupByName(domainxml.domain_name(D1)).rename("hidden")
    except libvirt.libvirtError:
        pytest.skip("this driver renames nothing")
    await shared.hypervisor.remove(D1)
    assert await domains(shared.hypervisor) == []


# -- libvirt: out of order -------------------------------------------------------------------------------------------


async def test_a_server_without_libvirt_says_so_in_words(tmp_path: Path) -> None:
    none = connect("", grid="grid-1")
    assert isinstance(none, NoHypervisor)
    nothing = connect(f"qemu+unix:///system?socket={tmp_path / 'nothing'}", grid="grid-1")
    for hypervisor, words in ((none, "libvirt_uri in its kmgr.toml is empty"), (nothing, "Start libvirtd")):
        with pytest.raises(Unavailable, match=words):
            await hypervisor.domains()
        with pytest.raises(Unavailable, match=words):
            await hypervisor.define(plain(tmp_path, D1, 1))
        await hypervisor.close()


@pytest.mark.libvirt
async def test_a_missing_disk_is_refused_with_the_cause_and_is_not_taken_for_a_dead_libvirt(
    qemu: WithLibvirt,
) -> None:
    spec = qemu.spec(D1)
    await qemu.hypervisor.define(spec)
    await asyncio.to_thread(Path(spec.disk).unlink)
    with pytest.raises(Refused, match="No such file"):
        await qemu.hypervisor.start(D1)
    assert await domains(qemu.hypervisor) == [DomainStatus(D1, 1, OFF)]


@pytest.mark.libvirt
async def test_libvirtd_stopped_and_started_again_heals_the_same_driver(qemu: WithLibvirt, libvirtd: Any) -> None:
    it = qemu.hypervisor
    await it.define(qemu.spec(D1))
    await it.start(D1)
    qemu.admin.close()
    await asyncio.to_thread(libvirtd.stop_libvirtd)
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"libvirt is not answering: .*Start libvirtd"):
            await it.domains()
    await asyncio.to_thread(libvirtd.start_libvirtd)
    assert await domains(it) == [DomainStatus(D1, 1, RUNNING)], "the desktop ran on"
    await asyncio.to_thread(libvirtd.restart_libvirtd)
    assert await domains(it) == [DomainStatus(D1, 1, RUNNING)], "a restart between two calls is not even noticed"
    qemu.admin = libvirt.open(qemu.uri)


@pytest.mark.libvirt
async def test_a_libvirtd_that_hangs_is_given_up_in_time_and_heals(qemu: WithLibvirt, libvirtd: Any) -> None:
    it = qemu.hypervisor
    await it.define(qemu.spec(D1))
    (daemon,) = [p for p in processes.children(libvirtd._init()) if processes.name_of(p) == "libvirtd"]
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        for _ in range(5):
            started = time.monotonic()
            with pytest.raises(Unavailable, match=r"libvirt (did not answer within 2 s|hangs).*systemctl status"):
                await it.domains()
            assert time.monotonic() - started < 4
        started = time.monotonic()
        with pytest.raises(Unavailable, match="hangs"):
            await it.domains()
        assert time.monotonic() - started < 0.5, "no further call piles up"
    finally:
        os.kill(daemon.pid, signal.SIGCONT)

    async def healed() -> bool:
        try:
            return await domains(it) == [DomainStatus(D1, 1, OFF)]
        except Unavailable:
            return False

    assert await until(healed, 10) < 5


@pytest.mark.libvirt
async def test_after_a_power_cut_definitions_are_there_and_nothing_runs(qemu: WithLibvirt, libvirtd: Any) -> None:
    it = qemu.hypervisor
    await it.define(qemu.spec(D1))
    await it.start(D1)
    qemu.admin.close()
    await asyncio.to_thread(libvirtd.power_cut)
    with pytest.raises(Unavailable):
        await it.domains()
    await asyncio.to_thread(libvirtd.start)
    assert await domains(it) == [DomainStatus(D1, 1, OFF)]
    await it.start(D1)
    assert await domains(it) == [DomainStatus(D1, 1, RUNNING)]
    qemu.admin = libvirt.open(qemu.uri)


@pytest.mark.libvirt
async def test_a_booted_guest_shows_its_screen_on_a_socket_and_listens_on_no_network(
    qemu: WithLibvirt, record_property: Callable[[str, object], None]
) -> None:
    it, spec, clock = qemu.hypervisor, qemu.spec(D1), SystemClock()
    started = clock.monotonic()
    await it.define(spec)
    await it.start(D1)
    begun = clock.monotonic()
    await until(lambda: it.answers(D1), 90)
    record_property("define_and_start_s", round(begun - started, 2))
    record_property("boot_to_ready_s", round(clock.monotonic() - begun, 2))
    reader, writer = await asyncio.open_unix_connection(spec.display)
    assert (await reader.readexactly(12)).startswith(b"RFB 003.")
    writer.close()
    # The serial console, for the administrator: this guest says there that it is up, a moment after its agent.
    await until(lambda: asyncio.to_thread(Path(spec.log).read_bytes), 60)
    # Its own: other runs of these tests on this machine have a guest of that name too.
    own = (f"guest={domainxml.domain_name(D1)},", spec.disk)
    (qemu_process,) = [p for p in psutil.process_iter() if all(word in " ".join(words(p)) for word in own)]
    assert [c for c in qemu_process.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
