"""The replicated log as the rest of kmgr uses it: the `Grid` and `Voters` ports on a raft thread.

Answers come from the raft thread, all of one round by one `call_soon_threadsafe`;
whatever the daemon's loop asks is handed over and never waited for while holding a lock.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlite_utils import Database

from kmgr.clock import Clock
from kmgr.entropy import new_id
from kmgr.errors import InvariantBroken, KmgrError, OutcomeUnknown, Refused, Unavailable
from kmgr.grid import promises
from kmgr.grid.envelope import MAX_BYTES, Command, Outcome, Rejected, asked_at, decode_outcome, encode
from kmgr.grid.fsm import TOO_LATE, Applier
from kmgr.grid.link import Link
from kmgr.grid.model import GridStatus
from kmgr.grid.promises import Promise
from kmgr.grid.raft.barriers import Barrier
from kmgr.grid.raft.core import Core, Shown
from kmgr.grid.raft.library import Timing, check_library, monotonic
from kmgr.grid.raft.opening import JOURNAL, open_folder
from kmgr.grid.raft.proposals import Proposal
from kmgr.grid.raft.worker import Worker
from kmgr.grid.rows import scalar
from kmgr.grid.store import Store
from kmgr.ids import CommandId, ServerId

logger = logging.getLogger(__name__)

# How long a change of voters may take; the duty that asked for it asks again.
VOTERS_S = 10.0
_HAND_OVER_AGAIN_S = 0.1
_NOT_CURRENT = (
    "no majority of the grid's servers confirmed in time that this server knows the latest changes: more than half "
    "of them must be running and connected; try again when they are"
)

T = TypeVar("T")


class RaftGrid:
    """This server's part of the log. `founder` counts only while `folder` is empty; then this server votes alone."""

    def __init__(
        self,
        server: ServerId,
        *,
        folder: Path,
        store: Store,
        appliers: Mapping[str, Applier],
        link: Link,
        clock: Clock,
        founder: bool,
        on_fatal: Callable[[str], None],
        timing: Timing | None = None,
        promised: Path | None = None,
    ) -> None:
        self._server = server
        self._folder = folder
        self._store = store
        self._appliers = appliers
        self._link = link
        self._clock = clock
        self._founder = founder
        self._promised = promised
        self._on_fatal = on_fatal
        self._timing = timing or Timing()
        self._core: Core | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._posted: deque[Callable[[], None]] = deque()
        self._posting = False
        self._worker = Worker(
            link,
            shown=lambda: self._post(self._moved),
            failed=lambda why: self._post(self._on_fatal, why),
        )
        link.attach(self._worker)

    async def start(self) -> None:
        """Open the log and begin; raise `ConfigError` if this server cannot go on with what is in its folder."""
        check_library()
        self._loop = asyncio.get_running_loop()
        self._core = await asyncio.to_thread(self._open)
        self._worker.start(self._core)
        logger.info("the log is open", extra={"voters": len(self._core.shown.voters)})

    async def stop(self) -> None:
        """End in order, everything on the disk; also after `on_fatal`."""
        await asyncio.to_thread(self._worker.stop)
        with suppress(Unavailable):  # a full or broken disk: the note is a help, not a promise to anybody
            await asyncio.to_thread(self.note_promise)

    @property
    def server(self) -> ServerId:
        """This server's id."""
        return self._server

    async def propose(
        self,
        type: str,
        body: Mapping[str, Any],
        *,
        by: str,
        id: CommandId | None = None,
        timeout_s: float = 10.0,
    ) -> Outcome:
        """Have a change made everywhere; return its outcome once this server has applied it."""
        core = self._running()
        if type not in self._appliers:
            raise InvariantBroken(f"nothing here can apply {type!r}")
        if id is not None and (known := self._known(id)) is not None:
            return known
        chosen = id or asked_at(new_id("cmd"), core.shown.applied)
        command = Command(type, chosen, self._clock.now_ms(), by, body)
        data = encode(command)
        if len(data) > MAX_BYTES:
            raise Refused(f"a change of {len(data)} bytes is too large, {MAX_BYTES} are the most: split it")
        answer: asyncio.Future[Outcome | KmgrError] = asyncio.get_running_loop().create_future()
        proposal = Proposal(command.id, data, lambda found: self._post(_settle, answer, found), monotonic())
        core.proposals.add(proposal)
        self._worker.wake()
        try:
            async with asyncio.timeout(timeout_s):
                found = await answer
        except TimeoutError:
            raise core.proposals.give_up(proposal) from None
        except asyncio.CancelledError:
            core.proposals.give_up(proposal)
            raise
        if isinstance(found, KmgrError):
            raise found
        if isinstance(found, Rejected) and found.code == TOO_LATE:
            raise OutcomeUnknown(found.detail)
        return found

    def view(self) -> AbstractContextManager[Database]:
        """Lend a read-only connection that shows one consistent state."""
        return self._store.view()

    def status(self) -> GridStatus:
        """Return what this server knows about the log now."""
        shown = self._shown()
        return GridStatus(
            server=self._server,
            leader=shown.leader,
            term=shown.term,
            applied=shown.applied,
            majority=shown.majority,
            voters=shown.voters,
        )

    async def barrier(self, timeout_s: float = 5.0) -> None:
        """Return when `view()` shows all that was acknowledged anywhere before; `Unavailable` without a majority."""
        core = self._running()
        passed: asyncio.Future[KmgrError | None] = asyncio.get_running_loop().create_future()
        barrier = Barrier(lambda found: self._post(_settle, passed, found))
        core.barriers.add(barrier)
        self._worker.wake()
        try:
            async with asyncio.timeout(timeout_s):
                refused = await passed
        except TimeoutError:
            raise Unavailable(_NOT_CURRENT) from None
        finally:
            core.barriers.give_up(barrier)
        if refused is not None:
            raise refused

    async def changed(self, since: int, *, timeout_s: float) -> int:
        """Return the applied index as soon as it is greater than `since`, or at the time-out."""
        await self._until(lambda shown: shown.applied > since, timeout_s)
        return self._shown().applied

    def feed(self, servers: frozenset[ServerId]) -> None:
        """Send the log also to these servers, which learn it without a vote; only a leader does."""
        if self._core is not None and self._core.shown.leader == self._server:
            self._worker.call(lambda core: core.feed(servers))

    def progress(self) -> Mapping[ServerId, int]:
        """Return up to which index the log is known to be on each server's disk; empty unless this one leads."""
        return self._core.progress if self._core is not None else {}

    async def add_voter(self, server: ServerId) -> None:
        """Let a server vote (asked of the leader); return when that is committed."""
        await self._changed_voters(lambda core: core.add_voter(server))

    async def remove_voter(self, server: ServerId) -> None:
        """Let a server vote no longer (asked of the leader); return when that is committed."""
        await self._changed_voters(lambda core: core.remove_voter(server))

    async def hand_over(self, server: ServerId) -> None:
        """Let another voter lead; return when this server leads no longer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + VOTERS_S
        while not await asyncio.wrap_future(self._worker.call(lambda core: core.hand_over(server))):
            if loop.time() > deadline:
                raise Unavailable(f"server {server} does not keep up with the log and cannot lead now")
            await asyncio.sleep(_HAND_OVER_AGAIN_S)
        if not await self._until(lambda shown: shown.leader not in {None, self._server}, VOTERS_S):
            raise Unavailable(f"server {server} did not take the lead; this one leads on")

    @property
    def epoch(self) -> int:
        """How often this server's grid was recovered without its majority."""
        return self._shown().epoch

    @property
    def end(self) -> tuple[int, int]:
        """(Term, index) of the last entry that this server has, whether it is committed or not."""
        return self._core.end if self._core is not None else (0, 0)

    @property
    def fresh(self) -> bool:
        """Whether nothing of any grid's log is here yet."""
        return self._shown().fresh

    def problems(self) -> list[str]:
        """Return, for the console, why this server counts for nothing."""
        doubt = self._shown().doubt
        return [doubt] if doubt else []

    def note_promise(self) -> None:
        """Remember outside of the log how far it has come; any thread, writes at most one small file."""
        shown = self._shown()
        if self._promised is not None and shown.committed > 1:
            promises.note(self._promised, Promise(shown.term, shown.committed))

    async def adopt_epoch(self, epoch: int) -> None:
        """Belong to this epoch, if there is no log here yet that belongs to another one; durable at return."""
        await asyncio.wrap_future(self._worker.call(lambda core: core.adopt_epoch(epoch)))

    async def abandon(self) -> None:
        """End without writing anything more, as a kill would: for tests of what a kill leaves."""
        await asyncio.to_thread(self._worker.abandon)

    def _open(self) -> Core:
        if self._promised is not None:
            promises.refuse_lost_log(self._promised, self._folder / JOURNAL)
        opened = open_folder(self._folder, self._store, self._server, founder=self._founder)
        if self._promised is not None:
            journal = opened.journal
            promises.check(self._promised, term=journal.term, last=journal.last.index, log=self._folder / JOURNAL)
        self._store.guard()
        return Core(
            self._server,
            opened=opened,
            folder=self._folder,
            store=self._store,
            appliers=self._appliers,
            link=self._link,
            timing=self._timing,
        )

    def _running(self) -> Core:
        if self._core is None:
            raise Unavailable("the log of this server is not open yet: nothing was changed")
        return self._core

    def _shown(self) -> Shown:
        return self._core.shown if self._core is not None else Shown()

    def _known(self, id: CommandId) -> Outcome | None:
        with self._store.view() as db:
            text = scalar(db, "select outcome from outcomes where id = ?", [id])
        return None if text is None else decode_outcome(text)

    async def _changed_voters(self, change: Callable[[Core], tuple[int, int] | None]) -> None:
        entry = await asyncio.wrap_future(self._worker.call(change))
        if entry is None:
            return
        index, term = entry
        await self._until(lambda shown: shown.committed >= index or shown.term != term, VOTERS_S)
        shown = self._shown()
        if shown.term != term or shown.committed < index:
            raise OutcomeUnknown("the leader changed or lost its majority while the voters were changed")

    async def _until(self, fits: Callable[[Shown], bool], timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not fits(self._shown()):
            moved: asyncio.Future[None] = loop.create_future()
            self._waiting.add(moved)
            try:
                async with asyncio.timeout_at(deadline):
                    await moved
            except TimeoutError:
                return fits(self._shown())
            finally:
                self._waiting.discard(moved)
        return True

    def _moved(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def _post(self, call: Callable[..., None], *values: object) -> None:
        """Have something called on the loop, in order (any thread)."""
        self._posted.append(partial(call, *values))
        if self._loop is None or self._posting:
            return
        self._posting = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop has ended before this server's log
            logger.debug("the log has nobody to report to")

    def _deliver(self) -> None:
        # Whatever is posted from here on comes with a call of its own.
        self._posting = False
        for _ in range(len(self._posted)):
            try:
                self._posted.popleft()()
            except Exception:
                logger.exception("an answer of the log was not taken")
        if self._core is not None and self._core.told():
            self._worker.wake()


def _settle(answer: "asyncio.Future[T]", found: T) -> None:
    if not answer.done():
        answer.set_result(found)
