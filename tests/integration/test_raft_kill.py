"""Real processes, real sockets, `kill -9`: one server at a time, the leader, all at once, while changes go on.

Every acknowledged change must be there at the end, once, on every server.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.ids import ServerId
from tests.lab.raft_children import Process, grow, identities
from tests.lab.raft_lab import A, B, C

SERVERS = (A, B, C)
SECONDS = 20.0
WRITERS = 6


class Trial:
    """Three processes under fire, and what was acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.seed = int(os.environ.get("KMGR_SEED", "1"))
        self.dice = random.Random(self.seed)  # noqa: S311 - chooses victims
        ports = identities(folder, SERVERS)
        self.processes = {server: Process(folder, ports, server, founder=server == A) for server in SERVERS}
        self.acknowledged: list[int] = []
        self.kills = 0
        self._next = 0

    async def write(self, until: float) -> None:
        """Make changes through any living server; one without an answer is asked again under its id, elsewhere."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            self._next += 1
            number = self._next
            while loop.time() < until + 10:
                process = self.dice.choice(list(self.processes.values()))
                answer = await process.ask({"put": number, "id": f"cmd-{number}"})
                if answer and "error" not in answer:
                    self.acknowledged.append(number)
                    break
                await asyncio.sleep(0.05)

    async def shoot(self, until: float) -> None:
        """Kill one, the leader, or all; start them again a moment later."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            await asyncio.sleep(self.dice.uniform(0.5, 1.5))
            chosen = self.dice.choice(["one", "leader", "all"])
            victims = list(self.processes.values())
            if chosen == "one":
                victims = [self.dice.choice(victims)]
            elif chosen == "leader":
                leaders = {(await process.ask({"status": 1})).get("leader") for process in victims}
                victims = [self.processes[ServerId(leader)] for leader in leaders if leader]
            await asyncio.gather(*(process.kill() for process in victims))
            self.kills += len(victims)
            await asyncio.sleep(self.dice.uniform(0, 0.5))
            for process in victims:
                await process.begin()

    async def level(self) -> list[list[int]]:
        """Wait until all have applied the same, and return what each holds."""
        async with asyncio.timeout(15):
            while True:
                found = [await process.ask({"status": 1}) for process in self.processes.values()]
                if len({status["applied"] for status in found}) == 1 and all(status["majority"] for status in found):
                    return [(await process.ask({"dump": 1}))["notes"] for process in self.processes.values()]
                await asyncio.sleep(0.1)


@pytest.fixture
async def trial(tmp_path: Path) -> AsyncIterator[Trial]:
    trial = Trial(tmp_path)
    yield trial
    await asyncio.gather(*(process.kill() for process in trial.processes.values()))


async def test_no_acknowledged_change_is_lost_or_made_twice(trial: Trial) -> None:
    await grow(list(trial.processes.values()))
    until = asyncio.get_running_loop().time() + SECONDS
    await asyncio.gather(trial.shoot(until), *(trial.write(until) for _ in range(WRITERS)))
    held = await trial.level()
    missing = sorted(set(trial.acknowledged) - set(held[0]))
    print(f"{len(trial.acknowledged)} acknowledged, {trial.kills} kills, {len(missing)} missing, seed {trial.seed}")
    assert not any(process.fatal for process in trial.processes.values())
    assert held[0] == held[1] == held[2]
    assert not missing
    assert len(held[0]) == len(set(held[0]))
    assert len(trial.acknowledged) > 100
    assert trial.kills > 5
