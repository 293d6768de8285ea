"""A canary in the plan: its desktops beside the others, nothing of theirs touched; what is withdrawn goes at once."""

import pytest

from kmgr.balancer.model import Place, Retire, Why
from kmgr.balancer.plan import plan
from kmgr.grid.envelope import Applied
from kmgr.ids import ServerId, VersionId
from kmgr.provision.uses import uses
from kmgr.replica.collect import needed
from tests.lab.state import State

A, B = ServerId("srv-a"), ServerId("srv-b")


@pytest.fixture
def state() -> State:
    state = State()
    for name in "ab":
        state.server(name)
    state.version("ver-1", [A, B])
    state.version("ver-2", [A, B])
    return state


def settle(state: State) -> int:
    """Plan and carry out until nothing is left to do; return the fewest desktops of ver-1 that were ready."""
    fewest = 99
    for _ in range(12):
        actions = plan(state.view()).actions
        if not actions:
            return fewest
        state.carry_out(actions)
        state.make_everything()
        fewest = min(fewest, of(state, "ver-1"))
    raise AssertionError("it never ends")


def of(state: State, version: str, stands: str = "ready") -> int:
    return sum(d.version == version and d.state == stands for d in state.view().desktops)


def test_a_canary_has_its_desktops_beside_those_that_stand_by(state: State) -> None:
    template = state.template("win", standby=3)
    settle(state)
    state.do("template.publish", template=template, version="ver-2", canary=2)
    assert settle(state) == 3
    assert (of(state, "ver-1"), of(state, "ver-2")) == (3, 2)


def test_after_it_passed_the_others_are_replaced_as_by_any_publication(state: State) -> None:
    template = state.template("win", standby=3)
    settle(state)
    state.do("template.publish", template=template, version="ver-2", canary=1)
    settle(state)
    state.do("template.canary_passed", template=template, version="ver-2")
    settle(state)
    assert (of(state, "ver-1"), of(state, "ver-2")) == (0, 3)


def test_at_the_maximum_a_few_standbys_make_way_and_the_rest_stay(state: State) -> None:
    template = state.template("win", standby=4, maximum=4)
    settle(state)
    state.do("template.publish", template=template, version="ver-2", canary=1)
    assert settle(state) == 3
    assert (of(state, "ver-1"), of(state, "ver-2")) == (3, 1)


def test_where_everything_is_in_use_the_canary_waits_for_room(state: State) -> None:
    template = state.template("win", standby=1, maximum=2)
    for server in (A, B):
        state.desktop(template, server, "in_use")
    state.do("template.publish", template=template, version="ver-2", canary=1)
    decided = plan(state.view())
    assert not any(isinstance(action, Retire) for action in decided.actions)
    state.carry_out(decided.actions)
    assert (of(state, "ver-1", "in_use"), of(state, "ver-2")) == (2, 0)


def test_a_desktop_of_a_canary_that_failed_is_not_made_again(state: State) -> None:
    template = state.template("win", standby=1)
    settle(state)
    state.do("template.publish", template=template, version="ver-2", canary=1)
    state.carry_out(plan(state.view()).actions)
    made = next(d for d in state.view().desktops if d.version == "ver-2")
    report = {"desktop": made.id, "generation": 1, "server": made.server}
    state.do("desktop.building", **report)
    state.do("desktop.failed", **report, step="guest", cause="no answer")
    assert plan(state.view()).actions == ()
    canary = state.view().rollouts[template].canary
    assert canary is not None
    assert canary.failed == 1
    assert next(t for t in state.view().templates).broken_cause == ""


def test_when_it_is_stopped_only_its_own_desktops_go(state: State) -> None:
    template = state.template("win", standby=2)
    settle(state)
    state.do("template.publish", template=template, version="ver-2", canary=2)
    settle(state)
    state.do("template.canary_stopped", template=template, version="ver-2", step="guest", cause="x")
    gone = [action for action in plan(state.view()).actions if isinstance(action, Retire)]
    assert {(action.desktop.version, action.why) for action in gone} == {("ver-2", Why.WITHDRAWN)}
    assert len(gone) == 2
    settle(state)
    assert (of(state, "ver-1"), of(state, "ver-2")) == (2, 0)


