"""What every member of a grid runs, a witness included: state, log, grid port, heartbeat, the leader's first duties.

It is made in the order in which its parts need each other. `open` begins the
log, `listen` lets others speak to this member; between the two a server puts
what has to be there before anybody may call.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from kmgr import __version__
from kmgr.clock import Clock
from kmgr.config import Config
from kmgr.daemon.supervise import Loops
from kmgr.grid import identity, promises
from kmgr.grid.identity import BOOTSTRAP, Identity
from kmgr.grid.leadership import Leadership, Voting, Watch
from kmgr.grid.mending import open_state, refuse_foreign_state
from kmgr.grid.model import DOUBTED
from kmgr.grid.presence import ContactBook, Presence, Whereabouts
from kmgr.grid.raft.grid import RaftGrid
from kmgr.grid.raft.library import Timing
from kmgr.grid.raft.opening import JOURNAL
from kmgr.grid.raft.worker import DiskTrouble
from kmgr.grid.raftlink import RaftLink
from kmgr.grid.requests import GridRequests
from kmgr.grid.standpoint import Standpoint
from kmgr.grid.verify import Verifier
from kmgr.grid.vitals import Board, Heart, measurer
from kmgr.grid.wire import GridPort
from kmgr.registry import APPLIERS, SCHEMAS

PROMISE_S = 10.0


class Trunk:
    """The parts that all members have. It announces `grid_address` and `web_address`; `:port` may do."""

    def __init__(
        self,
        config: Config,
        own: Identity,
        *,
        grid_address: str,
        web_address: str,
        clock: Clock,
        loops: Loops,
        timing: Timing | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._loops = loops
        data_dir = config.data_dir
        self._store, mended = open_state(data_dir / "state.sqlite", SCHEMAS, journal=data_dir / "raft" / JOURNAL)
        refuse_foreign_state(self._store, own.grid, data_dir)
        self._store.on_damage = lambda why: loops.fail(
            DiskTrouble(f"{why}: kmgr stops in order and does that at its next start. Look after the disk")
        )
        book = ContactBook(own)
        self.port = GridPort(own, data_dir, contacts=book)
        self._link = RaftLink(self.port, clock=clock)
        self.requests = GridRequests(self.port, clock=clock)
        self.grid = RaftGrid(
            own.server,
            folder=data_dir / "raft",
            store=self._store,
            appliers=APPLIERS,
            link=self._link,
            clock=clock,
            founder=(identity.folder(data_dir) / BOOTSTRAP).exists(),
            on_fatal=loops.fail,
            timing=timing,
            promised=identity.folder(data_dir) / promises.FILE,
        )
        self.port.guardian = Standpoint(self.grid, data_dir, left_behind=lambda _: loops.leave())
        self.board = Board()
        self.heart = Heart(
            self.grid, self.requests, board=self.board, contacts=book, clock=clock, measure=measurer(data_dir)
        )
        self.heart.contribute("state", lambda: {"problems": [mended] if mended else []})
        self.heart.contribute("log", self._log_vitals)
        self.heart.contribute("grid port", lambda: {"problems": self.port.problems()})
        self.verifier = Verifier(self.grid, self.requests)
        self._presence = Presence(
            self.grid,
            own=own,
            data_dir=data_dir,
            where=Whereabouts(grid_address, web_address, __version__),
            book=book,
            port=self.port,
            clock=clock,
        )
        self._leadership = Leadership(self.grid, clock=clock)
        self._leadership.duty("watch", Watch(self.grid, self.board, clock=clock).run)
        self._leadership.duty("voting", Voting(self.grid, self.grid, self.board, clock=clock).run)

    async def open(self, stack: AsyncExitStack) -> None:
        """Begin the log; `stack` ends it."""
        stack.callback(self._store.close)
        await self.grid.start()
        stack.push_async_callback(self.grid.stop)

    async def listen(self, stack: AsyncExitStack) -> None:
        """Open the grid port and begin the loops; `stack` ends all loops of this daemon, later ones included."""
        await self.port.start(self._config.grid_host, self._config.grid_port)
        stack.push_async_callback(self.port.stop)
        stack.callback(self.requests.close)
        stack.push_async_callback(self._loops.stop)
        self._loops.begin("link", self._link.run)
        self._loops.begin("presence", self._presence.run)
        self._loops.begin("heart", self.heart.run)
        self._loops.begin("promises", self._promise)
        self._loops.begin("leadership", self._leadership.run)

    async def _promise(self) -> None:
        """Note now and then, away from the log, how far it has come."""
        while True:
            await self._clock.sleep(PROMISE_S)
            await asyncio.to_thread(self.grid.note_promise)

    def _log_vitals(self) -> Mapping[str, Any]:
        doubts = self.grid.problems()
        return {"problems": doubts, DOUBTED: bool(doubts)}
