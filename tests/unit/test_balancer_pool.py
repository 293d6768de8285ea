"""How many desktops stand by, and which of them go."""

from collections import Counter
from dataclasses import replace

import pytest

from kmgr.balancer.model import Place, Plan, Retire, Why
from kmgr.balancer.patience import Patience
from kmgr.balancer.plan import plan
from kmgr.grid.envelope import Applied
from kmgr.ids import AccountName, ServerId, TemplateId
from kmgr.provision.model import Ask
from tests.lab.state import State

A, B, C = (ServerId(f"srv-{letter}") for letter in "abc")


@pytest.fixture
def state() -> State:
    state = State()
    for name in "abc":
        state.server(name)
    state.version("ver-1", [A, B, C])
    state.version("ver-2", [A, B, C])
    return state


def retired(decided: Plan) -> dict[str, Why]:
    return {action.desktop.id: action.why for action in decided.actions if isinstance(action, Retire)}


def placed(decided: Plan) -> int:
    return sum(isinstance(action, Place) for action in decided.actions)


def test_desktops_in_use_do_not_count_as_standbys(state: State) -> None:
    template = state.template("win", standby=2)
    state.desktop(template, A, "in_use")
    assert placed(plan(state.view())) == 2


def test_whoever_waits_is_made_a_desktop_beyond_the_standbys(state: State) -> None:
    none = state.template("kde", standby=0)
    some = state.template("win", standby=2)
    state.desktop(some, A, "building")
    for template, user in ((none, "anna"), (some, "anna"), (some, "berta")):
        state.do("desktop.ask", user=user, template=template)
    decided = plan(state.view())
    wanted = Counter(action.template for action in decided.actions if isinstance(action, Place))
    assert wanted == {none: 1, some: 3}
    state.carry_out(decided.actions)
    state.make_everything()
    for template in (none, some):
        assert isinstance(state.do("desktop.claim", user="anna", template=template), Applied)
    assert plan(state.view()).actions == ()
    assert state.states(none) == ["in_use"]


def test_the_maximum_holds_however_many_wait(state: State) -> None:
    template = state.template("win", standby=1, maximum=3)
    state.desktop(template, A, "in_use", user="zoe")
    for user in ("anna", "berta", "carl", "dora"):
        state.do("desktop.ask", user=user, template=template)
    assert placed(plan(state.view())) == 2


def test_what_nobody_waits_for_any_more_goes(state: State) -> None:
    template = state.template("win", standby=0)
    state.do("desktop.ask", user="anna", template=template)
    made = state.desktop(template, A)
    assert plan(state.view()).actions == ()
    state.do("desktop.unask", user="anna", template=template, at=state.asked_at("anna"))
    assert retired(plan(state.view())) == {made: Why.TOO_MANY}


def test_patience_ends_when_a_request_is_not_repeated() -> None:
    anna = Ask(TemplateId("tpl-win"), AccountName("anna"), 0, 0)
    again = replace(anna, at=60_000)
    patience = Patience()
    assert patience.over([anna], 1000.0) == []
    assert patience.over([anna], 1179.9) == []
    assert patience.over([again], 1180.0) == []
    assert patience.over([again], 1359.9) == []
    assert patience.over([again], 1360.0) == [again]
    assert patience.over([], 1361.0) == []
    assert patience.over([again], 1362.0) == []


def test_desktops_on_their_way_count(state: State) -> None:
    template = state.template("win", standby=3)
    state.desktop(template, A, "placed")
    state.desktop(template, B, "building")
    state.desktop(template, B, "broken")
    assert placed(plan(state.view())) == 1


def test_in_use_and_standby_together_stay_within_the_maximum(state: State) -> None:
    template = state.template("win", standby=4, maximum=5)
    for user in ("anna", "berta", "carl"):
        state.desktop(template, A, "in_use", user=user)
    decided = plan(state.view())
    assert placed(decided) == 2
    assert decided.short == ()


def test_a_lowered_standby_drops_those_not_ready_first_then_from_the_fullest_server(state: State) -> None:
    template = state.template("win", standby=2)
    state.desktop(template, A)
    state.desktop(template, B)
    crowded = state.desktop(template, B)
    coming = state.desktop(template, C, "building")
    assert retired(plan(state.view())) == {coming: Why.TOO_MANY, crowded: Why.TOO_MANY}


