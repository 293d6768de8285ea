"""The `Grid` port that goes on without a majority: users log in and get this server's own desktops.

`IslandGrid` wraps the log. While a majority is there it only passes on. When none
has been there for `island_after_ms` it becomes an *island*: views show a copy of
the state, and the commands in the table of `IslandRules` are made on that copy
and noted in the outbox; all others are refused with the reason. When a majority
is back the facts of the outbox are proposed as `island.settle`, in order; after
the last one was applied here, views and proposals are the log's again.

What survives a crash is the outbox: a server killed as an island, or while it
hands over, starts as an island and goes on. Whoever proposes while it hands over
waits, and is then served by whichever truth holds. Runs in the daemon's loop.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlite_utils import Database

from kmgr.clock import Clock
from kmgr.entropy import new_id
from kmgr.errors import InvariantBroken, KmgrError, Unavailable
from kmgr.grid.envelope import MAX_BYTES, Applied, Command, Outcome, asked_at
from kmgr.grid.fsm import Applier
from kmgr.grid.island_rules import Mode, Move, Sky, Watched, limits, next_move, sky, unfit, watched
from kmgr.grid.model import GridStatus
from kmgr.grid.outbox import Outbox
from kmgr.grid.port import Grid
from kmgr.grid.queries import servers, settings
from kmgr.grid.scratch import Scratch, clear
from kmgr.grid.settle import SETTLE, IslandRule, IslandRules, spelled
from kmgr.grid.waits import first_of
from kmgr.ids import CommandId, ServerId

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S = 0.2
# How long one part of handing over may take, and how much of it goes at once.
HAND_OVER_S = 5.0
MOST_FACTS = 200
_BATCH_BYTES = MAX_BYTES // 2
_HANDING_OVER = "This server is telling the grid what it did while it was cut off: nothing was changed. Try again."


class Blocking(Protocol):
    """Runs what blocks, away from the loop."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Return what `work` returns."""
        ...


