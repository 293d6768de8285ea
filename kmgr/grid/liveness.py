"""Decide which servers the leader has stopped hearing from, and which are back.

Heartbeats never enter the log: the leader keeps them in memory, by its own
monotonic clock, and proposes only the verdict. A new leader starts every timer
afresh, so a server may be declared lost late but never early.

Pure.
"""

from collections.abc import Iterable, Mapping, Sequence

from kmgr.grid.model import RUNNING, Server, ServerState, Vitals
from kmgr.ids import ServerId

# A server that lags by more log entries than this still acts on an old state: it is not back yet.
MOST_BEHIND = 100


def silent(
    servers: Iterable[ServerId],
    heard: Mapping[ServerId, float],
    *,
    elected_at: float,
    now: float,
    lost_after_s: float,
) -> tuple[ServerId, ...]:
    """Name the servers not heard from for `lost_after_s`, in id order."""
    return tuple(s for s in sorted(servers) if now - max(heard.get(s, elected_at), elected_at) >= lost_after_s)


def lost(
    servers: Sequence[Server],
    board: Mapping[ServerId, Vitals],
    *,
    leader: ServerId,
    elected_at: float,
    now: float,
    lost_after_s: float,
) -> tuple[ServerId, ...]:
    """Name the running servers that the leader should declare lost; it never declares itself."""
    running = [s.id for s in servers if s.state in RUNNING and s.id != leader]
    heard = {server: vitals.heard_at for server, vitals in board.items()}
    return silent(running, heard, elected_at=elected_at, now=now, lost_after_s=lost_after_s)


def back(
    servers: Sequence[Server],
    board: Mapping[ServerId, Vitals],
    *,
    leader: ServerId,
    applied: int,
    now: float,
    fresh_s: float,
) -> tuple[ServerId, ...]:
    """Name the lost or joining servers that speak and have caught up with the log, in id order."""
    found = []
    for server in sorted(servers, key=lambda s: s.id):
        waiting = server.state in (ServerState.LOST, ServerState.JOINING)
        vitals = board.get(server.id)
        if not waiting or (vitals is None and server.id != leader):
            continue
        if vitals is None or (
            now - vitals.heard_at < fresh_s and applied - int(vitals.extra.get("applied", 0)) <= MOST_BEHIND
        ):
            found.append(server.id)
    return tuple(found)