def test_a_former_version_serves_until_the_newer_one_is_ready(state: State) -> None:
    template = state.template("win", "ver-2", standby=2)
    former = [state.desktop(template, server) for server in (A, B)]
    decided = plan(state.view())
    assert retired(decided) == {}
    assert placed(decided) == 2
    state.desktop(template, A, version="ver-2")
    state.desktop(template, B, "building", version="ver-2")
    assert retired(plan(state.view())) == {former[1]: Why.REPLACED}


def test_a_former_desktop_that_is_merely_placed_goes_at_once(state: State) -> None:
    template = state.template("win", "ver-2", standby=1)
    former = state.desktop(template, A, "placed")
    decided = plan(state.view())
    assert retired(decided) == {former: Why.NOT_STARTED}
    assert placed(decided) == 1


def test_at_the_maximum_a_quarter_of_the_pool_makes_room_at_once(state: State) -> None:
    template = state.template("win", "ver-2", standby=8, maximum=8)
    for server in (A, A, A, B, B, B, C, C):
        state.desktop(template, server)
    decided = plan(state.view())
    assert list(retired(decided).values()) == [Why.MAKES_ROOM] * 2
    assert placed(decided) == 2
    state.carry_out(decided.actions)
    assert plan(state.view()).actions == ()


def test_a_template_that_is_not_refilled_keeps_its_former_version(state: State) -> None:
    template = state.template("win", "ver-2", standby=1, maximum=1, broken_cause="it does not boot")
    state.desktop(template, A)
    decided = plan(state.view())
    assert decided.actions == ()


def test_the_newest_three_broken_desktops_stay_to_be_looked_at(state: State) -> None:
    template = state.template("win", standby=0)
    broken = [state.desktop(template, A, "broken") for _ in range(5)]
    assert retired(plan(state.view())) == dict.fromkeys(broken[:2], Why.OLD_BREAKAGE)


def test_what_nobody_uses_goes_with_its_template(state: State) -> None:
    off = state.template("win", enabled=0)
    waiting = [state.desktop(off, A, word) for word in ("placed", "building", "ready")]
    orphan = state.desktop("tpl-gone", A)
    state.desktop(off, A, "in_use")
    state.desktop("tpl-gone", A, "in_use")
    expected = {**dict.fromkeys(waiting, Why.SWITCHED_OFF), orphan: Why.NO_TEMPLATE}
    assert retired(plan(state.view())) == expected


def test_a_desktop_stuck_at_a_sick_hypervisor_gives_way_to_one_elsewhere(state: State) -> None:
    template = state.template("win", standby=2, maximum=2)
    stuck = state.desktop(template, A, "building")
    state.desktop(template, B)
    state.hear(A, can_run_desktops=False)
    decided = plan(state.view())
    assert retired(decided) == {stuck: Why.STUCK}
    assert placed(decided) == 1
    for server in (B, C):
        state.hear(server, can_run_desktops=False)
    assert plan(state.view()).actions == ()


def test_standbys_that_boot_again_are_coming_while_their_servers_last_word_was_that_it_cannot(state: State) -> None:
    template = state.template("win", standby=2)
    for _ in range(2):
        desktop = state.desktop(template, A)
        state.do("desktop.building", desktop=desktop, generation=1, server=A)
    state.hear(A, can_run_desktops=False)  # as it said when its daemon had just started
    assert state.states(template) == ["building", "building"]
    assert plan(state.view()).actions == ()
    state.hear(A)
    assert plan(state.view()).actions == ()


def test_everything_leaves_a_lost_server_and_what_nobody_uses_a_draining_one(state: State) -> None:
    template = state.template("win", standby=0)
    lost = [state.desktop(template, A, word) for word in ("placed", "ready", "in_use", "broken")]
    state.desktop(template, A, "retired")
    idle = [state.desktop(template, B, word) for word in ("building", "ready", "broken")]
    state.desktop(template, B, "in_use", user="berta")
    state.become(A, "lost")
    state.become(B, "draining")
    expected = {**dict.fromkeys(lost, Why.LOST), **dict.fromkeys(idle, Why.DRAINING)}
    assert retired(plan(state.view())) == expected


def test_in_quiet_times_one_standby_moves_to_a_server_that_has_two_fewer(state: State) -> None:
    template = state.template("win", standby=3)
    standbys = [state.desktop(template, A) for _ in range(3)]
    decided = plan(state.view())
    assert [action.server for action in decided.actions if isinstance(action, Place)] == [B]
    assert retired(decided) == {}
    assert decided.short == ()
    state.carry_out(decided.actions)
    assert plan(state.view()).actions == ()
    state.make_everything()
    assert retired(plan(state.view())) == {standbys[2]: Why.TOO_MANY}