class IslandGrid:
    """The log while there is a majority, this server's own word while there is none. `run()` watches for both."""

    def __init__(
        self,
        inner: Grid,
        *,
        folder: Path,
        schemas: tuple[str, ...],
        appliers: Mapping[str, Applier],
        rules: IslandRules,
        clock: Clock,
        blocking: Blocking = asyncio.to_thread,
    ) -> None:
        self._inner = inner
        self._folder = folder
        self._schemas = schemas
        self._appliers = appliers
        self._rules = rules
        self._clock = clock
        self._blocking = blocking
        self._outbox: Outbox | None = None
        self._scratch: Scratch | None = None
        self._connected: Callable[[], Collection[str]] = frozenset
        self._seen = Watched()
        self._started_at = 0.0
        self._problem = ""
        # Held while the truth changes and for each change on the island.
        self._turn = asyncio.Lock()
        # What waits for the log and could be done here as well.
        self._asking: set[asyncio.Task[Outcome]] = set()
        self._moved = asyncio.Event()
        self._left_once = False
        self._doing: set[asyncio.Task[Outcome | None]] = set()
        self._number = 0

    def attend(self, connected: Callable[[], Collection[str]]) -> None:
        """Say who knows which desktops are looked at now: theirs are kept if a user has two."""
        self._connected = connected

    async def start(self) -> None:
        """Begin to watch; a server that ended as an island goes on as one. The log must be open."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._started_at = self._clock.monotonic()
        self._outbox = Outbox(self._folder / "outbox.sqlite", new_id=new_id("out"))
        await self._blocking(lambda: clear(self._folder))
        if self._outbox.since is not None:
            async with self._turn:
                await self._begin()

    async def stop(self) -> None:
        """Let go of the files; an island stays one."""
        async with self._turn:
            if self._scratch is not None:
                self._scratch.close(forget=False)
            if self._outbox is not None:
                self._outbox.close()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self.look()
            await self._clock.sleep(LOOK_S)

    async def look(self) -> Move:
        """Look whether a majority is there and do what follows; return what that was."""
        now, status = self._clock.monotonic(), self._inner.status()
        self._seen = watched(self._seen, majority=status.majority, now=now)
        if status.majority and self._scratch is None:
            self._problem = ""
            return Move.STAY
        with self._inner.view() as db:
            known, above = servers(db, removed=True), self._sky(db)
        mode = Mode.LOG if self._scratch is None else Mode.ISLAND
        scratch = self._scratch
        stale = scratch is not None and (scratch.torn or scratch.base != status.applied)
        move = next_move(mode, above, fit=not unfit(known, self.server), stale=stale)
        if move is not Move.STAY:
            async with self._turn:
                await (self._hand_over() if move is Move.HAND_OVER else self._begin())
        return move

    def _sky(self, db: Database) -> Sky:
        after_s = settings(db)["island_after_ms"] / 1000
        return sky(self._seen, now=self._clock.monotonic(), after_s=after_s, started_at=self._started_at)

    @property
    def server(self) -> ServerId:
        """This server's id."""
        return self._inner.server

    async def propose(
        self,
        type: str,
        body: Mapping[str, Any],
        *,
        by: str,
        id: CommandId | None = None,
        timeout_s: float = 10.0,
    ) -> Outcome:
        """Have a change made: everywhere, or here alone while this server is cut off."""
        known = id or asked_at(new_id("cmd"), self.status().applied)
        while True:
            if self._scratch is not None:
                found = await self._by_itself(Command(type, known, self._clock.now_ms(), by, body), timeout_s)
            elif type in self._rules:
                asking = self._inner.propose(type, body, by=by, id=known, timeout_s=timeout_s)
                found = await self._unless_entered(asking)
            else:
                return await self._inner.propose(type, body, by=by, id=known, timeout_s=timeout_s)
            if found is not None:
                return found

    async def barrier(self, timeout_s: float = 5.0) -> None:
        """Return when `view()` shows all that was acknowledged; on an island nobody else's word can be had."""
        if self._scratch is None:
            await self._inner.barrier(timeout_s)

    def view(self) -> AbstractContextManager[Database]:
        """Lend a read-only connection that shows one consistent state: the grid's, or the island's."""
        return self._inner.view() if self._scratch is None else self._scratch.view()

    def status(self) -> GridStatus:
        """Return what this server knows; on an island it leads itself, and there is no majority for anybody else."""
        status = self._inner.status()
        if self._scratch is None or self._outbox is None:
            return status
        return replace(
            status,
            leader=self.server,
            applied=self._scratch.applied,
            majority=False,
            island=True,
            island_since=self._outbox.since,
        )

    async def changed(self, since: int, *, timeout_s: float) -> int:
        """Return the applied index as soon as it is greater than `since` or the truth is another one."""
        deadline = self._clock.monotonic() + timeout_s
        while (applied := self.status().applied) <= since:
            left_s = deadline - self._clock.monotonic()
            # After an island the index is smaller than on it: whoever waits for more has seen another truth.
            if left_s <= 0 or (self._left_once and since > applied):
                break
            moved, scratch = self._moved, self._scratch
            other = self._clock.sleep(left_s) if scratch else self._inner.changed(since, timeout_s=left_s)
            await first_of(moved.wait(), other)
            if self._scratch is not scratch:
                break
        return self.status().applied

    def vitals(self) -> Mapping[str, Any]:
        """Return what this part adds to the heartbeat."""
        problems = [self._problem] if self._problem else []
        if self._scratch is not None:
            problems.append(self.sentence())
        return {"problems": problems, "extra": {"island": self._scratch is not None}}

    def sentence(self) -> str:
        """Say what goes on and what waits while this server is an island."""
        with self._inner.view() as db:
            return limits(servers(db), self.server)

    async def _by_itself(self, command: Command, timeout_s: float) -> Outcome | None:
        """Make a change on the island; None if it ended before this change had its turn."""
        rule = self._rules.get(command.type)
        if rule is None and command.type not in self._appliers:
            raise InvariantBroken(f"nothing here can apply {command.type!r}")
        if rule is None and not await self._island_lasts(timeout_s):
            return None
        # In a task of its own: who asked may go, but the turn must last until the change is made.
        task = asyncio.create_task(self._here(command, rule, timeout_s))
        self._doing.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def _island_lasts(self, timeout_s: float) -> bool:
        """Wait while a majority may soon be believed, as after a start; False if the island ended meanwhile."""
        deadline = self._clock.monotonic() + timeout_s
        while self._scratch is not None:
            with self._inner.view() as db:
                if self._sky(db) is Sky.GONE:
                    return True
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0:
                raise Unavailable(_HANDING_OVER)
            await first_of(self._moved.wait(), self._clock.sleep(min(left_s, LOOK_S)))
        return False

    async def _here(self, command: Command, rule: IslandRule | None, timeout_s: float) -> Outcome | None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._turn.acquire()
        except TimeoutError:
            raise Unavailable(_HANDING_OVER) from None
        try:
            scratch = self._scratch
            if scratch is None:
                return None
            if rule is None:
                raise Unavailable(f"Nothing was changed. {self.sentence()}", code="island")
            outcome = await self._blocking(lambda: scratch.apply(command, rule))
        finally:
            self._turn.release()
        self._tell()
        return outcome

    def _done(self, task: "asyncio.Task[Outcome | None]") -> None:
        self._doing.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may have gone: then what it says interests nobody

    async def _begin(self) -> None:
        """Become an island, or begin it anew on a newer state."""
        outbox, old = self._outbox, self._scratch
        assert outbox is not None  # noqa: S101 - `start` made it
        try:
            outbox.begin(self._clock.now_ms())
            scratch = await self._blocking(lambda: self._made(outbox))
        except (sqlite3.Error, OSError) as error:
            self._problem = f"this server is cut off from the grid and cannot go on by itself: {error}"
            logger.warning("this server cannot go on by itself", extra={"cause": str(error)})
            return
        self._scratch, self._problem = scratch, ""
        for task in self._asking:
            task.cancel()
        self._tell()
        if old is not None:
            old.close(forget=True)
        logger.warning("no majority: this server goes on by itself", extra={"facts": outbox.total})

    def _made(self, outbox: Outbox) -> Scratch:
        self._number += 1
        return Scratch(
            self._folder / f"island-{self._number}.sqlite",
            self._inner.view(),
            server=self.server,
            schemas=self._schemas,
            appliers=self._appliers,
            rules=self._rules,
            outbox=outbox,
            at_ms=self._clock.now_ms(),
        )

    async def _hand_over(self) -> None:
        """Tell the grid what was done here; afterwards the log is this server's truth again."""
        outbox, scratch = self._outbox, self._scratch
        assert outbox is not None and scratch is not None  # noqa: S101 - it is an island
        total = outbox.total
        try:
            # Facts meet what the grid decided meanwhile; until that has arrived here they can wait.
            await self._inner.barrier(HAND_OVER_S)
            while not await self._settle_some(outbox, total):
                pass
            await self._blocking(outbox.end)
        except (KmgrError, sqlite3.Error) as error:
            logger.info("what was done on the island is not settled yet", extra={"cause": str(error)})
            return
        self._scratch, self._left_once = None, True
        self._tell()
        scratch.close(forget=True)
        logger.warning("a majority is back: what this server did by itself is settled", extra={"facts": total})

    async def _settle_some(self, outbox: Outbox, total: int) -> bool:
        """Propose the oldest facts; True if these were the last."""
        facts = outbox.facts(most=MOST_FACTS, most_bytes=_BATCH_BYTES)
        last = len(outbox.facts(most=len(facts) + 1)) == len(facts)
        body = {
            "server": self.server,
            "outbox": outbox.id,
            "facts": [spelled(fact) for fact in facts],
            "connected": sorted(self._connected()),
            "over": total if last else None,
        }
        # The end of an island is told once, however often this server is killed while it tells it.
        word = CommandId(f"{outbox.id}-{outbox.since}-{outbox.last}") if last else None
        outcome = await self._inner.propose(SETTLE, body, by=self.server, id=word, timeout_s=HAND_OVER_S)
        if not isinstance(outcome, Applied):
            # Only a server that was removed meanwhile is told so; it has nothing left to say.
            logger.warning("what this server did by itself was not wanted", extra={"cause": outcome.detail})
            return True
        if facts:
            await self._blocking(lambda: outbox.drop(facts[-1].n))
        return last

    async def _unless_entered(self, asking: Coroutine[Any, Any, Outcome]) -> Outcome | None:
        """Return the log's answer; None if this server became an island before it came."""
        task = asyncio.create_task(asking)
        self._asking.add(task)
        try:
            return await task
        except Unavailable:
            if self._scratch is None:
                raise
            return None
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if self._scratch is None or own is None or own.cancelling():
                raise
            return None
        finally:
            self._asking.discard(task)

    def _tell(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
