"""What a server that is cut off adds to its own standbys: its share, on itself, and never more than it may."""

from typing import Any

from kmgr.balancer.alone import plan_alone
from kmgr.balancer.model import Place
from kmgr.grid.model import ServerRole
from kmgr.ids import ServerId
from tests.lab.state import State

A, B = ServerId("srv-a"), ServerId("srv-b")


def grid(*names: str, **template: Any) -> State:
    state = State()
    servers = [state.server(name) for name in names]
    state.version("ver-1", servers)
    state.template("kde", **template)
    return state


def placed(state: State) -> int:
    decided = plan_alone(state.view(), A)
    assert all(isinstance(action, Place) and action.server == A for action in decided.actions)
    return len(decided.actions)


def test_its_share_of_the_standbys_rounded_up_and_at_least_one() -> None:
    assert placed(grid("a", "b", standby=2)) == 1
    assert placed(grid("a", "b", standby=3)) == 2
    assert placed(grid("a", "b", "c", standby=1)) == 1
    assert placed(grid("a", "b", standby=0)) == 0


def test_what_waits_already_counts_and_what_waits_elsewhere_does_not() -> None:
    state = grid("a", "b", standby=4)
    state.desktop("tpl-kde", A)
    state.desktop("tpl-kde", A, "building")
    for _ in range(4):
        state.desktop("tpl-kde", B)
    assert placed(state) == 0
    state.desktop("tpl-kde", A, "in_use")
    assert placed(state) == 0


def test_never_more_than_others_leave_of_the_maximum_or_its_share() -> None:
    state = grid("a", "b", standby=4, maximum=6)
    for _ in range(6):
        state.desktop("tpl-kde", B, "in_use")
    for _ in range(2):
        state.desktop("tpl-kde", A, "in_use")
    assert placed(state) == 1
    state.desktop("tpl-kde", A, "in_use")
    assert placed(state) == 0


def test_nothing_is_removed_and_nobody_else_is_given_anything() -> None:
    state = grid("a", "b", "c", standby=1)
    for _ in range(5):
        state.desktop("tpl-kde", A)
    state.become(B, "lost")
    state.desktop("tpl-kde", B, "in_use")
    assert plan_alone(state.view(), A).actions == ()


def test_no_room_no_image_no_hypervisor_no_desktop() -> None:
    state = grid("a", "b", standby=2)
    state.hear(A, can_run_desktops=False)
    assert placed(state) == 0
    state.hear(A, memory_free_mib=300)
    assert placed(state) == 0
    state.hear(A)
    state.db.execute("delete from holdings where server = 'srv-a'")
    decided = plan_alone(state.view(), A)
    assert decided.actions == ()
    assert [short.missing for short in decided.short] == [1]


def test_a_witness_has_no_share() -> None:
    state = grid("a", "b", "w", standby=4)
    state.db.execute("update servers set role = ? where id = 'srv-w'", [ServerRole.WITNESS])
    assert placed(state) == 2
