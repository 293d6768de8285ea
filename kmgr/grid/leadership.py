"""What only the leader does: duties that begin with its leadership and end with it.

`Leadership.run()` watches the log; while this server leads, every registered duty
runs as a task, and all of them are cancelled when it leads no longer or again in
a new term. A duty keeps no state beyond its term: a new leader starts afresh.

Two duties of the grid itself are here: watching who is silent (`grid.liveness`)
and who votes (`grid.membership`). Runs in the daemon's loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from kmgr.clock import Clock
from kmgr.errors import KmgrError, Unavailable
from kmgr.grid import liveness
from kmgr.grid.envelope import Rejected
from kmgr.grid.membership import AddVoter, HandOver, RemoveVoter, Step, next_step, sight
from kmgr.grid.model import ServerState
from kmgr.grid.port import Grid, VitalsBoard
from kmgr.grid.queries import servers, settings
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

WATCH_S = 0.2
JUDGE_S = 0.25
RESTART_S = 1.0
# How long a member that could not be made a voter or the leader is passed over.
PASSED_OVER_S = 10.0


@dataclass(frozen=True, slots=True)
class Leading:
    """One server's leadership: its term, and since when by its own monotonic clock."""

    term: int
    since: float


Duty: TypeAlias = Callable[[Leading], Awaitable[None]]


class Voters(Protocol):
    """Who may change the log's voters: the leader's `RaftGrid`. A change returns when it is committed."""

    def feed(self, servers: frozenset[ServerId]) -> None:
        """Send the log also to these servers, which learn it without a vote."""
        ...

    def progress(self) -> Mapping[ServerId, int]:
        """Return up to which index the log is known to be on each server's disk; empty unless this server leads."""
        ...

    async def add_voter(self, server: ServerId) -> None:
        """Let a server vote."""
        ...

    async def remove_voter(self, server: ServerId) -> None:
        """Let a server vote no longer."""
        ...

    async def hand_over(self, server: ServerId) -> None:
        """Let another voter lead."""
        ...


class Leadership:
    """Starts and stops duties with the leadership. `run()` goes on until it is cancelled."""

    def __init__(self, grid: Grid, *, clock: Clock) -> None:
        self._grid = grid
        self._clock = clock
        self._duties: dict[str, Duty] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._leading: Leading | None = None

    @property
    def leading(self) -> Leading | None:
        """Return this server's leadership, None while another one leads or nobody does."""
        return self._leading

    def duty(self, name: str, duty: Duty) -> None:
        """Register a duty: a coroutine that runs until it is cancelled; if it fails it is started again."""
        self._duties[name] = duty

    async def run(self) -> None:
        """Follow the leadership until cancelled."""
        try:
            while True:
                await self.look()
                await self._clock.sleep(WATCH_S)
        finally:
            await self._stop()

    async def look(self) -> None:
        """Start or stop the duties as the log says now."""
        status = self._grid.status()
        term = status.term if status.is_leader else None
        if self._leading is not None and self._leading.term != term:
            await self._stop()
        if self._leading is None and term is not None:
            self._leading = Leading(term, self._clock.monotonic())
            logger.info("this server leads", extra={"term": term})
            self._tasks = [
                asyncio.create_task(self._perform(name, duty, self._leading)) for name, duty in self._duties.items()
            ]

    async def _perform(self, name: str, duty: Duty, leading: Leading) -> None:
        while True:
            try:
                await duty(leading)
            except KmgrError as error:
                logger.info("a leader's duty was interrupted", extra={"duty": name, "cause": error.message})
            except Exception:
                logger.exception("a leader's duty failed by a bug and starts again", extra={"duty": name})
            await self._clock.sleep(RESTART_S)

    async def _stop(self) -> None:
        if self._leading is not None:
            logger.info("this server leads no longer", extra={"term": self._leading.term})
        self._leading = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []


class Watch:
    """The duty of declaring servers lost and up again; `run` is registered as a duty."""

    def __init__(self, grid: Grid, board: VitalsBoard, *, clock: Clock) -> None:
        self._grid = grid
        self._board = board
        self._clock = clock
        self._looked_at = 0.0
        self._silences: Mapping[ServerId, liveness.Silence] = {}

    async def run(self, leading: Leading) -> None:
        """Judge several times per heartbeat: what a verdict is late by is time that people wait."""
        self._looked_at, self._silences = leading.since, self._before(leading)
        while True:
            beat_s = await self.run_once()
            await self._clock.sleep(min(beat_s / 2, JUDGE_S))

    async def run_once(self) -> float:
        """Propose what has to be proposed now; return the heartbeat's period in seconds."""
        with self._grid.view() as db:
            known = servers(db)
            values = settings(db)
        status = self._grid.status()
        board, now = self._board.all(), self._clock.monotonic()
        beat_s, lost_after_s = values["heartbeat_ms"] / 1000, values["lost_after_ms"] / 1000
        self._silences = liveness.listened(
            self._silences, (server.id for server in known), board, looked_at=self._looked_at, now=now
        )
        self._looked_at = now
        missing = liveness.lost(known, self._silences, leader=self._grid.server, lost_after_s=lost_after_s)
        returned = liveness.back(
            known,
            board,
            leader=self._grid.server,
            applied=status.applied,
            now=now,
            fresh_s=3 * beat_s,
        )
        for verdict, found in (("server.lost", missing), ("server.up", returned)):
            for server in found:
                await self._propose(verdict, server)
        return beat_s

    def _before(self, leading: Leading) -> Mapping[ServerId, liveness.Silence]:
        with self._grid.view() as db:
            known, lost_after_s = servers(db), settings(db)["lost_after_ms"] / 1000
        return liveness.inherited(
            (server.id for server in known),
            self._board.all(),
            leader=self._grid.server,
            elected_at=leading.since,
            lost_after_s=lost_after_s,
        )

    async def _propose(self, verdict: str, server: ServerId) -> None:
        outcome = await self._grid.propose(verdict, {"server": server}, by=self._grid.server)
        rejected = outcome.detail if isinstance(outcome, Rejected) else ""
        logger.warning(
            "a server changed its state", extra={"verdict": verdict, "server": server, "rejected": rejected}
        )


class Voting:
    """The duty of keeping the voters in step with the servers table; `run` is registered as a duty."""

    def __init__(self, grid: Grid, voters: Voters, board: VitalsBoard, *, clock: Clock) -> None:
        self._grid = grid
        self._voters = voters
        self._board = board
        self._clock = clock
        self._passed_over: dict[ServerId, float] = {}

    async def run(self, leading: Leading) -> None:
        """Take one step at a time."""
        self._passed_over = {}
        while True:
            await self.run_once(leading)
            await self._clock.sleep(0.5)

    async def run_once(self, leading: Leading) -> None:
        """Have every member fed with the log, and take the next step, if there is one."""
        with self._grid.view() as db:
            known = servers(db, removed=True)
            values = settings(db)
        self._voters.feed(frozenset(server.id for server in known if server.state is not ServerState.REMOVED))
        status = self._grid.status()
        seen = sight(
            known,
            self._board.all(),
            self._voters.progress(),
            leader=self._grid.server,
            last=status.applied,
            elected_at=leading.since,
            now=self._clock.monotonic(),
            fresh_s=3 * values["heartbeat_ms"] / 1000,
            gone_after_s=values["replace_voter_after_s"],
        )
        started = self._clock.monotonic()
        unable = {server for server, until in self._passed_over.items() if started < until}
        seen = replace(seen, ready=seen.ready - unable)
        step = next_step(known, status.voters, seen, leader=self._grid.server)
        if step is None:
            return
        await self._take(step)
        names = {server.id: server.name for server in known}
        logger.info(
            "the voters changed",
            extra={
                "step": type(step).__name__,
                "server": step.server,
                "its_name": names.get(step.server, ""),
                "took_s": round(self._clock.monotonic() - started, 2),
            },
        )

    async def _take(self, step: Step) -> None:
        try:
            match step:
                case AddVoter(server):
                    await self._voters.add_voter(server)
                case RemoveVoter(server):
                    await self._voters.remove_voter(server)
                case HandOver(server):
                    await self._voters.hand_over(server)
        except Unavailable:
            # One that is heard and yet cannot be had must not keep others from their turn.
            self._passed_over[step.server] = self._clock.monotonic() + PASSED_OVER_S
            raise
