"""A server without a grid that was killed while it joined: the daemon finishes by itself, without a phrase."""

import asyncio
from pathlib import Path

from kmgr.clock import SystemClock
from kmgr.config import Config
from kmgr.daemon.newcomer import run_newcomer
from kmgr.grid import identity
from tests.lab.join_lab import Fresh, Office, free_port


async def test_the_daemon_finishes_a_join_that_was_cut_off(tmp_path: Path) -> None:
    office = Office(tmp_path)
    await office.start()
    try:
        fresh = Fresh(tmp_path)
        asked = await office.asked_and_cut_off(fresh)
        assert identity.load(fresh.data_dir) is None
        config = Config(fresh.data_dir, "b", web_host="127.0.0.1", web_port=free_port(), mdns=False)
        stop = asyncio.Event()
        running = run_newcomer(config, clock=SystemClock(), stop=stop, ready=lambda _: None)
        await asyncio.wait_for(running, 20)
        assert not stop.is_set()
    finally:
        await office.stop()
    own = identity.load(fresh.data_dir)
    assert own is not None and own.server == asked


async def test_while_the_grid_is_away_the_wizard_is_served_and_nothing_is_lost(tmp_path: Path) -> None:
    office = Office(tmp_path)
    await office.start()
    try:
        fresh = Fresh(tmp_path)
        await office.asked_and_cut_off(fresh)
        await office.port.stop()
        config = Config(fresh.data_dir, "b", web_host="127.0.0.1", web_port=free_port(), mdns=False)
        stop, ready = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(
            run_newcomer(config, clock=SystemClock(), stop=stop, ready=lambda _: ready.set())
        )
        await asyncio.wait_for(ready.wait(), 20)
        await asyncio.sleep(0.3)
        assert not running.done() and identity.unfinished(fresh.data_dir) is not None
        stop.set()
        await asyncio.wait_for(running, 20)
    finally:
        await office.stop()
    assert identity.load(fresh.data_dir) is None
