"""What is done without a reason against it leaves the grid as able to lose one server as it was before."""

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmgr.balancer.model import View
from kmgr.balancer.redundancy import Drain, Remove, can_lose_one, would_break
from kmgr.grid.membership import settled, spare
from kmgr.grid.model import RUNNING, ServerState
from kmgr.ids import ServerId, VersionId
from tests.lab.state import State

STATES = st.sampled_from(["up", "up", "up", "draining", "lost"])


@st.composite
def grids(draw: st.DrawFn) -> tuple[View, frozenset[ServerId]]:
    """Return a grid and who votes in it."""
    state = State()
    servers = [
        state.server(f"s{n}", draw(STATES), memory_free_mib=draw(st.integers(2_000, 60_000)))
        for n in range(draw(st.integers(1, 6)))
    ]
    members = [*servers, *([state.witness("w", draw(STATES))] if draw(st.booleans()) else [])]
    holders = draw(st.sets(st.sampled_from(servers)))
    state.version("ver-1", sorted(holders))
    state.template("win")
    for _ in range(draw(st.integers(0, 6))):
        where = draw(st.sampled_from(servers))
        state.desktop(
            "tpl-win", where, draw(st.sampled_from(["ready", "in_use"])), memory_mib=draw(st.integers(1, 8)) << 9
        )
    view = state.view()
    up = [s.id for s in view.servers if s.state in RUNNING]
    first = draw(st.sampled_from(members))
    voters = settled(view.servers, [first], [*up, first], leader=first)
    return view, voters


def lost_ones(servers: int, lost: set[int], voters: int) -> tuple[View, frozenset[ServerId]]:
    """Return a grid of so many servers, of which some are lost and the first so many vote."""
    state = State()
    ids = [state.server(f"s{n}", "lost" if n in lost else "up") for n in range(servers)]
    state.version("ver-1", ids)
    state.template("win")
    return state.view(), frozenset(ids[:voters])


@settings(max_examples=150, deadline=None)
@given(grid=grids(), choice=st.integers(0, 6), remove=st.booleans())
# The fourth server takes the place of the first before that goes; with five voters there is no place to take.
@example(grid=lost_ones(4, {1}, 3), choice=0, remove=True)
@example(grid=lost_ones(4, {2}, 3), choice=0, remove=True)
@example(grid=lost_ones(6, {1, 2}, 5), choice=0, remove=True)
def test_no_reason_means_no_loss_of_safety(grid: tuple[View, frozenset[ServerId]], choice: int, remove: bool) -> None:
    view, voters = grid
    chosen = view.servers[choice % len(view.servers)]
    action = Remove(chosen.id) if remove else Drain(chosen.id)
    reasons = would_break(view, voters, action)
    assert len(set(reasons)) == len(reasons)
    if reasons:
        return
    up = {s.id for s in view.servers if s.state in RUNNING}
    if remove:
        left = replace(
            view, servers=tuple(replace(s, state=ServerState.REMOVED) if s is chosen else s for s in view.servers)
        )
        heirs = sorted((voters - {chosen.id}) & up)
        # It goes on voting until the others are a majority without it.
        kept = settled(left.servers, voters, up, leader=heirs[0]) if heirs else voters - {chosen.id}
        if spare(voters, up) >= 0 and chosen.id in voters and kept:
            assert spare(kept, up - {chosen.id}) >= 0 or not up - {chosen.id}, "the majority is never given away"
        still = {s for s in view.holders.get(VersionId("ver-1"), ()) if s != chosen.id}
        assert still or chosen.id not in view.holders.get(VersionId("ver-1"), ()), "no image is lost"
        before = can_lose_one(view, voters)
        leader = next(iter(heirs), None)
        if before.ok and leader is not None:
            after = can_lose_one(
                replace(left, desktops=tuple(d for d in view.desktops if d.server != chosen.id)),
                settled(left.servers, voters - {chosen.id}, up - {chosen.id}, leader=leader),
            )
            assert after.ok, after.sentences


@settings(max_examples=80, deadline=None)
@given(grid=grids(), choice=st.integers(0, 6))
def test_removing_what_is_lost_already_never_needs_force(grid: tuple[View, frozenset[ServerId]], choice: int) -> None:
    view, voters = grid
    lost = [s for s in view.servers if s.state is ServerState.LOST]
    if not lost:
        return
    chosen = lost[choice % len(lost)]
    only = view.holders.get(VersionId("ver-1"), frozenset()) == {chosen.id}
    up = {s.id for s in view.servers if s.state in RUNNING}
    reasons = would_break(view, voters, Remove(chosen.id))
    if spare(voters, up) >= 0 and not only:
        assert reasons == ()
