"""Reads of the balancer package: the state and the last heartbeats → one view, and what follows from it for people.

Any server can ask: the same plan is made from the same view everywhere.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from sqlite_utils import Database

from kmgr.balancer.drains import Progress, progress
from kmgr.balancer.model import Shortage, View
from kmgr.balancer.plan import plan
from kmgr.balancer.redundancy import Maintenance, Redundancy, can_lose_one, would_break
from kmgr.grid.model import RUNNING, Vitals
from kmgr.grid.queries import servers, settings
from kmgr.grid.zone import local_time
from kmgr.ids import DesktopId, ServerId, VersionId
from kmgr.provision.capture_queries import WANTED, captures
from kmgr.provision.move_rows import moves
from kmgr.provision.queries import asks, copies, desktops, put_backs
from kmgr.replica.queries import holdings
from kmgr.templates.calendar import wanted_standby
from kmgr.templates.model import Template
from kmgr.templates.queries import templates
from kmgr.templates.version_queries import rollouts

# Heartbeats that may be missing before a server's word is too old to act on.
_FRESH_BEATS = 3


def look(db: Database, board: Mapping[ServerId, Vitals], now: float, *, at_ms: int | None = None) -> View:
    """Return what the balancer decides on; `now` is the monotonic clock that the board was stamped with.

    At a moment `at_ms` as many desktops should stand by as the calendars say; without one, as many as usually do.
    """
    rules = settings(db)
    fresh_s = _FRESH_BEATS * rules["heartbeat_ms"] / 1000
    holders: dict[VersionId, set[ServerId]] = {}
    known, every = servers(db, removed=True), holdings(db)
    running = {server.id for server in known if server.state in RUNNING}
    whole = {holding.version for holding in every if not holding.damaged and holding.server in running}
    for holding in every:
        # A damaged one is better than none, and only then: the alarm of it was told.
        if not holding.damaged or holding.version not in whole:
            holders.setdefault(holding.version, set()).add(holding.server)
    return View(
        servers=known,
        templates=templates(db) if at_ms is None else tuple(_at_that_time(db, at_ms)),
        desktops=desktops(db),
        holders={version: frozenset(held) for version, held in holders.items()},
        vitals={server: vitals for server, vitals in board.items() if now - vitals.heard_at < fresh_s},
        asks=Counter(ask.template for ask in asks(db)),
        copies=copies(db),
        rollouts=rollouts(db),
        moves={move.desktop: move for move in moves(db)},
        put_backs=put_backs(db),
        captured=frozenset(capture.desktop for capture in captures(db) if capture.state == WANTED),
        damaged=frozenset(holding.version for holding in every if holding.damaged) - whole,
        keep_for_loss=bool(rules["keep_for_loss"]),
    )


def _at_that_time(db: Database, at_ms: int) -> Iterator[Template]:
    at = local_time(db, at_ms)
    for one in templates(db):
        yield replace(one, standby=min(one.maximum, wanted_standby(one.policy, one.standby, at)))


def shortages_now(
    db: Database, board: Mapping[ServerId, Vitals], now: float, *, at_ms: int | None = None
) -> tuple[Shortage, ...]:
    """Return which templates have fewer desktops than they should and cannot be refilled at present, and why."""
    return plan(look(db, board, now, at_ms=at_ms)).short


def redundancy_now(
    db: Database, board: Mapping[ServerId, Vitals], voters: Iterable[ServerId], now: float
) -> Redundancy:
    """Tell whether any one server may be lost at this moment, and if not, what to do."""
    return can_lose_one(look(db, board, now), frozenset(voters))


def drain_progress(
    db: Database, board: Mapping[ServerId, Vitals], now: float, server: ServerId, *, now_ms: int
) -> Progress:
    """Return how far the drain of a server is; what moves is known from its last heartbeat."""
    vitals = board.get(server)
    told = vitals.extra.get("moves") if vitals is not None else None
    moves = told.items() if isinstance(told, Mapping) else ()
    percents = {DesktopId(str(desktop)): percent for desktop, percent in moves if isinstance(percent, int)}
    return progress(look(db, board, now), server, percents=percents, now_ms=now_ms)


def reasons_against(
    db: Database, board: Mapping[ServerId, Vitals], voters: Iterable[ServerId], now: float, action: Maintenance
) -> tuple[str, ...]:
    """Return what would be worse after a drain or a removal than it is now, none if nothing."""
    return would_break(look(db, board, now), frozenset(voters), action)
