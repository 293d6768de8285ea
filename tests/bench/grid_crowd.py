"""Servers of a large grid: log, grid port, TLS to the others, and heartbeats, one or many of them in a process.

`python -m tests.bench.grid_crowd FOLDER KNOWN PLAN` with KNOWN as for `grid_server` and PLAN a JSON object: `names`
(who lives here), `beats` (whether they send heartbeats). One alone obeys orders like `grid_server`, and `feed` (the
leader sends these the log); a crowd lives until standard input ends.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop

from kmgr.clock import SystemClock
from kmgr.grid.raft.library import Timing
from kmgr.grid.vitals import Board, Heart, measurer
from kmgr.ids import ServerId
from tests.bench.grid_server import Measured


class Member(Measured):
    """One server with its heartbeat."""

    def __init__(self, folder: Path, ports: Mapping[ServerId, int], *, founder: bool, beats: bool) -> None:
        super().__init__(folder, ports, founder=founder, timing=Timing())
        self._beats = beats
        self._heart = Heart(
            self.grid,
            self.requests,
            board=Board(),
            contacts=self.port.contacts,
            clock=SystemClock(),
            measure=measurer(folder),
        )

    async def beat(self) -> None:
        """Send heartbeats until cancelled."""
        if self._beats:
            await self._heart.run()

    async def result(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do one order."""
        if "feed" in order:
            self.grid.feed(frozenset(map(ServerId, order["feed"])))
            return {}
        return await super().result(order)


async def alone(member: Member) -> None:
    """Run one server and obey."""
    beating = asyncio.create_task(member.beat())
    await member.run()
    beating.cancel()


async def crowd(members: list[Member]) -> None:
    """Run all of them until standard input ends."""
    tasks = []
    for member in members:
        await member.port.start("127.0.0.1", member.own_port)
        await member.grid.start()
        tasks += [asyncio.create_task(loop) for loop in (member.link.run(), member.beat())]
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    members[0].say({"ready": True})
    await reader.read()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Run whom the command line names."""
    folder, ports, plan = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    names = plan["names"]
    members = [Member(folder / name, ports, founder=plan["founder"] == name, beats=plan["beats"]) for name in names]
    uvloop.run(alone(members[0]) if len(members) == 1 else crowd(members))


if __name__ == "__main__":
    main()
