"""What holds for every plan of the balancer, on invented grids and with the real appliers behind it."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from kmgr.balancer.model import Forget, Place, Plan, Retire, View, Why
from kmgr.balancer.plan import plan
from kmgr.grid.envelope import Applied
from kmgr.grid.model import ServerState
from kmgr.ids import ServerId
from kmgr.provision.lifecycle import LIVING
from kmgr.provision.model import DesktopState
from kmgr.templates.model import Template
from tests.lab.state import State, shuffled

# A busy machine is not a wrong plan.
patiently = settings(deadline=None)

STATES = ("up", "up", "up", "draining", "lost", "removed", "joining")
VERSIONS = ("ver-1", "ver-2")


@st.composite
def grids(draw: st.DrawFn) -> State:
    state = State()
    servers = [state.server(name, draw(st.sampled_from(STATES))) for name in "abcd"[: draw(st.integers(1, 4))]]
    for server in servers:
        room = draw(st.integers(0, 20)) * 500
        vitals = {
            "cpus": draw(st.integers(1, 3)),
            "memory_mib": 20_000,
            "memory_free_mib": draw(st.sampled_from([20_000, room])),
            "disk_free_mib": draw(st.sampled_from([400_000, 400_000, 12_000, 100])),
            "can_run_desktops": draw(st.sampled_from([True, True, True, False])),
        }
        state.hear(server, **vitals)
        if draw(st.integers(0, 9)) == 0:
            state.silence(server)
    for version in VERSIONS:
        state.version(version, draw(st.lists(st.sampled_from(servers), unique=True)))
    for name in ("kde", "win")[: draw(st.integers(1, 2))]:
        maximum = draw(st.integers(0, 8))
        state.template(
            name,
            draw(st.sampled_from(VERSIONS)),
            standby=draw(st.integers(0, maximum)),
            maximum=maximum,
            memory_mib=draw(st.sampled_from([500, 2000, 6000])),
            enabled=draw(st.sampled_from([1, 1, 1, 0])),
            broken_cause=draw(st.sampled_from(["", "", "", "the guest does not boot"])),
        )
    for _ in range(draw(st.integers(0, 12))):
        state.desktop(
            draw(st.sampled_from(["tpl-kde", "tpl-win", "tpl-gone"])),
            draw(st.sampled_from(servers)),
            draw(st.sampled_from(list(DesktopState))).value,
            version=draw(st.sampled_from(VERSIONS)),
            memory_mib=draw(st.sampled_from([500, 2000])),
        )
    for user in ("eva", "finn", "gina")[: draw(st.sampled_from([0, 0, 1, 3]))]:
        state.do("desktop.ask", user=user, template=draw(st.sampled_from(["tpl-kde", "tpl-win"])))
    return state


def living(view: View, template: str) -> int:
    return sum(d.template == template and d.state in LIVING for d in view.desktops)


def served(view: View, template: str) -> int:
    """Count the standbys that a user could claim."""
    up = {s.id for s in view.servers if s.state is ServerState.UP}
    return sum(d.template == template and d.state is DesktopState.READY and d.server in up for d in view.desktops)


@patiently
@given(grids())
def test_every_change_of_a_plan_is_accepted_when_nothing_happened_between(state: State) -> None:
    outcomes = state.carry_out(plan(state.view()).actions)
    assert [outcome for outcome in outcomes if not isinstance(outcome, Applied)] == []


@patiently
@given(grids(), st.booleans())
def test_planning_again_after_a_plan_was_carried_out_plans_nothing_more(state: State, calm: bool) -> None:
    state.carry_out(plan(state.view(), calm=calm).actions)
    assert plan(state.view(), calm=calm).actions == ()


@patiently
@given(grids(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(state: State, chance: object) -> None:
    view = state.view()
    assert plan(shuffled(view, chance)) == plan(view)


@patiently
@given(grids())
def test_nothing_is_placed_on_a_server_that_is_not_up_heard_and_able(state: State) -> None:
    view = state.view()
    servers = {server.id: server for server in view.servers}
    for action in plan(view).actions:
        if isinstance(action, Place):
            assert servers[action.server].state is ServerState.UP
            assert view.vitals[action.server].can_run_desktops


@patiently
@given(grids())
def test_the_maximum_is_never_passed_by_placing(state: State) -> None:
    before = state.view()
    decided = plan(before)
    state.carry_out(decided.actions)
    after = state.view()
    placed = Counter(action.template for action in decided.actions if isinstance(action, Place))
    for template in before.templates:
        assert living(after, template.id) <= max(template.maximum, living(before, template.id))
        if placed[template.id]:
            assert living(after, template.id) <= template.maximum


@patiently
@given(grids())
def test_memory_is_never_promised_twice(state: State) -> None:
    view = state.view()
    decided = plan(view)
    memory = {template.id: template.memory_mib for template in view.templates}
    for server in {action.server for action in decided.actions if isinstance(action, Place)}:
        new = sum(memory[a.template] for a in decided.actions if isinstance(a, Place) and a.server == server)
        old = sum(d.memory_mib for d in view.desktops if d.server == server)
        assert old + new < view.vitals[server].memory_mib
        assert new < view.vitals[server].memory_free_mib


@patiently
@given(grids())
def test_a_former_standby_goes_only_for_a_ready_fresh_one_or_to_make_room(state: State) -> None:
    view = state.view()
    decided = plan(view)
    going = {action.desktop.id: action.why for action in decided.actions if isinstance(action, Retire)}
    up = {s.id for s in view.servers if s.state in (ServerState.UP, ServerState.JOINING)}
    for template in view.templates:
        own = [d for d in view.desktops if d.template == template.id and d.state is DesktopState.READY]
        mine = [d for d in own if d.server in up]
        target = target_of(view, template)
        after = [d for d in mine if d.id not in going]
        made_room = [d for d in mine if going.get(d.id) is Why.MAKES_ROOM]
        if template.enabled:
            assert len(after) + len(made_room) >= min(target, len(mine))
            assert not made_room or len(made_room) <= max(1, target // 4)


def target_of(view: View, template: Template) -> int:
    """Return how many should stand by or be on their way: standbys and one for each who asked, under the maximum."""
    asked = view.asks.get(template.id, 0)
    return max(0, min(template.standby + asked, template.maximum - living_in_use(view, template.id)))


def living_in_use(view: View, template: str) -> int:
    gone = {s.id for s in view.servers if s.state in (ServerState.LOST, ServerState.REMOVED)}
    return sum(
        d.template == template and d.state is DesktopState.IN_USE and d.server not in gone for d in view.desktops
    )


@patiently
@given(grids())
def test_a_desktop_in_use_is_left_alone_unless_its_server_is_gone(state: State) -> None:
    view = state.view()
    states = {server.id: server.state for server in view.servers}
    for action in plan(view).actions:
        if isinstance(action, Retire) and action.desktop.state is DesktopState.IN_USE:
            assert states[action.desktop.server] is ServerState.LOST


@patiently
@given(grids())
def test_while_calm_is_kept_nothing_leaves_because_of_a_loss(state: State) -> None:
    whys = {action.why for action in plan(state.view(), calm=True).actions if isinstance(action, Retire)}
    assert Why.LOST not in whys


@patiently
@given(grids(), st.lists(st.integers(0, 30), max_size=5))
def test_whatever_cuts_it_off_it_ends_with_full_pools_or_a_reason(state: State, cuts: list[int]) -> None:
    for cut in cuts:
        state.carry_out(plan(state.view()).actions[:cut])
        state.make_everything()
    for _ in range(60):
        decided = plan(state.view())
        state.carry_out(decided.actions)
        state.make_everything()
        if not decided.actions:
            break
    else:
        raise AssertionError(f"it never came to rest; the last plan was {decided}")
    check_full(state.view(), decided)


def check_full(view: View, decided: Plan) -> None:
    short = {shortage.template: shortage for shortage in decided.short}
    for template in view.templates:
        if not template.enabled:
            assert not served(view, template.id)
            continue
        target = target_of(view, template)
        waiting = [
            d
            for d in view.desktops
            if d.template == template.id
            and d.version == template.version
            and d.state in (DesktopState.PLACED, DesktopState.BUILDING, DesktopState.READY)
        ]
        assert len(waiting) <= max(target, 0)
        if not template.broken_cause and template.id not in short:
            assert len(waiting) == target
        if template.id in short:
            assert short[template.id].missing > 0
            assert short[template.id].reason


@patiently
@given(grids(), st.sampled_from(["up", "lost", "draining"]), st.sampled_from([ServerId(f"srv-{x}") for x in "abcd"]))
def test_a_plan_that_comes_too_late_takes_no_desktop_from_anybody(state: State, then: str, server: ServerId) -> None:
    decided = plan(state.view())
    state.become(server, then)
    for template in state.view().templates:
        state.do("desktop.claim", user="berta", template=template.id)
    claimed = {d.id for d in state.view().desktops if d.user == "berta"}
    believed = {a.desktop.id for a in decided.actions if isinstance(a, Retire)}
    state.carry_out(decided.actions)
    kept = {d.id for d in state.view().desktops if d.user == "berta" and d.state is DesktopState.IN_USE}
    assert claimed & believed <= kept


@patiently
@given(st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=4), min_size=1, max_size=2))
def test_in_quiet_times_pools_become_even_and_no_standby_is_missed_meanwhile(pools: list[list[int]]) -> None:
    state = State()
    servers = [state.server(name) for name in "abcd"[: max(len(pool) for pool in pools)]]
    state.version("ver-1", servers)
    for name, pool in zip(("kde", "win"), pools, strict=False):
        made = state.template(name, standby=sum(pool), maximum=sum(pool) + 1)
        for server, count in zip(servers, pool, strict=False):
            for _ in range(count):
                state.desktop(made, server)
    for _ in range(100):
        decided = plan(state.view())
        state.carry_out(decided.actions)
        assert plan(state.view()).actions == ()
        for template in state.view().templates:
            assert served(state.view(), template.id) >= template.standby
        state.make_everything()
        if not decided.actions:
            break
    for template in state.view().templates:
        homes = Counter(d.server for d in state.view().desktops if d.template == template.id)
        assert max(homes.values(), default=0) - min(homes[server] for server in servers) <= 1


def test_forget_follows_a_removed_server() -> None:
    state = State()
    gone = state.server("a", "removed")
    state.server("b")
    state.version("ver-1", [])
    desktop = state.desktop(state.template("win"), gone, "in_use")
    assert Forget(desktop) in plan(state.view()).actions
