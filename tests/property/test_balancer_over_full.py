"""A pool that is fuller than what is kept for a loss allows keeps its size through publications and quiet times."""

from collections import Counter
from dataclasses import replace

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from kmgr.balancer.owed import Owed
from kmgr.balancer.place import OVERHEAD_MIB, memory_reserve_mib
from kmgr.balancer.plan import plan
from kmgr.balancer.weaknesses import homeless
from kmgr.grid.envelope import Applied
from kmgr.ids import ServerId
from tests.lab.state import State

T = "tpl-win"


def office(memory_mib: list[int], standing: list[int], size_mib: int, spare: int) -> State:
    """Return servers of these sizes with so many standbys each, `spare` fewer than the template's maximum."""
    state = State()
    servers = [
        state.server(name, memory_mib=memory, memory_free_mib=memory)
        for name, memory in zip("abc", memory_mib, strict=False)
    ]
    for version in ("ver-1", "ver-2"):
        state.version(version, servers)
    state.template("win", standby=sum(standing), maximum=sum(standing) + spare, memory_mib=size_mib)
    for server, count in zip(servers, standing, strict=True):
        for _ in range(count):
            state.desktop(T, server, memory_mib=size_mib)
    return state


@st.composite
def offices(draw: st.DrawFn) -> State:
    memory = draw(st.lists(st.sampled_from([4_000, 6_000, 9_000]), min_size=2, max_size=3))
    size = draw(st.sampled_from([1_000, 1_500, 2_000]))
    return office(memory, [draw(st.integers(0, fits(one, size))) for one in memory], size, draw(st.integers(0, 3)))


def fits(memory_mib: int, size_mib: int) -> int:
    """Return how many desktops of a size a server has room for."""
    vitals = State()
    server = vitals.server("x", memory_mib=memory_mib)
    return (memory_mib - memory_reserve_mib(vitals.vitals[server])) // (size_mib + OVERHEAD_MIB)


class Leader:
    """Plans and carries out as the balancer does."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.owed = Owed()

    def to_rest(self) -> None:
        for _ in range(120):
            decided = plan(replace(self.state.view(), owed=self.owed.now()))
            self.owed.keep(decided.short)
            outcomes = self.state.carry_out(decided.actions)
            for action, outcome in zip(decided.actions, outcomes, strict=True):
                if isinstance(outcome, Applied):
                    self.owed.done(action)
            self.state.make_everything()
            if not decided.actions:
                return
        raise AssertionError("it never came to rest")

    def publish(self, version: str) -> None:
        assert isinstance(self.state.do("template.publish", template=T, version=version), Applied)

    def ready(self) -> Counter[str]:
        """Return how many are ready, by version."""
        return Counter(d.version for d in self.state.view().desktops if d.state == "ready")


@settings(deadline=None)
@given(offices())
@example(office([4_000, 4_000], [3, 0], 1_000, 3))
@example(office([4_000, 4_000], [2, 1], 1_500, 3))
@example(office([9_000, 9_000], [3, 0], 2_000, 0))
def test_a_publication_costs_no_standby_however_little_is_left_for_a_loss(state: State) -> None:
    leader = Leader(state)
    before = leader.ready().total()
    event(f"too full for a loss: {bool(homeless(state.view()))}")
    leader.to_rest()
    assert leader.ready().total() == before, "in quiet times"
    for version in ("ver-2", "ver-1"):
        leader.publish(version)
        leader.to_rest()
        assert leader.ready() == Counter({version: before} if before else {})


def test_what_is_owed_is_taken_once_and_forgotten_when_nothing_is_lacking() -> None:
    full = fits(4_000, 1_000)
    state = office([4_000, 4_000], [full, full], 1_000, 3)
    leader = Leader(state)
    leader.publish("ver-2")
    leader.to_rest()
    assert leader.ready() == Counter({"ver-2": 2 * full})
    assert leader.owed.now() == {}
    # What is given back now is not made anew: nothing made room for it.
    (one, *_) = [d for d in state.view().desktops if d.server == ServerId("srv-a")]
    state.do("desktop.retire", desktop=one.id, why="a test")
    leader.to_rest()
    assert leader.ready().total() == 2 * full - 1


def test_what_made_room_for_nobody_is_forgotten() -> None:
    full = fits(4_000, 1_000)
    state = office([4_000, 4_000], [full, full], 1_000, 3)
    leader = Leader(state)
    leader.publish("ver-2")
    decided = plan(state.view())
    for action, outcome in zip(decided.actions, state.carry_out(decided.actions), strict=True):
        assert isinstance(outcome, Applied)
        leader.owed.done(action)
    assert leader.owed.now() == {T: 1}
    state.do("template.update", template=T, standby=0)
    leader.to_rest()
    assert leader.owed.now() == {}
