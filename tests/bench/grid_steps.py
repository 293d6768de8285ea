"""`python -m tests.bench.grid_steps`: where the time of one change goes, step by step, on three servers over TLS.

Started with arguments it is one of these servers (as `grid_server`), which notes when each step begins and ends;
`perf_counter` is the same clock in all processes of a machine. Noting costs about 30 us of a change.
"""

import asyncio
import functools
import json
import statistics
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop

from kmgr.grid.fsm import Machine
from kmgr.grid.line import Line
from kmgr.grid.raft.core import Core
from kmgr.grid.raft.grid import RaftGrid
from kmgr.grid.raft.library import Timing
from kmgr.grid.raft.logfile import LogFile
from kmgr.grid.raft.worker import Worker
from kmgr.grid.raftlink import RaftLink
from kmgr.ids import ServerId
from tests.bench import bench_grid
from tests.bench.__main__ import machine
from tests.bench.grid_server import Measured

CHANGES = 300
WATCHED: Mapping[type, tuple[str, ...]] = {
    Worker: ("wake",),
    Core: ("step", "receive"),
    RaftLink: ("_receive",),
    Line: ("write",),
    LogFile: ("sync",),
    Machine: ("apply", "commit"),
    RaftGrid: ("_post", "_deliver"),
}
# Each with what shows that it is over; first at the leader, then at the follower that is the first to answer, then
# at the leader again.
ASKING = {
    "propose: spelled, raft thread rung": "wake >",
    "raft thread awake": "step >",
    "taken on, first frame to be written": "write >",
}
FOLLOWING = {
    "follower awake": "_receive >",
    "frame read": "receive >",
    "entry taken and written": "sync >",
    "synced": "sync <",
    "ack written": "write <",
}
ANSWERING = {
    "leader awake, ack read and counted": "apply >",
    "applied": "apply <",
    "state committed": "commit <",
    "answer left for the loop": "_post >",
    "loop awake": "_deliver >",
    "returned": "put <",
}


class Notes:
    """What one process noted."""

    def __init__(self, noted: Sequence[tuple[float, str]]) -> None:
        self._at: dict[str, list[float]] = defaultdict(list)
        for at, name in noted:
            self._at[name].append(at)

    def all(self, name: str) -> list[float]:
        """Return every moment of a kind."""
        return self._at[name]

    def steps(self, names: Mapping[str, str], since: float, until: float) -> list[float] | None:
        """Return the moments that follow each other, None if one is missing."""
        found = []
        for name in names.values():
            place = bisect_left(self._at[name], since)
            if place == len(self._at[name]) or self._at[name][place] > until:
                return None
            found.append(since := self._at[name][place])
        return found


class Noting(Measured):
    """The server, its stopwatches, and its notes."""

    noted: list[tuple[float, str]]

    async def result(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do one order."""
        if "noted" in order:
            found, self.noted[:] = list(self.noted), []
            return {"noted": found}
        return await super().result(order)

    async def _put(self) -> None:
        self.noted.append((time.perf_counter(), "put >"))
        await super()._put()
        self.noted.append((time.perf_counter(), "put <"))


def watch(noted: list[tuple[float, str]]) -> None:
    """Put a stopwatch around every step."""
    for owner, names in WATCHED.items():
        for name in names:
            setattr(owner, name, _watched(noted, name, getattr(owner, name)))


def _watched(noted: list[tuple[float, str]], name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    begins, ends = f"{name} >", f"{name} <"

    @functools.wraps(method)
    def run(*args: Any, **more: Any) -> Any:
        noted.append((time.perf_counter(), begins))
        try:
            return method(*args, **more)
        finally:
            noted.append((time.perf_counter(), ends))

    return run


async def measure() -> None:
    """Print the median of each step."""
    async with bench_grid.three("tests.bench.grid_steps") as processes:
        leader = await bench_grid.leader_of(processes)
        await leader.ask({"single": 50}, timeout_s=60)
        for process in processes:
            await process.ask({"noted": 1})
        told = await leader.ask({"single": CHANGES}, timeout_s=60)
        notes = {process.server: Notes((await process.ask({"noted": 1}))["noted"]) for process in processes}
    own = notes.pop(leader.server)
    changes = [found for since in own.all("put >") if (found := _one(own, notes, since)) is not None]
    names = ["", *ASKING, *FOLLOWING, *ANSWERING]
    for step in range(1, len(names)):
        took = statistics.median(one[step] - one[step - 1] for one in changes)
        at = statistics.median(one[step] - one[0] for one in changes)
        print(f"{names[step]:<44} + {1e6 * took:5.0f} us   at {1e6 * at:5.0f}")
    medians = {name: round(statistics.median(told[name]), 3) for name in ("commit", "append", "call")}
    print(f"{len(changes)} of {CHANGES} changes could be followed; medians in ms: {medians}")


def _one(own: Notes, others: Mapping[ServerId, Notes], since: float) -> list[float] | None:
    """Return the moments of the change that began then."""
    until = own.steps({"": "put <"}, since, since + 1)
    if until is None:
        return None
    asking = own.steps(ASKING, since, until[0])
    if asking is None:
        return None
    following = [found for one in others.values() if (found := one.steps(FOLLOWING, asking[-1], until[0]))]
    if not following:
        return None
    first = min(following, key=lambda found: found[-1])
    answering = own.steps(ANSWERING, asking[-1], until[0])
    return None if answering is None else [since, *asking, *first, *answering]


def main() -> None:
    """Measure, or serve."""
    if len(sys.argv) == 1:
        print(machine(), flush=True)
        asyncio.run(measure())
        return
    here, known, *more = sys.argv[1:]
    Noting.noted = []
    watch(Noting.noted)
    uvloop.run(Noting(Path(here), json.loads(known), founder="founder" in more, timing=Timing()).run())


if __name__ == "__main__":
    main()
