"""Placing keeps the memory that the loss of a server would need, and only what stands by has to stop for it."""

from collections import Counter
from collections.abc import Mapping

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from kmgr.balancer.model import Place, Relocate
from kmgr.balancer.place import OVERHEAD_MIB, memory_reserve_mib, rooms
from kmgr.balancer.plan import KEPT, plan
from kmgr.balancer.reserve import Reserve, without_home
from kmgr.balancer.weaknesses import homeless
from kmgr.grid.envelope import Applied
from kmgr.ids import ServerId
from kmgr.templates.model import Template
from tests.lab.state import State

patiently = settings(deadline=None)
SIZES = (500, 1_000, 2_000, 5_000)


@st.composite
def offices(draw: st.DrawFn) -> State:
    """Servers of several sizes with people at work, and templates that want more than there is room for."""
    state = State()
    servers = []
    for name in "abcd"[: draw(st.integers(2, 4))]:
        memory = draw(st.sampled_from([6_000, 12_000, 20_000, 40_000]))
        servers.append(state.server(name, memory_mib=memory, memory_free_mib=memory - 500))
    state.version("ver-1", servers)
    for name in ("kde", "win")[: draw(st.integers(1, 2))]:
        size = draw(st.sampled_from(SIZES))
        state.template(name, standby=draw(st.integers(0, 30)), maximum=60, memory_mib=size)
        for number in range(draw(st.integers(0, 8))):
            where = draw(st.sampled_from(servers))
            stands = draw(st.sampled_from(["in_use", "in_use", "ready"]))
            state.desktop(f"tpl-{name}", where, stands, user=f"{name}-{number}", memory_mib=size)
    return state


def at_the_edge(*sizes: int) -> State:
    """Return two equal servers, each as full as the other one could bear."""
    state = State()
    servers = [state.server(name, memory_mib=12_000, memory_free_mib=11_500) for name in "ab"]
    state.version("ver-1", servers)
    state.template("win", standby=30, maximum=60, memory_mib=500)
    for server in servers:
        for size in sizes:
            state.desktop("tpl-win", server, "in_use", memory_mib=size)
    return state


def to_rest(state: State) -> None:
    for _ in range(60):
        decided = plan(state.view())
        state.carry_out(decided.actions)
        state.make_everything()
        if not decided.actions:
            return
    raise AssertionError("it never came to rest")


@patiently
@given(offices())
@example(at_the_edge())
@example(at_the_edge(2_000, 2_000))
@example(at_the_edge(5_000))
def test_no_standby_takes_what_a_loss_would_need(state: State) -> None:
    if homeless(state.view()):
        event("too full from the beginning")
        return
    for _ in range(60):
        # Who moves for balance takes room on both servers for that moment, as wanted.
        decided = [action for action in plan(state.view()).actions if not isinstance(action, Relocate)]
        state.carry_out(decided)
        assert homeless(state.view()) == {}
        state.make_everything()
        assert homeless(state.view()) == {}
        if not decided:
            break
    stopped = [short for short in plan(state.view()).short if short.reason == KEPT]
    event(f"stopped: {bool(stopped)}")
    for short in stopped:
        (template,) = [t for t in state.view().templates if t.id == short.template]
        for server in state.view().servers:
            assert worse(state, server.id, template), f"{server.name} could take one more"


def worse(state: State, server: ServerId, template: Template) -> bool:
    """Tell whether one more there would leave somebody without a home, or has no room anyway."""
    body = {"desktop": "dsk-probe", "template": template.id, "version": "ver-1", "server": server}
    assert isinstance(state.do("desktop.place", **body), Applied)
    try:
        view = state.view()
        vitals = view.vitals[server]
        taken = sum(d.memory_mib + OVERHEAD_MIB for d in view.desktops if d.server == server)
        return bool(homeless(view)) or taken > vitals.memory_mib - max(500, memory_reserve_mib(vitals))
    finally:
        state.db.execute("delete from desktops where id = 'dsk-probe'")


@patiently
@given(offices(), st.integers(1, 3))
def test_whoever_asks_gets_one_while_there_is_any_memory(state: State, people: int) -> None:
    to_rest(state)
    view = state.view()
    ready = Counter(d.template for d in view.desktops if d.state == "ready")
    for template in view.templates:
        if not ready[template.id]:
            for number in range(people):
                state.do("desktop.ask", user=f"new-{number}", template=template.id)
    placed = Counter(a.template for a in plan(state.view()).actions if isinstance(a, Place))
    reasons = {short.template: short.reason for short in plan(state.view()).short}
    for template in view.templates:
        if not ready[template.id] and placed[template.id] < people:
            assert reasons[template.id] != KEPT, "only memory that is not there may be in the way"


@patiently
@given(offices(), st.sampled_from(["lost", "draining"]))
def test_during_a_loss_what_was_kept_is_used(state: State, stands: str) -> None:
    to_rest(state)
    state.become(ServerId("srv-a"), stands)
    for _ in range(60):
        decided = plan(state.view())
        assert all(short.reason != KEPT for short in decided.short)
        state.carry_out(decided.actions)
        state.make_everything()


@patiently
@given(offices(), st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(SIZES)), max_size=20))
def test_the_quick_answer_is_the_one_of_a_close_look(state: State, more: list[tuple[str, int]]) -> None:
    view = state.view()
    reserve = Reserve(view, rooms(view))
    gaps = {room.server: room.memory_mib for room in rooms(view)}
    own: dict[ServerId, Counter[int]] = {s: Counter() for s in gaps}
    for desktop in view.desktops:
        own[desktop.server][desktop.memory_mib + OVERHEAD_MIB] += 1
    for name, size in more:
        server = ServerId(f"srv-{name}")
        if server not in gaps:
            continue
        before = lost_homes(own, gaps)
        gaps[server] -= size + OVERHEAD_MIB
        own[server][size + OVERHEAD_MIB] += 1
        after = lost_homes(own, gaps)
        if not any(after[s] > before[s] for s in after):
            assert reserve.allows(server, size)
        elif not any(before.values()):
            assert not reserve.allows(server, size)
        reserve.book(server, size)


def lost_homes(own: Mapping[ServerId, Counter[int]], gaps: Mapping[ServerId, int]) -> dict[ServerId, int]:
    return {lost: without_home(own[lost], [g for s, g in gaps.items() if s != lost]) for lost in own}
