"""Taking a server out of service, guarded: what would be worse afterwards is said before, and the override noted.

The reasons belong to the servers that are up at this moment; the command carries
who they were, so that two people who drain two servers at once cannot both pass.

A server that may run its personal desktops without the others (`provision.tenure_rules`)
drains before it is removed, until it has given that up.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kmgr.balancer.queries import reasons_against
from kmgr.balancer.redundancy import Drain, Maintenance, Remove
from kmgr.clock import Clock
from kmgr.errors import NotFound, Refused, Unavailable
from kmgr.grid.model import RUNNING
from kmgr.grid.outcomes import applied
from kmgr.grid.port import Grid, VitalsBoard
from kmgr.grid.queries import server as find_server
from kmgr.grid.queries import servers
from kmgr.ids import ServerId
from kmgr.provision.drain_commands import MOST_MINUTES
from kmgr.provision.queries import tenure_of
from kmgr.whole import is_whole, must_be

# It looks once a second whether it still needs its tenure.
GIVES_BACK_S = 10.0


@dataclass(frozen=True, slots=True)
class Weighed:
    """What speaks against an action, and which servers were up when that was judged."""

    reasons: tuple[str, ...]
    running: tuple[ServerId, ...]


def weigh(grid: Grid, board: VitalsBoard, action: Maintenance, *, clock: Clock) -> Weighed:
    """Judge an action on the grid as this server knows it now."""
    voters = grid.status().voters
    with grid.view() as db:
        reasons = reasons_against(db, board.all(), voters, clock.monotonic(), action)
        running = tuple(sorted(s.id for s in servers(db) if s.state in RUNNING))
    return Weighed(reasons, running)


async def carry_out(
    grid: Grid,
    board: VitalsBoard,
    action: Maintenance,
    *,
    by: str,
    force: bool = False,
    notice_minutes: int = 0,
    clock: Clock,
) -> None:
    """Drain or remove a server; raise `Refused` with the reasons if there are any and they are not overridden.

    With a notice, desktops that cannot be moved from a draining server end after so many minutes.
    """
    if not is_whole(notice_minutes, 0, MOST_MINUTES):
        problem = must_be(notice_minutes, 0, MOST_MINUTES)
        raise Refused(f"The minutes of a notice {problem} (a week at most; 0: nobody has to leave).")
    weighed = weigh(grid, board, action, clock=clock)
    if weighed.reasons and not force:
        raise Refused(
            f"This is not done, because the grid would be weaker: {' '.join(weighed.reasons)} "
            "To do it all the same, force it; the history will say so.",
            code="unsafe",
        )
    body: dict[str, object] = {"server": action.server, "running": list(weighed.running)}
    if weighed.reasons:
        body["although"] = [reason.removeprefix("Afterwards: ").rstrip(".") for reason in weighed.reasons]
    if isinstance(action, Remove):
        await _given_back(grid, action.server, body, by=by, clock=clock)
    type_ = {Drain: "server.drain", Remove: "server.remove"}[type(action)]
    if isinstance(action, Drain) and notice_minutes:  # one change: there is no drain whose notice got lost
        type_, body["minutes"] = "drain.begin", notice_minutes
    applied(await grid.propose(type_, body, by=by))


async def _given_back(grid: Grid, leaving: ServerId, body: Mapping[str, object], *, by: str, clock: Clock) -> None:
    """Drain a running server that has a tenure and wait until it has none; raise `Unavailable` if it keeps it."""
    until = clock.monotonic() + GIVES_BACK_S
    drained = False
    while True:
        seen = grid.status().applied
        with grid.view() as db:
            row = find_server(db, leaving)
            tenured = bool(tenure_of(db, leaving))
        if row is None or row.state not in RUNNING or not tenured:
            return
        if clock.monotonic() >= until:
            raise Unavailable(
                f"{row.name} drains, but has not given up the right to run its personal desktops without the others: "
                "is it there? Look at the grid again, then remove it once more"
            )
        if not drained:
            applied(await grid.propose("server.drain", body, by=by))
            drained = True
        else:
            await grid.changed(seen, timeout_s=1.0)


def by_name(grid: Grid, wanted: str, *, removed: bool = False) -> ServerId:
    """Return the id of a server of the grid that is given by name or id; raise `NotFound`, naming all there are."""
    with grid.view() as db:
        known = servers(db, removed=removed)
    for server in known:
        if wanted in (server.id, server.name):
            return server.id
    names = ", ".join(server.name for server in known)
    raise NotFound(f"there is no server {wanted!r} in this grid; there are {names}")
