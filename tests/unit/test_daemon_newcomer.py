"""A server without a grid: what it says, and that it goes on by itself when a join was cut off or typed elsewhere."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kmgr.clock import SystemClock
from kmgr.config import Config
from kmgr.control import ask
from kmgr.daemon.newcomer import run_newcomer
from kmgr.errors import Refused
from kmgr.grid import identity
from tests.lab.join_lab import Fresh, Office, free_port


@asynccontextmanager
async def newcomer(data_dir: Path) -> AsyncIterator["asyncio.Task[None]"]:
    """Serve the wizard inside; stopped in the end if it has not ended by itself."""
    config = Config(data_dir, "b", web_host="127.0.0.1", web_port=free_port(), mdns=False)
    stop, ready = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(run_newcomer(config, clock=SystemClock(), stop=stop, ready=lambda _: ready.set()))
    await asyncio.wait_for(ready.wait(), 20)
    yield running
    stop.set()
    await asyncio.wait_for(running, 20)


async def test_the_daemon_finishes_a_join_that_was_cut_off(office: Office, tmp_path: Path) -> None:
    fresh = Fresh(tmp_path)
    asked = await office.asked_and_cut_off(fresh)
    assert identity.load(fresh.data_dir) is None
    async with newcomer(fresh.data_dir) as running:
        await asyncio.wait_for(asyncio.shield(running), 20)
    own = identity.load(fresh.data_dir)
    assert own is not None and own.server == asked


async def test_while_the_grid_is_away_the_wizard_is_served_and_nothing_is_lost(
    office: Office, tmp_path: Path
) -> None:
    fresh = Fresh(tmp_path)
    await office.asked_and_cut_off(fresh)
    await office.port.stop()
    async with newcomer(fresh.data_dir) as running:
        await asyncio.sleep(0.3)
        assert not running.done() and identity.unfinished(fresh.data_dir) is not None
    assert identity.load(fresh.data_dir) is None


async def test_a_grid_that_was_joined_from_a_terminal_is_noticed(office: Office, tmp_path: Path) -> None:
    fresh = Fresh(tmp_path)
    await fresh.join(office, await office.phrase())
    async with newcomer(fresh.data_dir) as running:
        await asyncio.wait_for(asyncio.shield(running), 20)


async def test_a_command_is_told_that_there_is_no_grid_yet_and_where_the_wizard_is(tmp_path: Path) -> None:
    async with newcomer(tmp_path / "b"):
        for word in ("status", "drain", "images"):
            with pytest.raises(Refused, match=r"no grid yet: open https://.* or type kmgr init or kmgr join"):
                await ask(tmp_path / "b", word)
