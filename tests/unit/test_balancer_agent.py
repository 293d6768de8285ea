"""The leader's duty: what it proposes, when it keeps calm, and that it never spins."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from kmgr.balancer.agent import MOST_PER_ROUND, NOTHING
from kmgr.balancer.patience import PATIENCE_S
from kmgr.errors import Unavailable
from kmgr.grid.envelope import Command, Outcome, Rejected
from kmgr.grid.leadership import Leading
from kmgr.provision.model import DesktopState
from kmgr.registry import APPLIERS, ISLAND
from kmgr.users.broker import Ready
from tests.lab.state import State
from tests.lab.whole_grid import IDS, Lab

LONG_AGO = Leading(1, -1000.0)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A grid whose balancer is asked by the test alone; only the hearts beat."""
    lab = Lab(tmp_path)
    for server in lab.servers:
        await server.stop()
        server.heart.contribute("test", lambda: {"can_run_desktops": True})
    await lab.create()
    await beat(lab)
    yield lab
    await lab.close()


async def beat(lab: Lab) -> None:
    for server in lab.servers:
        await server.heart.beat()
    await lab.clock.advance(0.01)


async def test_a_round_says_what_it_did(lab: Lab) -> None:
    balancer = lab.servers[0].balancer
    assert await balancer.run_once(LONG_AGO) == "1 placed on a; 1 placed on b; 1 placed on c"
    assert await balancer.run_once(LONG_AGO) == NOTHING


async def test_losses_wait_for_the_calm_after_an_election_but_refills_do_not(lab: Lab) -> None:
    balancer = lab.servers[0].balancer
    await balancer.run_once(LONG_AGO)
    lost = next(d for d in lab.desktops() if d.server == IDS[2])
    await lab.do("server.lost", server=IDS[2])
    elected = Leading(2, lab.clock.monotonic())
    assert await balancer.run_once(elected) == NOTHING
    await lab.do("template.update", template="tpl-1", standby=4)
    assert "placed on" in await balancer.run_once(elected)
    assert lost in lab.desktops()
    await lab.clock.advance(3.1)
    await beat(lab)
    assert "1 retired because its server is lost" in await balancer.run_once(elected)


async def test_a_request_that_is_not_repeated_is_dropped(lab: Lab) -> None:
    balancer = lab.servers[0].balancer
    await lab.do("template.update", template="tpl-1", standby=0)
    await lab.open("anna")
    assert (await balancer.run_once(LONG_AGO)).startswith("1 placed on ")
    for _ in range(3):
        await lab.clock.advance(59)
        await beat(lab)
        assert await balancer.run_once(LONG_AGO) == NOTHING
    await lab.clock.advance(5)
    await beat(lab)
    assert await balancer.run_once(LONG_AGO) == "1 waits no longer"
    assert "1 retired because more stand by" in await balancer.run_once(LONG_AGO)
    await beat(lab)
    assert await balancer.run_once(LONG_AGO) == NOTHING


