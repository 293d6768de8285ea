"""How long the balancer thinks: a hundred servers with ten thousand desktops, one plan at a time.

Reading the tables counts as well: that is what happens between two rounds.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from kmgr.balancer.plan import plan
from kmgr.balancer.redundancy import can_lose_one
from tests.bench.harness import Figure, Limit, Stopwatch, figure
from tests.lab.state import State

SERVERS, TEMPLATES, EACH = 100, 100, 100
IN_USE = 50
RUNS = 10
# "A grid of 100 servers x 100 desktops is planned in at most a second."
MOST = Limit(1)


async def measure(folder: Path, short: bool) -> list[Figure]:
    """Return the figures of plans for a large grid."""
    return await asyncio.to_thread(_measure, 3 if short else RUNS)


def _measure(runs: int) -> list[Figure]:
    found = [_planned("plan: nothing to do", _school(), runs)]
    lost = _school()
    lost.become(lost.view().servers[0].id, "lost")
    found.append(_planned("plan: a server was lost", lost, runs))
    published = _school()
    published.version("ver-2", [server.id for server in published.view().servers])
    published.db.execute("update templates set version = 'ver-2'")
    found.append(_planned("plan: a version of every template was published", published, runs))
    found.append(_planned("plan: 5,000 desktops are missing", _school(desktops=False), runs))
    view = _school().view()
    voters = [server.id for server in view.servers[:5]]
    took = _times(lambda: can_lose_one(view, voters), runs)
    found.append(figure("may any one server be lost?", took, unit="s", limit=MOST))
    return found


def _planned(name: str, state: State, runs: int) -> Figure:
    changes = len(plan(state.view()).actions)
    return figure(f"{name} ({changes} changes)", _times(lambda: plan(state.view()), runs), unit="s", limit=MOST)


def _times(what: Callable[[], object], runs: int) -> list[float]:
    took = []
    for _ in range(runs):
        watch = Stopwatch()
        what()
        took.append(watch.ms() / 1000)
    return took


def _school(*, desktops: bool = True) -> State:
    """Make a large grid: half of its desktops are in use, half stand by, everywhere alike."""
    state = State()
    servers = [state.server(f"{number:03}", memory_mib=512 * 1024) for number in range(SERVERS)]
    state.version("ver-1", servers)
    for number in range(TEMPLATES):
        template = state.template(f"{number:03}", standby=EACH - IN_USE, maximum=2 * EACH)
        if desktops:
            for place in range(EACH):
                user = f"user-{number}-{place}"
                server = servers[(number + place) % SERVERS]
                state.desktop(template, server, "in_use" if place < IN_USE else "ready", user=user)
    return state
