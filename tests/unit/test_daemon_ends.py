"""A server that its grid left behind says so whatever it is asked; how a daemon ends where it can note nothing."""

import asyncio
from pathlib import Path

import pytest

from kmgr.clock import SystemClock
from kmgr.config import Config
from kmgr.control import ask
from kmgr.daemon import last_stop
from kmgr.daemon.left_behind import run_left_behind
from kmgr.errors import ConfigError, InvariantBroken, Refused
from tests.lab.join_lab import free_port


async def test_a_server_that_was_left_behind_says_so_to_every_command(tmp_path: Path) -> None:
    config = Config(tmp_path, "b", web_host="127.0.0.1", web_port=free_port())
    stop, ready = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(
        run_left_behind(
            config, "the grid went on without it", clock=SystemClock(), stop=stop, ready=lambda _: ready.set()
        )
    )
    await asyncio.wait_for(ready.wait(), 20)
    for word in ("status", "drain", "images", "verify"):
        with pytest.raises(Refused, match="the grid went on without it") as told:
            await ask(tmp_path, word)
        assert told.value.code == "fenced"
    stop.set()
    await asyncio.wait_for(running, 20)


def test_an_end_in_order_is_one_also_where_nothing_can_be_noted(tmp_path: Path) -> None:
    (tmp_path / "run" / "last_stop.json").mkdir(parents=True)  # stands for a disk that is read-only now
    with last_stop.counted(tmp_path):
        pass


def test_what_fails_three_times_in_the_same_way_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for _ in range(last_stop.MOST):
        with pytest.raises(InvariantBroken), last_stop.counted(tmp_path):
            raise InvariantBroken("entry 7 came after 5")
    words = r"stopped 3 times for the same reason.*entry 7 came after 5"
    with pytest.raises(ConfigError, match=words), last_stop.counted(tmp_path):
        pass