def test_nothing_moves_for_a_difference_of_one_or_where_it_could_not_be_made(state: State) -> None:
    template = state.template("win", standby=3, maximum=4)
    for server in (A, A, B):
        state.desktop(template, server)
    state.become(C, "draining")
    assert plan(state.view()).actions == ()
    state.become(C, "up")
    assert placed(plan(state.view())) == 1
    assert plan(state.view(), calm=True).actions == ()
    state.hear(C, memory_free_mib=0)
    assert plan(state.view()).actions == ()


def test_at_the_maximum_the_fuller_server_gives_one_up_first(state: State) -> None:
    template = state.template("win", standby=3, maximum=4)
    standbys = [state.desktop(template, server) for server in (A, A, B)]
    state.desktop(template, A, "in_use")
    assert plan(state.view(), calm=True).actions == ()
    decided = plan(state.view())
    assert retired(decided) == {standbys[1]: Why.UNEVEN}
    assert placed(decided) == 0
    state.carry_out(decided.actions)
    decided = plan(state.view())
    assert [action.server for action in decided.actions if isinstance(action, Place)] == [C]
    state.carry_out(decided.actions)
    state.make_everything()
    assert plan(state.view()).actions == ()


def test_nothing_moves_of_a_template_while_something_else_of_it_is_going_on(state: State) -> None:
    template = state.template("win", standby=3)
    for _ in range(3):
        state.desktop(template, A)
    going = state.desktop(template, A, "retired")
    assert plan(state.view()).actions == ()
    state.do("desktop.removed", desktop=going, generation=1, server=A)
    assert placed(plan(state.view())) == 1
    other = state.template("kde", standby=1)
    decided = plan(state.view())
    assert [action.template for action in decided.actions if isinstance(action, Place)] == [other, template]
    state.carry_out(decided.actions)
    assert plan(state.view()).actions == ()


def test_where_memory_is_full_one_former_desktop_goes_and_the_next_waits_for_it(state: State) -> None:
    template = state.template("win", "ver-2", standby=3)
    former = [state.desktop(template, A) for _ in range(3)]
    for server in (B, C):
        state.hear(server, can_run_desktops=False)
    state.hear(A, memory_mib=4000)
    decided = plan(state.view())
    assert retired(decided) == {former[2]: Why.MAKES_ROOM}
    assert placed(decided) == 0
    state.carry_out(decided.actions)
    assert plan(state.view()).actions == ()
    state.make_everything()
    assert placed(plan(state.view())) == 1


def test_a_desktop_that_waits_for_the_image_moves_as_soon_as_a_holder_has_room(state: State) -> None:
    state.version("ver-3", [A])
    state.template("win", "ver-3", standby=2, maximum=2)
    state.hear(A, memory_free_mib=0)
    state.carry_out(plan(state.view()).actions)
    assert {d.server for d in state.view().desktops} == {B, C}
    assert plan(state.view()).actions == ()
    assert "a has too little memory left" in plan(state.view()).short[0].reason
    state.hold("ver-3", C)
    state.hear(C, memory_free_mib=0)
    state.hear(A)
    decided = plan(state.view())
    assert [action.server for action in decided.actions if isinstance(action, Place)] == [A]
    assert list(retired(decided).values()) == [Why.STUCK]
    state.carry_out(decided.actions)
    assert {d.server for d in state.view().desktops if d.state == "placed"} == {A, C}


def test_nothing_moves_to_a_server_that_lacks_the_image(state: State) -> None:
    state.version("ver-3", [A])
    template = state.template("win", "ver-3", standby=3)
    for _ in range(3):
        state.desktop(template, A, version="ver-3")
    state.hear(A, memory_free_mib=0)
    assert plan(state.view()).actions == ()


def test_under_a_lowered_maximum_what_is_not_ready_gives_way_to_what_is(state: State) -> None:
    template = state.template("win", "ver-2", standby=2, maximum=2)
    for server in (A, B):
        state.desktop(template, server)
    coming = state.desktop(template, C, "building", version="ver-2")
    assert retired(plan(state.view())) == {coming: Why.ABOVE_MAXIMUM}
