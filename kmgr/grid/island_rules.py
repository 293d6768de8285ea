"""Decide when a server that reaches no majority goes on by itself, and when it hands over what it did.

Two times are watched, both by this server's own monotonic clock: since when no
majority was there, and since when one is there. A majority that shows itself for
less than `STEADY_S` counts as none, so one that flaps neither keeps a server
waiting for ever nor makes it hand over in vain.

Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kmgr.grid.model import Server, ServerRole, ServerState
from kmgr.ids import ServerId

# A majority must be there so long before it is believed.
STEADY_S = 1.0
# After a start the first election takes its time; nobody is cut off so soon.
STARTING_S = 8.0


class Mode(StrEnum):
    """Which truth this server works on."""

    LOG = "log"
    ISLAND = "island"


class Sky(StrEnum):
    """How the majority looks from here."""

    THERE = "there"  # for so long that it is believed
    DOUBTFUL = "doubtful"  # it came or went a moment ago
    GONE = "gone"  # for so long that waiting is over


class Move(StrEnum):
    """What to do next."""

    STAY = "stay"
    ENTER = "enter"
    HAND_OVER = "hand over"
    RENEW = "renew"  # the log moved on before the majority went again: begin anew from the newer state


_NO_SHARE = (ServerState.JOINING, ServerState.REMOVED)

MOVES: Mapping[tuple[Mode, Sky], Move] = {
    (Mode.LOG, Sky.THERE): Move.STAY,
    (Mode.LOG, Sky.DOUBTFUL): Move.STAY,
    (Mode.LOG, Sky.GONE): Move.ENTER,
    (Mode.ISLAND, Sky.THERE): Move.HAND_OVER,
    (Mode.ISLAND, Sky.DOUBTFUL): Move.STAY,
    (Mode.ISLAND, Sky.GONE): Move.STAY,
}


@dataclass(frozen=True, slots=True)
class Watched:
    """Since when a majority is away or there; both None before the first look."""

    absent_since: float | None = None
    present_since: float | None = None


def watched(before: Watched, *, majority: bool, now: float) -> Watched:
    """Return what is known after one more look."""
    if not majority:
        return Watched(now if before.absent_since is None else before.absent_since, None)
    present = now if before.present_since is None else before.present_since
    return Watched(None if now - present >= STEADY_S else before.absent_since, present)


def sky(seen: Watched, *, now: float, after_s: float, started_at: float) -> Sky:
    """Say how the majority looks; nothing is gone before this server had time for an election."""
    if seen.present_since is not None:
        return Sky.THERE if now - seen.present_since >= STEADY_S else Sky.DOUBTFUL
    waited = seen.absent_since is not None and now - seen.absent_since >= after_s
    return Sky.GONE if waited and now - started_at >= STARTING_S else Sky.DOUBTFUL


def next_move(mode: Mode, look: Sky, *, fit: bool, stale: bool) -> Move:
    """Return what to do. `fit`: this server may be an island; `stale`: its island began from an older state."""
    move = MOVES[mode, look]
    if move is Move.ENTER and not fit:
        return Move.STAY
    if mode is Mode.ISLAND and look is Sky.GONE and stale:
        return Move.RENEW
    return move


def unfit(servers: Sequence[Server], own: ServerId) -> str:
    """Say why a server may not go on by itself, empty if it may. `servers` includes removed ones."""
    here = next((server for server in servers if server.id == own), None)
    if here is None or here.state is ServerState.JOINING:
        return "it has not been part of the grid yet"
    if here.state is ServerState.REMOVED:
        return "it was removed from the grid"
    if here.role is ServerRole.WITNESS:
        return "a witness runs no desktops"
    if all(server.id == own for server in servers if server.state is not ServerState.REMOVED):
        return "it is the only server of its grid"
    return ""


def share(total: int, servers: Sequence[Server]) -> int:
    """Return one server's part of what the grid agreed on, rounded up; joining ones and witnesses have none."""
    count = sum(s.role is ServerRole.SERVER and s.state not in _NO_SHARE for s in servers)
    return -(-total // max(1, count))


def most_here(maximum: int, elsewhere: int, servers: Sequence[Server]) -> int:
    """Return how many desktops of a template an island may have: what others leave of the maximum, or its share."""
    return max(maximum - elsewhere, share(maximum, servers))


def limits(servers: Sequence[Server], own: ServerId) -> str:
    """Say for people what goes on here, what waits and what would help."""
    others = sorted(s.name for s in servers if s.id != own and s.state is not ServerState.REMOVED)
    name = next((s.name for s in servers if s.id == own), own)
    if not others:
        return f"{name} was on its own and is about to tell the grid what it did meanwhile: try again in a moment."
    return (
        f"{name} does not reach a majority of the grid (without {', '.join(others)}) and goes on by itself: users "
        "log in and get pooled desktops of this server. Changes of the configuration wait until a majority is back; "
        "three members, one of which may be a witness, keep one when any of them is lost. See docs/operating.md."
    )
