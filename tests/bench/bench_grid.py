"""`python -m tests.bench.bench_grid [PART …]`: the log alone, on three real processes over TLS on this machine.

Every figure is beside its floor where there is one: a change costs a synced append and a call to another server and
back, measured in turn with it. Nothing else should run meanwhile.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kmgr.clock import SystemClock
from kmgr.grid.commands import APPLIERS
from kmgr.grid.raft.grid import RaftGrid
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.ids import ServerId
from tests.bench.__main__ import machine
from tests.bench.harness import ROOT, Figure, figure, report
from tests.lab.memory_link import MemoryWires
from tests.lab.raft_children import Process, grow, identities

SERVERS = [ServerId(f"srv-{letter}") for letter in "abc"]
CLIENTS = 64
LOAD_S = 5.0
KILLS = 30
# About what 10,000 desktops with their events and outcomes take.
DESKTOPS, ROW_BYTES = 10_000, 2_000
ENTRIES = 100_000


@asynccontextmanager
async def three(**environment: str) -> AsyncIterator[list[Process]]:
    """Run a grid of three."""
    folder = Path(tempfile.mkdtemp(prefix="kmgr-", dir="/var/tmp"))
    os.environ.update(environment)
    processes: list[Process] = []
    try:
        ports = identities(folder, SERVERS)
        processes = [
            Process(folder, ports, server, founder=server == SERVERS[0], module="tests.bench.grid_server")
            for server in SERVERS
        ]
        await grow(processes)
        yield processes
    finally:
        await asyncio.gather(*(process.kill() for process in processes))
        for name in environment:
            del os.environ[name]
        shutil.rmtree(folder, ignore_errors=True)


async def leader_of(processes: list[Process]) -> Process:
    """Wait until all agree on the leader and are connected to all others."""
    async with asyncio.timeout(60):
        while True:
            told = [await process.ask({"status": 1}) for process in processes]
            leaders = {one["leader"] for one in told}
            if len(leaders) == 1 and None not in leaders and all(len(one["linked"]) == 2 for one in told):
                return next(process for process in processes if process.server in leaders)
            await asyncio.sleep(0.05)


async def commit() -> list[Figure]:
    """Latency of one change at a time, of a current read, and changes a second of many clients."""
    found = []
    async with three() as processes:
        leader = await leader_of(processes)
        other = next(process for process in processes if process is not leader)
        for where, process in (("leader", leader), ("follower", other)):
            told = await process.ask({"single": 300}, timeout_s=60)
            floor = [append + call for append, call in zip(told["append"], told["call"], strict=True)]
            found.append(
                figure(f"a change, at the {where} (floor: append + call)", told["commit"], unit="ms", floor=floor)
            )
            if process is leader:
                found.append(figure("a synced append", told["append"], unit="ms"))
                found.append(figure("a call to another server", told["call"], unit="ms"))
            read = await process.ask({"barriers": 200}, timeout_s=60)
            found.append(figure(f"a current read, at the {where}", read["barrier"], unit="ms", floor=told["call"]))
        shares = (CLIENTS - 2 * (CLIENTS // 3), CLIENTS // 3, CLIENTS // 3)
        orders = ({"load": share, "seconds": LOAD_S} for share in shares)
        loads = await asyncio.gather(
            *(process.ask(order, timeout_s=60) for process, order in zip(processes, orders, strict=True))
        )
        took = [ms for load in loads for ms in load["took"]]
        found.append(Figure(f"changes a second of {CLIENTS} clients", round(len(took) / LOAD_S), "1/s", len(took)))
        found.append(figure(f"a change, one of {CLIENTS} clients at once", took, unit="ms"))
    return found


async def kills() -> list[Figure]:
    """From the kill of the leader to the next acknowledged change at another server."""
    took = []
    async with three() as processes:
        for turn in range(KILLS):
            leader = await leader_of(processes)
            asked = [process for process in processes if process is not leader][turn % 2]
            await asked.ask({"put": turn, "id": f"before-{turn}"})
            await leader.kill()
            began = time.perf_counter()
            answer = await asked.ask({"put": turn, "id": f"after-{turn}"}, timeout_s=20)
            assert "error" not in answer, answer
            took.append(time.perf_counter() - began)
            await leader.begin()
    worst = sorted(took)[int(0.99 * len(took))]
    return [
        figure("leader killed, next change acknowledged", took, unit="s"),
        Figure("the same, 99th percentile", round(worst, 3), "s", len(took)),
    ]


async def idle() -> list[Figure]:
    """CPU of an idle server, in percent of a core."""
    async with three() as processes:
        await leader_of(processes)
        before = [await process.ask({"cpu": 1}) for process in processes]
        await asyncio.sleep(10)
        after = [await process.ask({"cpu": 1}) for process in processes]
    used = [100 * (b["cpu"] - a["cpu"]) / (b["wall"] - a["wall"]) for a, b in zip(before, after, strict=True)]
    many = [found for count in (5, 16, 64) for found in await _many(count)]
    return [figure("idle, 3 servers: CPU of each", used, unit="%"), *many]


async def _many(count: int) -> list[Figure]:
    """All servers in this process, over queues instead of TLS: what the log itself costs."""
    folder = Path(tempfile.mkdtemp(prefix="kmgr-", dir="/var/tmp"))
    wires, grids, stores = MemoryWires(), [], []
    names = [ServerId(f"srv-{number:02}") for number in range(count)]
    try:
        for name in names:
            (folder / name).mkdir()
            store = Store(folder / name / "state.sqlite", (SCHEMA,))
            grid = RaftGrid(
                name, folder=folder / name / "raft", store=store, appliers=APPLIERS, link=wires.link(name),
                clock=SystemClock(), founder=name == names[0], on_fatal=print,
            )  # fmt: skip
            await grid.start()
            wires.up(name)
            grids.append(grid)
            stores.append(store)
        await _until(lambda: grids[0].status().is_leader)
        grids[0].feed(frozenset(names))
        await _until(lambda: all(grid.status().majority for grid in grids))
        for name in names[1:5]:
            await grids[0].add_voter(name)
        await asyncio.sleep(2)
        before = await _thread_times([grids[0], grids[-1]])
        wall = time.monotonic()
        await asyncio.sleep(10)
        after = await _thread_times([grids[0], grids[-1]])
        used = [100 * (b - a) / (time.monotonic() - wall) for a, b in zip(before, after, strict=True)]
    finally:
        await asyncio.gather(*(grid.stop() for grid in grids))
        for store in stores:
            store.close()
        shutil.rmtree(folder, ignore_errors=True)
    what = f"idle, {count} servers of which 5 vote, over queues: CPU of the raft thread of"
    last = "a voter" if count == 5 else "a learner"
    return [
        Figure(f"{what} the leader", round(used[0], 2), "%", 1),
        Figure(f"{what} {last}", round(used[1], 2), "%", 1),
    ]


async def _thread_times(grids: list[RaftGrid]) -> list[float]:
    return [await asyncio.wrap_future(grid._worker.call(lambda _: time.thread_time())) for grid in grids]


async def _until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.05)


async def _applied(process: Process, target: int) -> float:
    """Wait until a server has applied an entry and sees a majority; return the seconds."""
    began = time.perf_counter()
    async with asyncio.timeout(180):
        while True:
            told = await process.ask({"status": 1})
            if told["applied"] >= target and told["majority"]:
                return time.perf_counter() - began
            await asyncio.sleep(0.02)


async def snapshot() -> list[Figure]:
    """The longest change, one after the other, while snapshots of a large state are made and one is installed."""
    async with three(BENCH_COMPACT="2000") as processes:
        leader = await leader_of(processes)
        for _ in range(DESKTOPS // 1000):
            await leader.ask({"fill": 1000, "size": ROW_BYTES}, timeout_s=60)
        quiet = await leader.ask({"single": 300}, timeout_s=60)
        stuffing = asyncio.create_task(leader.ask({"stuff": 9600}, timeout_s=120))
        rounds = await leader.ask({"rounds": 1})
        await stuffing
        rounds = await leader.ask({"rounds": 1})
        behind = next(process for process in processes if process is not leader)
        await behind.kill()
        await leader.ask({"stuff": 6400}, timeout_s=120)
        target = (await leader.ask({"status": 1}))["applied"]
        await behind.begin()
        await behind.ask({"rounds": 1})
        caught_up = await _applied(behind, target)
        installing = await behind.ask({"rounds": 1})
    return [
        _longest(f"longest round, snapshots of {rounds['mib']} MiB made (floor: append)", rounds),
        _longest("longest round of the server that installs one", installing),
        Figure("a server far behind, started and caught up", round(caught_up, 2), "s", 1),
        figure("a change in that state", quiet["commit"], unit="ms"),
    ]


def _longest(name: str, told: Mapping[str, Any]) -> Figure:
    return figure(name, [told["longest"]], unit="ms", floor=[told["append"]])


async def restart() -> list[Figure]:
    """A server killed with 100,000 entries since its last snapshot, until it takes part again."""
    async with three(BENCH_COMPACT="10000000") as processes:
        leader = await leader_of(processes)
        for _ in range(10):
            await leader.ask({"stuff": ENTRIES // 10}, timeout_s=300)
        target = (await leader.ask({"status": 1}))["applied"]
        other = next(process for process in processes if process is not leader)
        found = []
        for name, lose in (("as it was killed", False), ("with its state database lost", True)):
            await other.kill()
            if lose:
                other.lose_state()
            began = time.perf_counter()
            await other.begin()
            await _applied(other, target)
            took = time.perf_counter() - began
            found.append(Figure(f"restart with {target} entries, {name}", round(took, 2), "s", 1))
    return found


PARTS: Mapping[str, Callable[[], Awaitable[list[Figure]]]] = {
    "commit": commit,
    "kills": kills,
    "idle": idle,
    "snapshot": snapshot,
    "restart": restart,
}


def main() -> int:
    """Measure what was asked for, print and write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_grid")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench-grid.json")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    print(machine(), flush=True)
    figures: list[Figure] = []
    for name in options.parts or PARTS:
        print(f"measuring: {name}", flush=True)
        figures += asyncio.run(_run(PARTS[name]))
    report(figures, path=options.out)
    return 0


async def _run(part: Callable[[], Awaitable[list[Figure]]]) -> list[Figure]:
    return await part()


if __name__ == "__main__":
    sys.exit(main())
