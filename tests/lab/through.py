"""A server's log with somebody before it who may hold changes back, lose them, or strike when they are made."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from sqlite_utils import Database

from kmgr.grid.envelope import Outcome
from kmgr.grid.model import GridStatus
from kmgr.grid.port import Grid
from kmgr.ids import CommandId, ServerId

Make: TypeAlias = Callable[[], Awaitable[Outcome]]


class Through:
    """Passes everything on to a log; a subclass says what becomes of a change."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    @property
    def server(self) -> ServerId:
        """The server's id."""
        return self._grid.server

    async def propose(
        self,
        type: str,
        body: Mapping[str, Any],
        *,
        by: str,
        id: CommandId | None = None,
        timeout_s: float = 10.0,
    ) -> Outcome:
        """Have a change made."""

        async def make() -> Outcome:
            return await self._grid.propose(type, body, by=by, id=id, timeout_s=timeout_s)

        return await self.change(type, make)

    async def change(self, type: str, make: Make) -> Outcome:
        """Have one change made by calling `make`, now or later, or not at all."""
        return await make()

    async def barrier(self, timeout_s: float = 5.0) -> None:
        """Wait for what was acknowledged anywhere."""
        await self._grid.barrier(timeout_s)

    def view(self) -> AbstractContextManager[Database]:
        """Lend a connection."""
        return self._grid.view()

    def status(self) -> GridStatus:
        """Return what the log says of itself."""
        return self._grid.status()

    async def changed(self, since: int, *, timeout_s: float) -> int:
        """Wait for the next change."""
        return await self._grid.changed(since, timeout_s=timeout_s)
