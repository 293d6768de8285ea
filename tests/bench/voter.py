"""A whole server of a grid that also measures itself: `python -m tests.bench.voter DATA`, orders on standard input.

`status` answers {"leader": bool, "majority": bool}; `measure N` answers {"commit": [ms], "append": [ms]}: N
commands proposed here and applied here, and as many appends of the same size, synced, to the same file system.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from kmgr.clock import SystemClock
from kmgr.config import load
from kmgr.daemon.member import Member
from kmgr.daemon.supervise import Loops
from kmgr.entropy import new_id
from kmgr.grid import identity
from kmgr.grid.envelope import Command, encode
from kmgr.grid.outcomes import applied
from kmgr.grid.port import Grid
from kmgr.ids import CommandId
from tests.bench.harness import Stopwatch, alternate


async def run(data_dir: Path) -> None:
    """Be a server until standard input ends."""
    own = identity.load(data_dir)
    assert own is not None
    clock = SystemClock()
    loops = Loops(clock)
    async with AsyncExitStack() as stack:
        member = Member(load(data_dir), own, clock=clock, loops=loops)
        await member.start(stack)
        while line := await asyncio.to_thread(sys.stdin.readline):
            # The grid as the daemon's parts have it; nobody outside the daemon is given it.
            answer = await _obey(line.split(), member._trunk.grid, data_dir)
            print(json.dumps(answer), flush=True)


async def _obey(words: list[str], grid: Grid, data_dir: Path) -> Mapping[str, Any]:
    if words[0] == "status":
        now = grid.status()
        return {"leader": now.leader == grid.server, "majority": now.majority}
    return await _measured(grid, data_dir, int(words[1]))


async def _measured(grid: Grid, data_dir: Path, count: int) -> Mapping[str, Any]:
    body = {"name": "session_hours", "value": 12}
    size = len(encode(Command("setting.set", CommandId(new_id("cmd")), SystemClock().now_ms(), "bench", body)))
    file = os.open(data_dir / "bench.append", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def ours(turn: int) -> float:
        watch = Stopwatch()
        applied(await grid.propose("setting.set", {**body, "value": 12 + turn % 2}, by="bench"))
        return watch.ms()

    def append() -> float:
        watch = Stopwatch()
        os.write(file, b"x" * size)
        os.fdatasync(file)
        return watch.ms()

    async def floor(_: int) -> float:
        return await asyncio.to_thread(append)

    try:
        mine, low = await alternate(count, ours, floor)
    finally:
        os.close(file)
    return {"commit": mine, "append": low, "size": size}


if __name__ == "__main__":
    logging.basicConfig(level="WARNING", stream=sys.stderr)
    uvloop.run(run(Path(sys.argv[1])))
