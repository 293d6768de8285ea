"""`python -m tests.bench.bench_grid [PART …]`: the log alone, on three real processes over TLS on this machine.

Only `daemons` looks at whole ones.

Every figure is beside its floor where there is one: a change costs a synced append and a call to another server and
back, measured in turn with it. Nothing else should run meanwhile.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from appliance.demo.cluster import Cluster
from kmgr.ids import ServerId
from tests.bench.__main__ import machine
from tests.bench.harness import ROOT, Figure, Limit, figure, report
from tests.bench.ports import WEB_PORT, quiet
from tests.lab.raft_children import Process, grow, identities

SERVERS = [ServerId(f"srv-{letter}") for letter in "abc"]
CLIENTS = 64
LOAD_S = 5.0
TURNS = 11
# What is asked for at least of 64 clients on three servers.
RATE = 2500
KILLS = 30
# About what 10,000 desktops with their events and outcomes take.
DESKTOPS, ROW_BYTES = 10_000, 2_000
ENTRIES = 100_000
# How long daemons at rest are looked at, and how long they are left alone before.
REST_S, SETTLE_S = 30.0, 10.0
# Of one core, log or whole daemon.
AT_REST = Limit(3)


@asynccontextmanager
async def three(module: str = "tests.bench.grid_server", **environment: str) -> AsyncIterator[list[Process]]:
    """Run a grid of three."""
    folder = Path(tempfile.mkdtemp(prefix="kmgr-", dir="/var/tmp"))
    os.environ.update(environment)
    processes: list[Process] = []
    try:
        ports = identities(folder, SERVERS)
        processes = [
            Process(folder, ports, server, founder=server == SERVERS[0], module=module) for server in SERVERS
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
            floor = [3 * append + call for append, call in zip(told["append"], told["call"], strict=True)]
            name = f"a change, at the {where} (floor: three appends and a call)"
            limit = Limit(1, "floor") if process is leader else None
            found.append(figure(name, told["commit"], unit="ms", floor=floor, limit=limit))
            if process is leader:
                found.append(figure("a synced append", told["append"], unit="ms"))
                found.append(figure("a call to another server", told["call"], unit="ms"))
            read = await process.ask({"barriers": 200}, timeout_s=60)
            found.append(figure(f"a current read, at the {where}", read["barrier"], unit="ms", floor=told["call"]))
        took = await _loaded(processes, 0)
        rate, name = round(len(took) / LOAD_S), f"changes a second of {CLIENTS} clients"
        found.append(Figure(name, rate, "1/s", len(took), limit=Limit(RATE, at_least=True)))
        found.append(figure(f"a change, one of {CLIENTS} clients at once", took, unit="ms"))
        # In many short turns: other machines on the same processors make one turn three times as long as the next.
        turns = [sorted(await _loaded(processes, RATE)) for _ in range(TURNS)]
        rates = [len(took) / LOAD_S for took in turns]
        found.append(figure(f"changes a second, {RATE} asked for", rates, unit="1/s"))
        what = f"of {CLIENTS} clients at that rate, {TURNS} times"
        for name, share, limit in (("half", 0.5, Limit(5)), ("90 of 100", 0.9, None), ("99 of 100", 0.99, None)):
            within = [took[int(share * len(took))] for took in turns]
            found.append(figure(f"a change, {what}: {name} within", within, unit="ms", limit=limit))
    return found


async def _loaded(processes: list[Process], rate: float) -> list[float]:
    """Return how long each change of many clients took (ms); they ask for `rate` a second, or without for all."""
    shares = (CLIENTS - 2 * (CLIENTS // 3), CLIENTS // 3, CLIENTS // 3)
    orders = ({"load": share, "seconds": LOAD_S, "rate": rate * share / CLIENTS} for share in shares)
    loads = await asyncio.gather(
        *(process.ask(order, timeout_s=60) for process, order in zip(processes, orders, strict=True))
    )
    return [ms for load in loads for ms in load["took"]]


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
        Figure("the same, 99th percentile", round(worst, 3), "s", len(took), limit=Limit(1.5)),
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
    return [figure("idle, 3 servers: CPU of each", used, unit="%", limit=AT_REST), *many]


async def _many(count: int) -> list[Figure]:
    """A leader, a voter and a learner in a process each, connected to all others over TLS; the others share some.

    What one of them costs depends on its own connections only, so the others are connected to these three alone.
    """
    found = []
    for beats in (False, True):
        used = await _crowded(count, beats=beats)
        what = f"idle, {count} servers of which 5 vote: CPU of a {{}}, " + (
            "with heartbeats" if beats else "log only"
        )
        found += [Figure(what.format(who), round(share, 2), "%", 1) for who, share in used.items()]
    return found


async def _crowded(count: int, *, beats: bool) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="kmgr-", dir="/var/tmp"))
    names = [ServerId(f"srv-{number:02}") for number in range(count)]
    looked_at = {"leader": names[0], "voter": names[1], **({"learner": names[-1]} if count > 5 else {})}
    rest = [name for name in names if name not in looked_at.values()]
    groups = [[name] for name in looked_at.values()] + [rest[at::3] for at in range(3) if rest[at::3]]
    ports = identities(folder, names)
    few = {name: ports[name] for name in looked_at.values()}
    processes = []
    try:
        for group in groups:
            plan = {"names": group, "founder": names[0], "beats": beats}
            known = ports if group[0] in few else {**few, **{name: ports[name] for name in group}}
            words = [str(folder), json.dumps(known), json.dumps(plan)]
            processes.append(
                Process(folder, ports, group[0], founder=False, module="tests.bench.grid_crowd", words=words)
            )
            await processes[-1].begin()
        leader = processes[0]
        await _asked(leader, {"status": 1}, lambda told: len(told.get("linked", ())) == count - 1)
        await leader.ask({"feed": names})
        for name in names[1:5]:
            await _asked(leader, {"add": name}, lambda told: "linked" in told)
        await asyncio.sleep(5)
        watched = processes[: len(looked_at)]
        before = [await process.ask({"cpu": 1}) for process in watched]
        await asyncio.sleep(10)
        after = [await process.ask({"cpu": 1}) for process in watched]
    finally:
        await asyncio.gather(*(process.kill() for process in processes))
        shutil.rmtree(folder, ignore_errors=True)
    used = [100 * (b["cpu"] - a["cpu"]) / (b["wall"] - a["wall"]) for a, b in zip(before, after, strict=True)]
    return dict(zip(looked_at, used, strict=True))


async def daemons() -> list[Figure]:
    """CPU of each of three whole daemons without desktops, in percent of a core."""
    return await asyncio.to_thread(_daemons)


def _daemons() -> list[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="kmgr-", dir="/var/tmp"))
    grid = Cluster(folder, desktops=False, web_port=WEB_PORT + 800, grid_port=WEB_PORT + 900, say=quiet)
    try:
        grid.start()
        leading = next(row["name"] for row in grid.admin().items("servers") if row["leader"])
        processes = {server.name: psutil.Process(server.daemon.pid) for server in grid.servers if server.daemon}
        time.sleep(SETTLE_S)
        began, before = time.monotonic(), {name: _spent(process) for name, process in processes.items()}
        time.sleep(REST_S)
        lasted = time.monotonic() - began
        used = {name: 100 * (_spent(process) - before[name]) / lasted for name, process in processes.items()}
    finally:
        grid.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return [
        Figure(
            f"at rest, 3 whole daemons: CPU of {name}{', the leader' if name == leading else ''}",
            round(share, 2),
            "%",
            1,
            limit=AT_REST,
        )
        for name, share in used.items()
    ]


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _asked(process: Process, order: dict[str, Any], good: Callable[[dict[str, Any]], bool]) -> None:
    async with asyncio.timeout(120):
        while not good(await process.ask(order, timeout_s=30)):  # noqa: ASYNC110 - another process is asked
            await asyncio.sleep(0.2)


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
        _longest(f"longest round, snapshots of {rounds['mib']} MiB made (floor: append)", rounds, Limit(100)),
        _longest("longest round of the server that installs one", installing),
        Figure("a server far behind, started and caught up", round(caught_up, 2), "s", 1),
        figure("a change in that state", quiet["commit"], unit="ms"),
    ]


def _longest(name: str, told: Mapping[str, Any], limit: Limit | None = None) -> Figure:
    return figure(name, [told["longest"]], unit="ms", floor=[told["append"]], limit=limit)


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
            told = f"restart with {target} entries, {name}"
            found.append(Figure(told, round(took, 2), "s", 1, limit=Limit(10)))
    return found


PARTS: Mapping[str, Callable[[], Awaitable[list[Figure]]]] = {
    "commit": commit,
    "kills": kills,
    "idle": idle,
    "daemons": daemons,
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
