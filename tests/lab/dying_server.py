"""`kmgr run`, but for one thing: it kills itself, or another process, at a step of a join that a file names.

`python -m tests.lab.dying_server KMGR run --data DATA`; every other command becomes that of KMGR. `DATA/strike` is
`{"step": …, "when": "before" | "during" | "after", "victim": process id, 0 for itself}`. A step is the type of a
change that a newcomer's talk makes in the log, or `voter`: the newcomer gets its vote. It strikes once.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import uvloop

from kmgr import __version__, log
from kmgr.clock import SystemClock
from kmgr.config import load
from kmgr.daemon.life import lived
from kmgr.daemon.member import Member
from kmgr.daemon.supervise import Loops
from kmgr.grid import identity
from kmgr.grid.envelope import Outcome
from kmgr.grid.joindesk import JoinDesk
from kmgr.grid.leadership import Voting
from kmgr.grid.port import Grid
from kmgr.grid.raft.grid import RaftGrid
from kmgr.ids import ServerId
from tests.lab.through import Make, Through

T = TypeVar("T")


class Strike:
    """Does what the file says when its step comes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def at(self, step: str, make: Callable[[], Awaitable[T]]) -> T:
        """Take a step, and strike before, while or after it is taken."""
        try:
            order = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return await make()
        if order["step"] != step:
            return await make()
        victim = order["victim"] or os.getpid()
        if order["when"] == "before":
            self._strike(victim)
        making = asyncio.ensure_future(make())
        if order["when"] == "during":
            # The log has it now, and sends it out on a thread of its own.
            await asyncio.sleep(0)
            self._strike(victim)
        # A step that could not be taken now is tried again: what is to come after it comes then.
        made = await making
        if order["when"] == "after":
            self._strike(victim)
        return made

    def _strike(self, victim: int) -> None:
        self._path.unlink(missing_ok=True)
        os.kill(victim, signal.SIGKILL)


class Struck(Through):
    """A log on whose changes the strike may fall."""

    def __init__(self, grid: Grid, strike: Strike) -> None:
        super().__init__(grid)
        self._strike = strike

    async def change(self, type: str, make: Make) -> Outcome:
        """Make a change that is a step."""
        return await self._strike.at(type, make)


class StruckVoters:
    """The voters of a log, whose additions the strike may fall on."""

    def __init__(self, grid: RaftGrid, strike: Strike) -> None:
        self.feed = grid.feed
        self.progress = grid.progress
        self.remove_voter = grid.remove_voter
        self.hand_over = grid.hand_over
        self._grid = grid
        self._strike = strike

    async def add_voter(self, server: ServerId) -> None:
        """Let a server vote."""
        await self._strike.at("voter", lambda: self._grid.add_voter(server))


async def serve(data_dir: Path) -> None:
    """Run a server of a grid until SIGTERM."""
    config, own, clock, stop = load(data_dir), identity.load(data_dir), SystemClock(), asyncio.Event()
    assert own is not None
    log.set_up(config.log_level)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    loops, strike = Loops(clock), Strike(data_dir / "strike")
    async with AsyncExitStack() as stack:
        member = Member(config, own, clock=clock, loops=loops)
        trunk = member._trunk
        # In the place of the parts of the same kind that the member has made.
        JoinDesk(trunk.port, Struck(trunk.grid, strike), own=own, version=__version__, clock=clock)
        voting = Voting(trunk.grid, StruckVoters(trunk.grid, strike), trunk.board, clock=clock)
        trunk._leadership.duty("voting", voting.run)
        await member.start(stack)
        await loops.until(stop)


def main() -> None:
    """Run, or become another command."""
    kmgr, command, *words = sys.argv[1:]
    if command != "run":
        os.execv(kmgr, [kmgr, command, *words])  # noqa: S606 - no shell is wanted
    data_dir = Path(words[words.index("--data") + 1]).resolve()
    with lived(data_dir):
        uvloop.run(serve(data_dir))


if __name__ == "__main__":
    main()
