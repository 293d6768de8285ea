"""What holds for every live move that the balancer plans, on invented grids with the real appliers behind it."""

from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmgr.balancer.model import Relocate, Why
from kmgr.balancer.plan import plan
from kmgr.balancer.relocate import ALL_AT_ONCE, EACH_AT_ONCE
from kmgr.balancer.weaknesses import homeless
from kmgr.grid.envelope import Applied
from kmgr.ids import ServerId
from tests.lab.state import State

patiently = settings(deadline=None)


@st.composite
def busy_grids(draw: st.DrawFn) -> State:
    """Servers of several sizes with people at work, some of them draining."""
    state = State()
    servers = []
    for name in "abcde"[: draw(st.integers(2, 5))]:
        memory = draw(st.sampled_from([6_000, 12_000, 20_000]))
        vitals = {"memory_mib": memory, "memory_free_mib": memory - 500}
        server = state.server(name, draw(st.sampled_from(["up", "up", "up", "draining", "lost"])), **vitals)
        servers.append(server)
    state.version("ver-1", draw(st.lists(st.sampled_from(servers), unique=True, min_size=1)))
    state.template("win", standby=0, maximum=100)
    for number in range(draw(st.integers(0, 14))):
        server = draw(st.sampled_from(servers))
        state.desktop("tpl-win", server, "in_use", user=f"u{number}", memory_mib=draw(st.sampled_from([500, 2_000])))
    return state


def three_servers(*, small_on_a: int, large_on_b: int) -> State:
    """Return a grid of three small servers: small desktops on one, large ones on another, the third is empty."""
    state = State()
    servers = [state.server(name, memory_mib=6_000, memory_free_mib=5_500) for name in "abc"]
    state.version("ver-1", servers)
    state.template("win", standby=0, maximum=100)
    for server, count, memory in ((servers[0], small_on_a, 500), (servers[1], large_on_b, 2_000)):
        for number in range(count):
            state.desktop("tpl-win", server, "in_use", user=f"{server}-{number}", memory_mib=memory)
    return state


def moves(state: State) -> list[Relocate]:
    return [action for action in plan(state.view()).actions if isinstance(action, Relocate)]


@patiently
@given(busy_grids())
def test_moves_are_accepted_few_at_once_and_fit(state: State) -> None:
    view, planned = state.view(), moves(state)
    assert len(planned) <= ALL_AT_ONCE
    for counted in (Counter(m.target for m in planned), Counter(m.desktop.server for m in planned)):
        assert max(counted.values(), default=0) <= EACH_AT_ONCE
    for server, vitals in view.vitals.items():
        taken = sum(d.memory_mib for d in view.desktops if d.server == server)
        coming = sum(m.desktop.memory_mib for m in planned if m.target == server)
        assert not coming or taken + coming < vitals.memory_mib
    assert all(isinstance(outcome, Applied) for outcome in state.carry_out(planned))
    assert moves(state) == []


@patiently
@given(busy_grids())
# Each of two moves is well by itself; both together take a home away.
@example(three_servers(small_on_a=3, large_on_b=4))
def test_balance_comes_to_rest_and_never_takes_a_home_away(state: State) -> None:
    for _ in range(60):
        planned = moves(state)
        if not planned:
            break
        before = sum(homeless(state.view()).values())
        state.carry_out(planned)
        state.make_everything()
        if all(move.why is Why.BALANCE for move in planned):
            assert sum(homeless(state.view()).values()) <= before
    else:
        raise AssertionError("desktops were moved again and again")


@patiently
@given(busy_grids())
def test_a_drained_server_keeps_only_what_nobody_else_can_take(state: State) -> None:
    for _ in range(40):
        state.carry_out(plan(state.view()).actions)
        state.make_everything()
    view = state.view()
    draining = {s.id for s in view.servers if s.state == "draining"}
    for desktop in view.desktops:
        if desktop.server in draining:
            fits = [s for s in view.servers if s.state == "up" and _would_take(state, s.id, desktop.memory_mib)]
            assert not fits, f"{desktop.id} stays although {fits[0].name} has room"


def _would_take(state: State, server: ServerId, memory_mib: int) -> bool:
    view = state.view()
    vitals = view.vitals[server]
    taken = sum(d.memory_mib + 64 for d in view.desktops if d.server == server)
    spare = min(vitals.memory_mib - taken, vitals.memory_free_mib) - max(256, vitals.memory_mib // 16)
    held = server in view.holders.get(view.templates[0].version, frozenset())
    return held and spare >= memory_mib + 64
