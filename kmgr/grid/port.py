"""What the rest of kmgr is given to work with: the log, the state, and the other servers.

Two implementations exist: the real one (`grid.raft` and `grid.requests`) and
the one in memory (`grid.local`) on which tests and simulations run. The same
contract tests hold both.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from sqlite_utils import Database

from kmgr.grid.envelope import Outcome
from kmgr.grid.model import GridStatus, Vitals
from kmgr.ids import CommandId, ServerId


class Grid(Protocol):
    """The replicated log and the state it made, as seen from this server."""

    @property
    def server(self) -> ServerId:
        """This server's id."""
        ...

    async def propose(
        self,
        type: str,
        body: Mapping[str, Any],
        *,
        by: str,
        id: CommandId | None = None,
        timeout_s: float = 10.0,
    ) -> Outcome:
        """Have one change made on every server and return its outcome once this server has applied it.

        Raises `Unavailable` if nothing happened (no leader, no majority) and
        `OutcomeUnknown` if it may have happened; the same `id` makes a retry safe.
        """
        ...

    async def barrier(self, timeout_s: float = 5.0) -> None:
        """Return when `view()` shows everything that was acknowledged anywhere before this call.

        Raises `Unavailable` if no majority confirms it in time. Reads without it may be a moment old.
        """
        ...

    def view(self) -> AbstractContextManager[Database]:
        """Lend a read-only connection that shows one consistent state for the whole block."""
        ...

    def status(self) -> GridStatus:
        """Return leader, term, applied index and whether a majority is there, as known now."""
        ...

    async def changed(self, since: int, *, timeout_s: float) -> int:
        """Return the applied index as soon as it is greater than `since`, or at the time-out."""
        ...


@dataclass(frozen=True, slots=True)
class Stream:
    """A two-way byte stream to another server: whoever has it closes it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


CallHandler: TypeAlias = Callable[[ServerId, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
Accept: TypeAlias = Callable[[], Awaitable[Stream]]
StreamHandler: TypeAlias = Callable[[ServerId, Mapping[str, Any], Accept], Awaitable[None]]


class Requests(Protocol):
    """Server-to-server requests over the grid port: the peer's certificate is verified before a byte is parsed."""

    async def call(
        self, server: ServerId, op: str, body: Mapping[str, Any], *, timeout_s: float = 10.0
    ) -> Mapping[str, Any]:
        """Ask one server and return its answer (JSON both ways, at most 1 MiB).

        Raises `Unavailable` if the server cannot be reached, and the error the
        handler raised (same class and message) if it refused.
        """
        ...

    async def open(self, server: ServerId, op: str, body: Mapping[str, Any], *, timeout_s: float = 10.0) -> Stream:
        """Open a byte stream to the handler of `op` on another server; same errors as `call`."""
        ...

    def serve(self, op: str, handler: CallHandler) -> None:
        """Answer calls of `op` with `handler`; what it raises reaches the caller."""
        ...

    def serve_stream(self, op: str, handler: StreamHandler) -> None:
        """Hand streams of `op` to `handler`.

        The handler checks the request, then awaits `accept()` for the stream;
        at that moment the caller's `open` returns. What it raises before
        reaches the caller. The stream is closed when the handler returns.
        """
        ...


class VitalsBoard(Protocol):
    """The last heartbeat of every server, as heard by this one. Memory only."""

    def all(self) -> Mapping[ServerId, Vitals]:
        """Return the last vitals of every server heard from since this daemon started (itself included)."""
        ...
