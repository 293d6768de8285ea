"""Decide which servers the leader has stopped hearing from, and which are back.

Heartbeats never enter the log: the leader keeps them in memory, by its own
monotonic clock, and proposes only the verdict. A new leader starts every timer
afresh, but for the time of an election: whom it had not heard while it heard
others before it led was silent. So a server may be declared lost late but never
early. Nor does it blame others for a time in which it listened to nobody: a leader
that was stopped (its machine paused, swapping, out of processors) wakes to a long
silence of all.

Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kmgr.grid.model import RUNNING, Server, ServerState, Vitals
from kmgr.ids import ServerId

# A server that lags by more log entries than this still acts on an old state: it is not back yet.
MOST_BEHIND = 100
# The leader looks several times a second. When it looks later than this, it was itself held up for the rest.
MOST_LISTENED_S = 1.0
# Of what is silence enough to be lost, this part at most may lie before the leader's election.
BEFORE_ELECTION = 1 / 3


@dataclass(frozen=True, slots=True)
class Silence:
    """A server was last heard at `heard`; since then the leader has listened for `lasts` seconds in vain."""

    heard: float
    lasts: float


def listened(
    before: Mapping[ServerId, Silence],
    servers: Iterable[ServerId],
    board: Mapping[ServerId, Vitals],
    *,
    looked_at: float,
    now: float,
) -> Mapping[ServerId, Silence]:
    """Return the silences at this look; `before` are those at the last one, at `looked_at` or the election."""
    step = min(now - looked_at, MOST_LISTENED_S)
    found = {}
    for server in servers:
        known = before.get(server)
        heard = board[server].heard_at if server in board else -1.0
        if known is None or heard > known.heard:
            found[server] = Silence(heard, min(step, max(0.0, now - heard)))
        else:
            found[server] = Silence(heard, known.lasts + step)
    return found


def inherited(
    servers: Iterable[ServerId],
    board: Mapping[ServerId, Vitals],
    *,
    leader: ServerId,
    elected_at: float,
    lost_after_s: float,
) -> Mapping[ServerId, Silence]:
    """Return the silences that a leader begins with: a lost leader's one began before the election, not with it.

    They go up to when it heard anybody else: one that was cut off from all, or stood still, blames nobody for that.
    """
    others = [vitals.heard_at for server, vitals in board.items() if server != leader]
    listened_until = min(max(others, default=elected_at), elected_at)
    return {
        server: Silence(heard, min(max(0.0, listened_until - heard), BEFORE_ELECTION * lost_after_s))
        for server in servers
        if server in board and (heard := board[server].heard_at) <= elected_at
    }


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
    servers: Sequence[Server], silences: Mapping[ServerId, Silence], *, leader: ServerId, lost_after_s: float
) -> tuple[ServerId, ...]:
    """Name the running servers that the leader should declare lost, in id order; it never declares itself."""
    running = {s.id for s in servers if s.state in RUNNING and s.id != leader}
    return tuple(s for s in sorted(running) if s in silences and silences[s].lasts >= lost_after_s)


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
