"""The right to run personal desktops: granted by the log alone, for seconds counted from the question."""

import asyncio
import fcntl
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kmgr.balancer.fencing import Fencing
from kmgr.clock import ManualClock
from kmgr.daemon.guarding import Guarding
from kmgr.grid.model import Server, ServerState
from kmgr.ids import DesktopId, ServerId
from kmgr.provision import guard
from kmgr.provision.fake import FakeHypervisor
from kmgr.provision.halting import Halting
from kmgr.provision.hypervisor import DomainSpec, DomainState
from kmgr.provision.lease import LEASE_S, TAKE_OVER_S, Lease
from kmgr.provision.rhythm import MOST_RETRY_S, pause_s, retry_s
from tests.lab.provision import A, B, Office

OWN, POOLED = DesktopId("dsk-own"), DesktopId("dsk-pooled")


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    office.member(B)
    await office.found()
    yield office


def spec(desktop: DesktopId, *, personal: bool) -> DomainSpec:
    return DomainSpec(
        desktop, 1, "n", "grid-1", "t", 1, 128, "/d", "/v", "/l", "tcg", "user", personal=personal
    )  # fmt: skip


async def running(clock: ManualClock) -> FakeHypervisor:
    """Return a hypervisor on which a personal and a pooled desktop run."""
    hypervisor = FakeHypervisor(clock)
    for desktop in (OWN, POOLED):
        await hypervisor.define(spec(desktop, personal=desktop == OWN))
        await hypervisor.start(desktop)
    return hypervisor


async def states(hypervisor: FakeHypervisor) -> dict[DesktopId, DomainState]:
    return {status.desktop: status.state for status in await hypervisor.domains()}


async def test_a_lease_counts_from_the_question_not_from_the_answer(office: Office) -> None:
    ends: list[float] = []
    lease = Lease(office.grid, clock=office.clock, told=ends.append)
    assert not lease.holds()
    asked = office.clock.monotonic()
    slow = office.grid.barrier

    async def barrier(timeout_s: float = 5.0) -> None:
        await slow(timeout_s)
        await office.clock.sleep(1.5)

    office.grid.barrier = barrier  # type: ignore[method-assign]
    task = asyncio.create_task(lease.renew())
    await office.clock.advance(0)
    await office.clock.advance(1.5)
    assert await task
    assert ends == [asked + LEASE_S]
    assert lease.holds(LEASE_S - 1.6)
    assert not lease.holds(LEASE_S - 1.4)


async def test_without_a_majority_it_runs_out_and_says_why(office: Office) -> None:
    lease = Lease(office.grid, clock=office.clock)
    assert await lease.renew()
    office.log.cut_off.add(A)
    await office.clock.advance(LEASE_S - 0.1)
    assert not await lease.renew()
    assert lease.holds()
    await office.clock.advance(0.2)
    assert not lease.holds()
    assert "majority" in lease.why_not


async def test_a_server_that_counts_as_lost_gets_none_although_it_reaches_the_log(office: Office) -> None:
    lease = Lease(office.grid, clock=office.clock)
    await office.do("server.lost", server=A)
    assert not await lease.renew()
    assert "lost" in lease.why_not


async def test_without_a_guard_none_is_taken(office: Office) -> None:
    alive = False
    lease = Lease(office.grid, clock=office.clock, guarded=lambda: alive)
    assert not await lease.renew()
    assert "guard" in lease.why_not
    alive = True
    assert await lease.renew()


async def test_what_is_personal_is_halted_without_a_lease_and_nothing_else() -> None:
    clock = ManualClock()
    hypervisor = await running(clock)
    assert await Halting(hypervisor, lambda: False, clock=clock).halt() == (OWN,)
    assert await states(hypervisor) == {OWN: DomainState.PAUSED, POOLED: DomainState.RUNNING}


async def test_a_hypervisor_that_does_not_halt_is_a_problem_that_is_told() -> None:
    clock = ManualClock()
    hypervisor = await running(clock)
    hypervisor.down = "libvirt hangs"
    halting = Halting(hypervisor, lambda: False, clock=clock)
    assert await halting.halt() == ()
    assert "libvirt hangs" in halting.problem
    hypervisor.down = ""
    await halting.halt()
    assert halting.problem == ""


async def test_the_guard_halts_when_the_file_says_so_and_ends_when_nothing_is_left(tmp_path: Path) -> None:
    clock = ManualClock()
    hypervisor = await running(clock)
    path = tmp_path / "run" / "lease"
    path.parent.mkdir()
    guard.write_lease(path, clock.monotonic() + 5)
    task = asyncio.create_task(guard.watch(hypervisor, path, clock=clock))
    await clock.advance(4.7)
    assert (await states(hypervisor))[OWN] is DomainState.RUNNING
    await clock.advance(0.8)
    assert (await states(hypervisor))[OWN] is DomainState.PAUSED
    await clock.advance(guard.IDLE_S - 5)
    assert not task.done()
    await clock.advance(10)
    assert task.done()


@pytest.mark.parametrize("words", ["", "soon", "nan?"])
async def test_a_lease_file_that_says_nothing_is_no_lease(tmp_path: Path, words: str) -> None:
    path = tmp_path / "lease"
    assert guard.read_lease(path) == 0
    path.write_text(words)
    assert guard.read_lease(path) == 0


async def test_the_daemon_sees_whether_its_guard_lives(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    guarding = Guarding(tmp_path, "", "grid-1", needed=lambda: True, clock=ManualClock())
    guarding._command = (sys.executable, "-c", "", *guarding._command[3:])
    lock = os.open(tmp_path / "run" / guard.LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    await guarding.look()
    assert guarding.guarded()
    os.close(lock)
    await guarding.look()
    assert not guarding.guarded()
    (child,) = guarding._children
    assert child.wait(10) == 0


def away(state: ServerState, at: int) -> Server:
    return Server(ServerId("srv-a"), "a", "a:1", "a:2", state, "1", "", 0, at)


@pytest.mark.parametrize("state", [ServerState.LOST, ServerState.REMOVED])
def test_a_loss_is_waited_out_and_each_one_anew(state: ServerState) -> None:
    fencing = Fencing(TAKE_OVER_S)
    fenced: Callable[[Server, float], bool] = lambda server, now: bool(fencing.fenced([server], now))  # noqa: E731
    assert not fenced(away(state, 1), 100.0)
    assert not fenced(away(state, 1), 107.9)
    assert fenced(away(state, 1), 108.0)
    assert not fenced(away(ServerState.UP, 2), 109.0)
    assert not fenced(away(state, 3), 110.0)
    assert fenced(away(state, 3), 118.0)


def test_nobody_goes_on_before_a_lease_can_have_ended() -> None:
    assert TAKE_OVER_S >= LEASE_S + 2


@pytest.mark.parametrize("target_s", [10, 60, 3600])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 0.6])
def test_a_copy_is_never_older_than_the_target_while_cycles_take_what_they_took(target_s: int, part: float) -> None:
    took = part * target_s
    assert pause_s(target_s, took) + 2 * took <= target_s or part == 0.6
    assert pause_s(target_s, took) > 0


def test_what_fails_is_tried_again_sooner_than_after_a_minute() -> None:
    assert [retry_s(n) for n in (1, 2, 3, 6, 100)] == [2, 4, 8, MOST_RETRY_S, MOST_RETRY_S]
