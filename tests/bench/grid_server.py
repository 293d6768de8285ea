"""One server's log in a process of its own that measures itself; `python -m tests.bench.grid_server`, orders as JSON.

Besides what `tests.lab.raft_process` obeys: `load` (clients, seconds, a rate), `single` (one change after
the other, each beside a synced append and a call to the leader and back), `fill` (rows into the state by one change),
`stuff` (so many changes), `barriers` (so many current reads), `rounds` (the longest since the last asking), `cpu`.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop
from sqlite_utils import Database

from kmgr.clock import SystemClock
from kmgr.grid.envelope import Applied, Command, Outcome
from kmgr.grid.raft.library import Timing
from kmgr.grid.requests import GridRequests
from kmgr.ids import ServerId
from tests.bench.harness import Stopwatch
from tests.lab.raft_process import Child

QUIET_S = 0.005


def fill(db: Database, command: Command) -> Outcome:
    """Add rows of about the size of a desktop's."""
    rows = ([n, "d" * command.body["size"]] for n in range(command.body["count"]))
    db.conn.executemany("insert into notes (n, x) values (?, ?)", rows)
    return Applied()


class Measured(Child):
    """The server, and its stopwatches."""

    def __init__(self, folder: Path, ports: Mapping[ServerId, int], *, founder: bool, timing: Timing) -> None:
        super().__init__(folder, ports, founder=founder, timing=timing, more={"note.fill": fill})
        self.requests = GridRequests(self.port, clock=SystemClock())
        self.requests.serve("echo", self._echo)
        self._file = os.open(folder / "append", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._next = time.time_ns()
        self._longest = (0.0, 0.0)
        self._looking: asyncio.Task[None] | None = None

    async def result(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do one order."""
        match order:
            case {"load": clients, "seconds": seconds, "rate": rate}:
                return await self._load(clients, seconds, rate)
            case {"single": count}:
                return await self._single(count)
            case {"fill": count, "size": size}:
                await self.grid.propose("note.fill", {"count": count, "size": size}, by="bench", timeout_s=60)
                return {}
            case {"stuff": count}:
                await asyncio.gather(*(self._stuff(count // 64) for _ in range(64)))
                return {"applied": self.grid.status().applied}
            case {"barriers": count}:
                return {"barrier": [await self._timed(self.grid.barrier()) for _ in range(count)]}
            case {"rounds": _}:
                if self._looking is None:
                    self._looking = asyncio.create_task(self._look())
                longest, self._longest = self._longest, (0.0, 0.0)
                return {"longest": longest[0], "append": longest[1], "mib": self.store.path.stat().st_size >> 20}
            case {"cpu": _}:
                return {"cpu": time.process_time(), "wall": time.monotonic()}
            case _:
                return await super().result(order)

    async def _look(self) -> None:
        """Look all the time how long the raft thread makes a guest between two rounds wait, and a synced append."""
        while True:
            await asyncio.sleep(0.005)
            watch = Stopwatch()
            await asyncio.wrap_future(self.grid._worker.call(lambda _: None))
            waited = watch.ms()
            appended = await asyncio.to_thread(self._append)
            self._longest = (max(self._longest[0], waited), max(self._longest[1], appended))

    async def _echo(self, _: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return body

    async def _put(self) -> None:
        self._next += 1
        await self.grid.propose("note.add", {"n": self._next}, by="bench", timeout_s=20)

    async def _stuff(self, count: int) -> None:
        for _ in range(count):
            await self._put()

    async def _timed(self, what: Any) -> float:
        watch = Stopwatch()
        await what
        return watch.ms()

    async def _load(self, clients: int, seconds: float, rate: float) -> dict[str, Any]:
        """Let clients propose one change after the other; with a `rate` so many a second together, one by one."""
        begun = time.monotonic()
        until = begun + seconds
        took: list[float] = []

        async def client(number: int) -> None:
            turn = 0
            while time.monotonic() < until:
                if rate:
                    due = begun + (number + turn * clients) / rate
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                turn += 1
                took.append(await self._timed(self._put()))

        await asyncio.gather(*(client(number) for number in range(clients)))
        return {"took": took}

    async def _single(self, count: int) -> dict[str, Any]:
        found: dict[str, list[float]] = {"commit": [], "append": [], "call": []}
        other = next(iter(sorted(self.link.connected())))
        for _ in range(count):
            found["append"].append(await asyncio.to_thread(self._append))
            found["call"].append(await self._timed(self.requests.call(other, "echo", {"x": "y" * 200})))
            found["commit"].append(await self._timed(self._put()))
            # What the others still do with a change would make the next append look dear.
            await asyncio.sleep(QUIET_S)
        return found

    def _append(self) -> float:
        watch = Stopwatch()
        os.write(self._file, b"x" * 300)
        os.fdatasync(self._file)
        return watch.ms()


if __name__ == "__main__":
    here, known, *more = sys.argv[1:]
    timing = Timing()
    if entries := int(os.environ.get("BENCH_COMPACT", "0")):
        timing = replace(timing, compact_entries=entries, compact_most=entries)
    made = Measured(Path(here), json.loads(known), founder="founder" in more, timing=timing)
    uvloop.run(made.run())
