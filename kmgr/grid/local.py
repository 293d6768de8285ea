"""A grid without wires: the real state machine, no Raft, no sockets.

`LocalGrid` applies each proposal at once to a store. Several of them may share
one `LocalLog`, which then plays the majority: all see the same log, servers can
be cut off and reconnected, one of them is the leader. Tests and simulations run
on it; the daemon never does.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from kmgr.clock import Clock
from kmgr.entropy import new_id
from kmgr.errors import Unavailable
from kmgr.grid.envelope import Command, Outcome, encode
from kmgr.grid.fsm import Applier, Machine
from kmgr.grid.handlers import Handlers
from kmgr.grid.model import GridStatus
from kmgr.grid.port import CallHandler, Stream, StreamHandler
from kmgr.grid.store import Store
from kmgr.ids import CommandId, ServerId


class LocalLog:
    """The one log that several `LocalGrid`s share; servers in `cut_off` neither propose nor apply."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.grids: dict[ServerId, LocalGrid] = {}
        self.cut_off: set[ServerId] = set()
        self.voteless: set[ServerId] = set()
        self.term = 1

    def voters(self) -> frozenset[ServerId]:
        """Return who votes now."""
        return frozenset(self.grids) - self.voteless

    def leader(self) -> ServerId | None:
        """Return the lowest connected voter's id: deterministic, and it moves when that one is cut off."""
        alive = sorted(self.voters() - self.cut_off)
        return alive[0] if 2 * len(alive) > len(self.voters()) else None

    def append(self, data: bytes) -> None:
        """Add an entry and let every connected server apply it."""
        self.entries.append(data)
        self.deliver()

    def deliver(self) -> None:
        """Bring every connected server up to the end of the log."""
        for server in sorted(set(self.grids) - self.cut_off):
            self.grids[server].catch_up(self.entries)


class LocalGrid:
    """One server's view of a `LocalLog`: the `Grid` port for tests."""

    def __init__(
        self,
        server: ServerId,
        *,
        path: Path,
        appliers: Mapping[str, Applier],
        schemas: tuple[str, ...],
        clock: Clock,
        log: LocalLog | None = None,
    ) -> None:
        self._server = server
        self._clock = clock
        self._log = log or LocalLog()
        self._log.grids[server] = self
        self.store = Store(path, schemas)
        self.store.guard()
        self._machine = Machine(self.store, appliers)
        self._moved = asyncio.Event()
        self._last: Outcome | None = None
        # As this server last saw them.
        self._voters: frozenset[ServerId] = frozenset()

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
        """Append to the shared log and return the outcome this server computed."""
        await asyncio.sleep(0)
        if self._server in self._log.cut_off or self._log.leader() is None:
            raise Unavailable("this server cannot reach a majority of the grid: nothing was changed, try again later")
        command = Command(type, id or CommandId(new_id("cmd")), self._clock.now_ms(), by, body)
        self._log.append(encode(command))
        assert self._last is not None  # noqa: S101 - append applied it here
        return self._last

    async def barrier(self, timeout_s: float = 5.0) -> None:
        """Return at once: a server that is not cut off has applied the whole log."""
        await asyncio.sleep(0)
        if self._server in self._log.cut_off or self._log.leader() is None:
            raise Unavailable("this server cannot reach a majority of the grid and may not know the latest changes")
        self.catch_up(self._log.entries)

    def view(self) -> AbstractContextManager[Database]:
        """Lend a read-only connection on this server's own copy."""
        return self.store.view()

    def status(self) -> GridStatus:
        """Return the state of the shared log."""
        away = self._server in self._log.cut_off
        leader = None if away else self._log.leader()
        if not away or not self._voters:
            self._voters = self._log.voters()
        return GridStatus(
            server=self._server,
            leader=leader,
            term=self._log.term,
            applied=self._machine.applied,
            majority=leader is not None,
            voters=tuple(sorted(self._voters)),
        )

    async def changed(self, since: int, *, timeout_s: float) -> int:
        """Return the applied index once it has passed `since`, or after `timeout_s` of the given clock."""
        waiter = asyncio.create_task(self._wait_past(since))
        timer = asyncio.create_task(self._clock.sleep(timeout_s))
        try:
            await asyncio.wait({waiter, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:  # also when the caller is cancelled: neither may outlive it
            waiter.cancel()
            timer.cancel()
            await asyncio.gather(waiter, timer, return_exceptions=True)
        return self._machine.applied

    def catch_up(self, entries: list[bytes]) -> None:
        """Apply what this server has not applied yet."""
        for index in range(self._machine.applied + 1, len(entries) + 1):
            self._last = self._machine.apply(index, entries[index - 1])
        self._machine.commit()
        self._moved.set()
        self._moved = asyncio.Event()

    def close(self) -> None:
        """Close the state database."""
        self.store.close()

    async def _wait_past(self, since: int) -> None:
        while self._machine.applied <= since:
            await self._moved.wait()


class LocalNetwork:
    """Requests between servers of one process; pairs in `cut` and servers in `down` cannot reach each other."""

    def __init__(self) -> None:
        self.ports: dict[ServerId, LocalRequests] = {}
        self.down: set[ServerId] = set()
        self.cut: set[frozenset[ServerId]] = set()

    def port(self, server: ServerId) -> "LocalRequests":
        """Return (and register) the requests port of one server."""
        return self.ports.setdefault(server, LocalRequests(server, self))

    def reach(self, source: ServerId, target: ServerId) -> "LocalRequests":
        """Return the target's port, or raise `Unavailable` if the wire between the two is cut."""
        if {source, target} & self.down or frozenset({source, target}) in self.cut or target not in self.ports:
            raise Unavailable(f"server {target} cannot be reached from {source}")
        return self.ports[target]


class LocalRequests:
    """The `Requests` port on a `LocalNetwork`; streams are real asyncio streams over a socket pair."""

    def __init__(self, server: ServerId, network: LocalNetwork) -> None:
        self._server = server
        self._network = network
        self._handlers = Handlers(server)

    async def call(
        self,
        server: ServerId,
        op: str,
        body: Mapping[str, Any],
        *,
        timeout_s: float = 10.0,
    ) -> Mapping[str, Any]:
        """Call the target's handler directly."""
        await asyncio.sleep(0)
        target = self._network.reach(self._server, server)
        try:
            async with asyncio.timeout(timeout_s):
                return await target._handlers.call(self._server, op, body)
        except TimeoutError:
            raise Unavailable(f"server {server} did not answer within {timeout_s:g} s") from None

    async def open(
        self,
        server: ServerId,
        op: str,
        body: Mapping[str, Any],
        *,
        timeout_s: float = 10.0,
    ) -> Stream:
        """Connect a socket pair to the target's handler; a refusal before its first byte is raised here."""
        target = self._network.reach(self._server, server)
        try:
            async with asyncio.timeout(timeout_s):
                return await target._handlers.connect(self._server, op, body)
        except TimeoutError:
            raise Unavailable(f"server {server} did not answer within {timeout_s:g} s") from None

    def serve(self, op: str, handler: CallHandler) -> None:
        """Register a call handler."""
        self._handlers.serve(op, handler)

    def serve_stream(self, op: str, handler: StreamHandler) -> None:
        """Register a stream handler."""
        self._handlers.serve_stream(op, handler)
