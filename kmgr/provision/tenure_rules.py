"""Decide when a server that is one of two voters needs no majority to run its own personal desktops.

A *tenure* is a line in the state: nobody takes over this server's desktops. The
server itself asks for it (under a name that is never used again) while there are
two voters, and gives it back when there are more. While it has it, it may go on
without a majority.

Why two servers never run one desktop. Say that S goes on by the tenure `k` that
it has seen in its own state, begun by the log entry `b`, and that another server
starts a desktop of S by the take-over `t`.

* `t` before `b`: S has applied `b`, hence `t`: the desktop is not its own, and
  nothing that is not is started or let go on (`Lease.covers`).
* `t` after `b`: `t` is rejected while the state has `k`, so an entry between the
  two ended it. It was proposed by S, which forgets `k` for good *before* it
  proposes that (here, and in the note that a later life of it reads), or it is
  the word of a person that S is switched off.
* What S was granted by `k` before it forgot it lasts `LEASE_S`. A loss that is
  waited out begins to count only when the state has no tenure any more
  (`balancer.fencing`): later than that, and for longer.

Nothing in this argument depends on who votes by then, on which votes S has
heard of, or on whose log has what else in it: only on states being made from
beginnings of one log. `kmgr grid recover` keeps the tenures of those it removes.

Pure.
"""

from collections.abc import Collection
from enum import StrEnum

from kmgr.grid.model import RUNNING, ServerState
from kmgr.ids import ServerId


class Step(StrEnum):
    """What to propose now."""

    BEGIN = "begin"
    GIVE_BACK = "give back"
    NOTHING = "nothing"


def wanted(server: ServerId, state: ServerState | None, voters: Collection[ServerId]) -> bool:
    """Tell whether a server should have a tenure: of two voters neither is taken over without its own vote anyway."""
    return state is ServerState.UP and len(voters) == 2 and server in voters


def next_step(known: str, mine: str, *, wanted: bool) -> Step:
    """Return what to propose: `known` is the tenure in the state, `mine` the one that is being used or asked for."""
    if wanted:
        return Step.NOTHING if mine and known == mine else Step.BEGIN
    return Step.GIVE_BACK if known or mine else Step.NOTHING


def lasts(known: str, mine: str, state: ServerState | None) -> bool:
    """Tell whether a server may go on by its tenure."""
    return bool(mine) and known == mine and state in RUNNING
