"""Random walks in which versions are published, tried by canaries and taken back while servers are drained and lost.

`KMGR_WALKS=50` walks so many, `KMGR_WALK_SEED=7` one seed; each takes some seconds, so a run of all tests walks one.
"""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kmgr.balancer.canaries import Canaries
from kmgr.grid.envelope import Rejected
from tests.lab.whole_grid import Simulated
from tests.simulation.test_random_walk import Walk, seeds, walk

ASKED_FOR = not os.environ.keys().isdisjoint({"KMGR_WALKS", "KMGR_WALK_SEED"})


class Rolling(Walk):
    """A walk with canaries and ways back."""

    def steps(self) -> tuple[tuple[int, Callable[[], Awaitable[str]]], ...]:
        """Return what may happen, mostly what has to do with versions."""
        return (*super().steps(), (5, self.canary), (4, self.go_back), (2, self.pass_now), (2, self.drain))

    async def canary(self) -> str:
        """A newer version is tried on a few desktops, and is not everywhere at first."""
        self.version += 1
        first = self.dice.choice(self.lab.alive()).id
        await self.lab.version(f"ver-{self.version}", (first,))
        how = {"canary": self.dice.choice([1, 2, 3]), "watch_s": self.dice.choice([1, 10]), "patience_s": 60}
        outcome = await self.lab.propose("template.publish", template="tpl-1", version=f"ver-{self.version}", **how)
        for server in self.lab.alive():
            await self.lab.hand_out(f"ver-{self.version}", server.id)
        return f"canary of ver-{self.version} from {first}: {type(outcome).__name__}"

    async def go_back(self) -> str:
        """Somebody stops the canary, or goes back to the version before."""
        outcome = await self.lab.propose("template.roll_back", template="tpl-1")
        return f"go back: {outcome.detail if isinstance(outcome, Rejected) else outcome.values}"

    async def pass_now(self) -> str:
        """Somebody has seen enough of a canary."""
        outcome = await self.lab.propose("template.canary_passed", template="tpl-1", version=f"ver-{self.version}")
        return f"ver-{self.version} passes: {type(outcome).__name__}"

    async def come_to_rest(self) -> None:
        """One that everybody is to have."""
        await self.mend()
        self.version += 1
        await self.lab.version(f"ver-{self.version}", tuple(server.id for server in self.lab.servers))
        await self.lab.do("template.publish", template="tpl-1", version=f"ver-{self.version}")
        await super().come_to_rest()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever leads watch canaries, as in the daemon."""
    begin = Simulated.begin

    def with_canaries(self: Simulated) -> None:
        begin(self)
        self.keeping.duty("canaries", Canaries(self.grid, clock=self.lab.clock).run)

    monkeypatch.setattr(Simulated, "begin", with_canaries)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("seed", seeds() if ASKED_FOR else seeds()[:1])
async def test_versions_come_and_go_while_servers_do_and_nobody_is_disturbed(tmp_path: Path, seed: int) -> None:
    await walk(tmp_path, seed, Rolling)
