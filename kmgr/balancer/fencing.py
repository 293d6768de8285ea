"""Tell which lost servers run no personal desktop any more.

A server runs one only under a lease that it renews through the log, and none is
granted once the log says that it is lost or removed. So whoever has seen that in
the log and waited longer than a lease lasts knows that all of them have ended
(`provision.lease` has the proof). A server with a tenure needs none: the waiting
begins when that has ended (`provision.tenure_rules`). It begins anew for each loss,
and in each process: a desktop goes on late, never early.

Pure.
"""

from collections.abc import Collection, Iterable
from typing import TypeAlias

from kmgr.grid.model import RUNNING, Server, ServerState
from kmgr.ids import ServerId

_Loss: TypeAlias = tuple[ServerId, ServerState, int]


class Fencing:
    """Remembers since when each server is not running, by this process's monotonic clock."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._since: dict[_Loss, float] = {}
        # Since when it has no tenure, either.
        self._bare: dict[_Loss, float] = {}

    def fenced(
        self, servers: Iterable[Server], now: float, tenures: Collection[ServerId] = ()
    ) -> frozenset[ServerId]:
        """Return the servers whose loss was waited out; `servers` are all, as the log says now."""
        away = [s for s in servers if s.state not in RUNNING]
        self._since = {_loss(s): self._since.get(_loss(s), now) for s in away}
        self._bare = {_loss(s): self._bare.get(_loss(s), now) for s in away if s.id not in tenures}
        return frozenset(server for (server, _, _), since in self._bare.items() if now - since >= self._wait_s)

    def lost_for(self, server: Server, now: float) -> float:
        """Return for how long a server is known not to run, 0 if it runs."""
        since = self._since.get(_loss(server))
        return 0.0 if since is None else now - since


def _loss(server: Server) -> _Loss:
    return server.id, server.state, server.changed_at
