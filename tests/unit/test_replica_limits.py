"""How fast a server may copy follows who works at its desktops, at once and in the middle of a copy."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.grid.local import LocalNetwork
from kmgr.provision.uses import uses
from kmgr.replica.agent import ReplicaAgent
from kmgr.replica.images import Images
from tests.lab.keepers import Keeper, Keepers
from tests.lab.provision import A, Office
from tests.lab.sites import until
from tests.lab.state import State


@pytest.fixture
async def keepers(tmp_path: Path) -> AsyncIterator[Keepers]:
    made = Keepers(tmp_path, "ab")
    await made.open()
    yield made
    made.close()


def test_a_server_is_at_work_while_somebody_is_at_a_screen_of_its_desktops() -> None:
    state = State()
    a, b = state.server("a"), state.server("b")
    state.version("ver-1", [a, b])
    template = state.template("office")
    state.desktop(template, a)  # a standby
    used = state.desktop(template, a, "in_use")
    assert uses(state.db).at_work == frozenset()  # claimed, and nobody there
    state.db.execute("update desktops set connected_at = 1 where id = ?", [used])
    assert uses(state.db).at_work == {a}
    state.db.execute("update desktops set disconnected_at = 2 where id = ?", [used])
    assert uses(state.db).at_work == frozenset()
    edited = state.desktop(template, b, "in_use")
    state.db.execute("update desktops set purpose = 'edit' where id = ?", [edited])
    assert uses(state.db).at_work == {b}


def somebody_works(at: Keeper) -> None:
    at.grid.store.writer.execute(
        "insert into desktops (id, name, template, version, server, state, generation, vcpus, memory_mib, user, step,"
        " cause, created_at, changed_at, connected_at)"
        " values ('dsk-1', 'one', 'tpl-1', 'ver-9', ?, 'in_use', 1, 1, 64, 'anna', '', '', 1, 1, 1)",
        [at.id],
    )


async def test_the_lower_limit_begins_in_the_middle_of_a_copy(keepers: Keepers) -> None:
    a, b = keepers["a"], keepers["b"]
    await a.do("setting.set", name="image_mbit_s", value=80)
    await a.do("setting.set", name="image_mbit_s_beside_desktops", value=8)
    await keepers.imported(a)
    asked = asyncio.Event()

    async def never(*_: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    a.requests.serve("manifest", never)
    running = asyncio.create_task(b.agent.run_once())
    await asked.wait()
    assert b.agent.bytes_per_s == 10_000_000
    somebody_works(b)
    await a.do("setting.set", name="session_hours", value=9)  # any change of the state
    await until(lambda: b.agent.bytes_per_s == 1_000_000)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_server_s_own_limit_counts_whatever_the_grid_allows(tmp_path: Path) -> None:
    office = Office(tmp_path)
    agent = ReplicaAgent(office.grid, LocalNetwork().port(A), office.clock, Images(tmp_path), own_mbit_s=8)
    await agent.run_once()
    assert agent.bytes_per_s == 1_000_000
    sending = asyncio.create_task(agent.slow(2_000_000))
    await asyncio.sleep(0)
    await office.clock.advance(1.8)
    assert not sending.done()
    await office.clock.advance(0.3)
    await asyncio.wait_for(sending, 1)
