"""Decide who votes: the next change of the grid's voters, one at a time.

Every member receives the log; voters are those whose acknowledgement counts. The rules:

* At most five vote, and an odd number where that is possible: one more than an odd number survives no more losses.
* A member is a learner first and votes only when it has caught up, for it counts at once.
* A witness votes only where it makes the number odd: with two servers or with four, not with one, three or five.
* A voter that has been silent for so long that it is *gone* keeps its vote until another member takes its place,
  or until the others survive more losses without it. Coming back is never waited for.
* A member that was removed from the grid goes before anything else; a leader hands over before it goes.
* A witness hands the lead over to a server as soon as one has caught up.
* No step is taken after which the voters that are there would be no majority. Of several steps the one that
  leaves most to spare is taken, so that a cut-off after any of them leaves a grid that goes on.

The log's own rule (a change is committed before the next begins) is kept by `grid.raft`. The caller performs one
step, looks again and asks again: a cut-off anywhere needs no recovery.

Pure.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from kmgr.grid.model import Server, ServerRole, ServerState, Vitals
from kmgr.ids import ServerId

MOST_VOTERS = 5
# A member that lacks more log entries than this has not caught up.
MOST_BEHIND = 100


@dataclass(frozen=True, slots=True)
class AddVoter:
    """Let this member vote."""

    server: ServerId


@dataclass(frozen=True, slots=True)
class RemoveVoter:
    """Let this member vote no longer."""

    server: ServerId


@dataclass(frozen=True, slots=True)
class HandOver:
    """Let this voter lead instead of the leader."""

    server: ServerId


Step: TypeAlias = AddVoter | RemoveVoter | HandOver


@dataclass(frozen=True, slots=True)
class Sight:
    """What the leader sees of the others: who is there, who of them has caught up, who is away for good."""

    alive: frozenset[ServerId]
    ready: frozenset[ServerId]
    gone: frozenset[ServerId] = field(default_factory=frozenset)


def sight(
    servers: Sequence[Server],
    board: Mapping[ServerId, Vitals],
    progress: Mapping[ServerId, int],
    *,
    leader: ServerId,
    last: int,
    elected_at: float,
    now: float,
    fresh_s: float,
    gone_after_s: float,
) -> Sight:
    """Judge by heartbeats and by what is known to be on the members' disks; `last` is the leader's own index.

    A removed server's heartbeats are refused, but as long as it votes it takes part in the log.
    """
    heard = {server.id: board[server.id].heard_at for server in servers if server.id in board}
    removed = {server.id for server in servers if server.state is ServerState.REMOVED}
    level = {server for server, index in progress.items() if last - index <= MOST_BEHIND}
    alive = {leader, *(server for server, at in heard.items() if now - at < fresh_s)} - (removed - {leader})
    gone = {s.id for s in servers if now - max(heard.get(s.id, elected_at), elected_at) >= gone_after_s} - {leader}
    return Sight(
        alive=frozenset(alive | (removed & level)),
        ready=frozenset((alive & level) | {leader}),
        gone=frozenset(gone),
    )


def spare(voters: Collection[ServerId], alive: Collection[ServerId]) -> int:
    """Return how many more voters may be lost before nothing can be changed; negative if that is so already."""
    return len(frozenset(voters) & frozenset(alive)) - (len(voters) // 2 + 1)


def next_step(servers: Sequence[Server], voters: Iterable[ServerId], seen: Sight, *, leader: ServerId) -> Step | None:
    """Return what to change about the voters now, or None. `servers` includes removed ones."""
    voting = frozenset(voters)
    removed = voting & {server.id for server in servers if server.state is ServerState.REMOVED}
    wanted = wanted_voters(servers, voting, seen, leader=leader)
    heir = _heir(servers, voting - removed, wanted, seen, leader=leader)
    if heir is not None:
        return HandOver(heir)
    steps: list[tuple[tuple[int, ...], ServerId, Step]] = []
    for voter in voting - wanted - {leader}:
        left = spare(voting - {voter}, seen.alive)
        if left >= 0:
            steps.append(((voter in removed, left, voter in seen.gone, 0), voter, RemoveVoter(voter)))
    for member in wanted - voting if len(voting) < MOST_VOTERS else ():
        left = spare(voting | {member}, seen.alive)
        if left >= 0:
            steps.append(((False, left, False, 1), member, AddVoter(member)))
    joined = {server.id: server.joined_at for server in servers}
    # The best step; among equals the member that joined first.
    steps.sort(key=lambda step: (*(-part for part in step[0]), joined.get(step[1], 0), step[1]))
    return steps[0][2] if steps else None


def wanted_voters(
    servers: Sequence[Server], voters: Iterable[ServerId], seen: Sight, *, leader: ServerId
) -> frozenset[ServerId]:
    """Return who should vote, as far as that is possible now."""
    removed = {server.id for server in servers if server.state is ServerState.REMOVED}
    kept = frozenset(voters) - removed
    now = _best(servers, kept, seen.ready - removed, seen, leader=leader)
    if kept & seen.gone and spare(now, seen.alive) <= spare(kept, seen.alive):
        return kept
    # Nobody loses its vote only because another member, soon there again, makes the number even for a moment.
    soon = {server.id for server in servers} - removed - seen.gone
    return now | (kept & _best(servers, kept, soon, seen, leader=leader))


def settled(
    servers: Sequence[Server], voters: Iterable[ServerId], alive: Collection[ServerId], *, leader: ServerId
) -> frozenset[ServerId]:
    """Return the voters that the steps end at if everybody who is `alive` has caught up and nobody else comes."""
    voting, leading = frozenset(voters), leader
    seen = Sight(frozenset(alive), frozenset(alive))
    for _ in range(4 * (len(servers) + MOST_VOTERS)):
        match next_step(servers, voting, seen, leader=leading):
            case AddVoter(server):
                voting |= {server}
            case RemoveVoter(server):
                voting -= {server}
            case HandOver(server):
                leading = server
            case None:
                break
    return voting


def _best(
    servers: Sequence[Server],
    voting: frozenset[ServerId],
    able: Collection[ServerId],
    seen: Sight,
    *,
    leader: ServerId,
) -> frozenset[ServerId]:
    """Choose among today's voters and those who are able to become one; who votes today comes first."""
    known = {server.id: server for server in servers}

    def rank(member: ServerId) -> tuple[bool, bool, bool, int, ServerId]:
        joined = known[member].joined_at if member in known else 0
        return (member not in voting, member not in seen.alive, member != leader, joined, member)

    members = sorted((voting | (frozenset(able) & known.keys())) - seen.gone, key=rank)
    witnesses = [m for m in members if m in known and known[m].role is ServerRole.WITNESS]
    real = [m for m in members if m not in witnesses][:MOST_VOTERS]
    if not real:
        return voting
    if len(real) % 2:
        return frozenset(real)
    if witnesses:
        return frozenset([*real, witnesses[0]])
    # Two of two is no worse than one of one, and the second may not be left out: it has to know every change.
    return frozenset(real if len(real) == 2 else real[:-1])


def _heir(
    servers: Sequence[Server],
    voting: frozenset[ServerId],
    wanted: frozenset[ServerId],
    seen: Sight,
    *,
    leader: ServerId,
) -> ServerId | None:
    """Return who should lead instead of the leader, None if nobody who is able fits better than the leader.

    Only somebody who fits strictly better is handed the lead, or two that fit badly would hand it to and fro.
    """
    known = {server.id: server for server in servers}

    def fit(member: ServerId) -> int:
        row = known.get(member)
        if row is not None and row.state is ServerState.REMOVED:
            return 4
        real = row is None or row.role is not ServerRole.WITNESS
        if member in wanted:
            return 0 if real else 1
        return 2 if real else 3

    heirs = [v for v in voting & seen.ready if v != leader]
    if leader not in known or not heirs:
        return None
    best = min(heirs, key=lambda v: (fit(v), known[v].joined_at if v in known else 0, v))
    return best if fit(best) < fit(leader) else None