async def test_on_an_island_a_request_that_nobody_can_repeat_stops_nothing_and_is_waited_for_anew(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = lab.servers[0]
    await lab.open("anna")
    status, propose = server.log.status, server.log.propose

    async def as_island(type: str, body: Mapping[str, Any], **more: Any) -> Outcome:
        if type not in ISLAND:
            raise Unavailable("nothing was changed", code="island")
        return await propose(type, body, **more)

    with monkeypatch.context() as cut_off:
        cut_off.setattr(server.log, "status", lambda: replace(status(), island=True))
        cut_off.setattr(server.log, "propose", as_island)
        assert await server.balancer.run_once(LONG_AGO) == "1 placed on a"
        await lab.clock.advance(PATIENCE_S + 1)
        await beat(lab)
        assert await server.balancer.run_once(LONG_AGO) == NOTHING
        await lab.do("desktop.retire", desktop=lab.desktops()[0].id, why="test")
        assert await server.balancer.run_once(LONG_AGO) == "1 placed on a"
    assert "placed on" in await server.balancer.run_once(LONG_AGO)
    await lab.clock.advance(PATIENCE_S + 1)
    await beat(lab)
    assert "1 waits no longer" in await server.balancer.run_once(LONG_AGO)


async def test_a_loss_at_the_maximum_is_made_good_in_the_same_round(lab: Lab) -> None:
    balancer = lab.servers[0].balancer
    await lab.do("template.update", template="tpl-1", standby=3, maximum=3)
    await balancer.run_once(LONG_AGO)
    await lab.do("server.lost", server=IDS[1])
    said = await balancer.run_once(LONG_AGO)
    assert said.startswith("1 placed on ")
    assert "1 retired because its server is lost" in said


async def test_one_round_makes_no_more_than_so_many_changes(lab: Lab) -> None:
    for server in lab.servers:
        server.room |= {"cpus": 64, "memory_mib": 500_000, "memory_free_mib": 500_000}
    await beat(lab)
    await lab.do("template.update", template="tpl-1", standby=100, maximum=100)
    balancer = lab.servers[0].balancer
    assert f"{100 - MOST_PER_ROUND} left for the next round" in await balancer.run_once(LONG_AGO)
    assert len(lab.desktops()) == MOST_PER_ROUND
    await balancer.run_once(LONG_AGO)
    assert len(lab.desktops()) == 100


async def test_a_standby_claimed_while_it_plans_is_not_taken_away(lab: Lab) -> None:
    balancer = lab.servers[0].balancer
    await lab.do("template.update", template="tpl-1", standby=1)
    await balancer.run_once(LONG_AGO)
    (standby,) = lab.desktops()
    report = {"desktop": standby.id, "generation": 1, "server": standby.server}
    await lab.do("desktop.building", **report)
    await lab.do("desktop.ready", **report)
    await lab.do("template.update", template="tpl-1", standby=0)
    answer, said = await asyncio.gather(lab.open("anna"), balancer.run_once(LONG_AGO))
    assert isinstance(answer, Ready)
    assert said == "1 was rejected"
    assert [d.id for d in lab.desktops(DesktopState.IN_USE)] == [standby.id]


async def test_a_standby_claimed_in_the_same_moment_is_not_taken_away() -> None:
    state = State()
    server = state.server("a")
    state.version("ver-1", [server])
    desktop = state.desktop(state.template("win", standby=0), server)
    believed = {"generation": 1, "state": "ready", "server_state": "up"}
    state.do("desktop.claim", user="anna", template="tpl-win")
    outcome = state.do("desktop.retire", desktop=desktop, why="of a plan", **believed)
    assert outcome == Rejected("conflict", f"desktop {desktop[4:]} has state in_use, not ready any more")
    assert state.states("tpl-win") == [DesktopState.IN_USE]


async def test_a_server_that_returned_in_the_same_moment_keeps_its_desktops() -> None:
    state = State()
    server = state.server("a")
    desktop = state.desktop(state.template("win"), server, "in_use")
    believed = {"generation": 1, "state": "in_use", "server_state": "lost"}
    outcome = state.do("desktop.retire", desktop=desktop, why="of a plan", **believed)
    assert isinstance(outcome, Rejected)
    assert state.states("tpl-win") == [DesktopState.IN_USE]


async def test_rejected_changes_do_not_make_it_spin(lab: Lab) -> None:
    """With a plan that is rejected again and again, the log gets one entry per second, not one per turn."""
    server = lab.servers[0]
    await server.balancer.run_once(LONG_AGO)
    for other in lab.servers:
        other.log._machine._appliers = {**APPLIERS, "desktop.place": refuse}
    await lab.do("template.update", template="tpl-1", standby=4)
    task = asyncio.create_task(server.balancer.run(LONG_AGO))
    before = len(lab.log.entries)
    for _ in range(100):
        await lab.clock.advance(0.1)
        await beat(lab)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert 5 <= len(lab.log.entries) - before <= 11


def refuse(db: Database, command: Command) -> Outcome:
    """Apply nothing."""
    return Rejected("refused", "not today")