def test_nobody_is_given_a_desktop_of_a_canary_while_another_is_ready_nor_ever_of_a_stopped_one(state: State) -> None:
    template = state.template("win", standby=1)
    settle(state)
    state.do("template.publish", template=template, version="ver-2", canary=1)
    settle(state)
    state.do("desktop.claim", user="anna", template=template)
    state.do("desktop.claim", user="berta", template=template)
    state.do("template.canary_stopped", template=template, version="ver-2", step="guest", cause="x")
    claims = {d.user: d.version for d in state.view().desktops if d.user}
    assert claims == {"anna": "ver-1", "berta": "ver-2"}
    assert of(state, "ver-2", "in_use") == 1, "who works is not disturbed"
    state.do("desktop.place", desktop="dsk-late", template=template, version="ver-2", server=A)
    assert of(state, "ver-2", "placed") == 0


def test_a_ready_desktop_of_a_withdrawn_version_is_given_to_nobody(state: State) -> None:
    template = state.template("win", standby=1)
    state.do("template.publish", template=template, version="ver-2")
    settle(state)
    state.do("template.roll_back", template=template)
    assert of(state, "ver-2") == 1
    assert not isinstance(state.do("desktop.claim", user="anna", template=template), Applied)
    settle(state)
    assert isinstance(state.do("desktop.claim", user="anna", template=template), Applied)
    assert (of(state, "ver-1", "in_use"), of(state, "ver-2")) == (1, 0)


def test_going_back_while_old_standbys_are_still_there_takes_no_new_one(state: State) -> None:
    template = state.template("win", standby=2)
    settle(state)
    state.do("template.publish", template=template, version="ver-2")
    state.carry_out(plan(state.view()).actions)
    state.do("template.roll_back", template=template)
    actions = plan(state.view()).actions
    assert not any(isinstance(action, Place) for action in actions)
    assert of(state, "ver-1") == 2
    assert isinstance(state.do("desktop.claim", user="anna", template=template), Applied)


def test_whoever_waits_is_made_a_desktop_of_the_present_version(state: State) -> None:
    template = state.template("win", standby=0)
    state.do("template.publish", template=template, version="ver-2", canary=1)
    state.do("desktop.ask", user="anna", template=template)
    placed = [action.version for action in plan(state.view()).actions if isinstance(action, Place)]
    assert sorted(placed) == ["ver-1", "ver-2"]


def test_a_version_that_is_tried_or_tagged_is_kept(state: State) -> None:
    template = state.template("win")
    state.do("template.publish", template=template, version="ver-2", canary=1)
    state.do("template.tag", template=template, tag="exam", version="ver-1")
    assert needed(VersionId("ver-2"), uses(state.db)) == "the canary of win"
    assert "the tag exam of win" in needed(VersionId("ver-1"), uses(state.db))


def test_a_hard_expired_version_loses_its_standbys_and_gets_no_new_ones(state: State) -> None:
    template = state.template("win", standby=2)
    settle(state)
    state.do("template.expiry", template=template, version="ver-1", soft_at=None, hard_at=state.at)
    state.do("template.expire", template=template, version="ver-1", stand="ended")
    settle(state)
    assert state.view().desktops == ()


def test_at_a_maximum_that_people_have_taken_no_canary_is_asked_for(state: State) -> None:
    template = state.template("win", standby=2, maximum=2)
    settle(state)
    state.do("template.publish", template=template, version="ver-2", canary=1)
    for user in ("anna", "berta"):
        assert isinstance(state.do("desktop.claim", user=user, template=template), Applied)
    assert plan(state.view()).actions == ()
