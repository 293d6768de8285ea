"""Publishing, canaries, going back and everything else, in any order: what must hold at every step.

* Never more desktops of a template than its maximum, all versions together.
* Nobody who works loses their desktop to a plan.
* A plan never takes the last ready desktop of the present version away because of a canary.
* Nobody is given a desktop of a version that was stopped or withdrawn.
* When nothing happens any more, the plans come to an end, and of what was withdrawn nothing is left that nobody uses.
"""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kmgr.balancer.model import Retire
from kmgr.balancer.plan import plan
from kmgr.grid.envelope import Applied
from kmgr.ids import ServerId
from kmgr.provision.lifecycle import LIVING
from kmgr.templates.versions import NO_ROLLOUT
from tests.lab.state import State

A, B = ServerId("srv-a"), ServerId("srv-b")
VERSIONS = ("ver-1", "ver-2", "ver-3")
USERS = ("anna", "berta", "carl")
T = "tpl-win"

steps = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(VERSIONS), st.integers(0, 3)),
    st.tuples(st.sampled_from(("pass", "stop", "back", "make")), st.just(""), st.just(0)),
    st.tuples(st.sampled_from(("plan", "settle")), st.just(""), st.just(0)),
    st.tuples(st.just("settle"), st.just(""), st.just(0)),
    st.tuples(st.sampled_from(("claim", "claim", "release")), st.sampled_from(USERS), st.just(0)),
    st.tuples(st.just("fail"), st.sampled_from(VERSIONS), st.just(0)),
    st.tuples(st.just("shape"), st.just(""), st.integers(0, 5)),
)


class Line:
    """A template of three versions on two servers, and what happens to it."""

    def __init__(self, standby: int, maximum: int) -> None:
        self.state = State()
        for name in "ab":
            self.state.server(name)
        for version in VERSIONS:
            self.state.version(version, [A, B])
        self.state.template("win", standby=min(standby, maximum), maximum=maximum)

    def step(self, what: str, word: str, number: int) -> None:
        state, canary = self.state, self.rollout.canary
        tried = canary.version if canary else "ver-none"
        match what:
            case "publish":
                how: dict[str, Any] = {"canary": number} if number else {}
                state.do("template.publish", template=T, version=word, **how)
            case "pass":
                state.do("template.canary_passed", template=T, version=tried)
            case "stop":
                state.do("template.canary_stopped", template=T, version=tried, step="guest", cause="x")
            case "back":
                state.do("template.roll_back", template=T)
            case "claim":
                self.claim(word)
            case "release":
                for desktop in self.of(user=word):
                    state.do("desktop.release", desktop=desktop.id, user=word)
            case "fail":
                for desktop in [d for d in self.of() if d.version == word and d.state == "building"][:1]:
                    report = {"desktop": desktop.id, "generation": desktop.generation, "server": desktop.server}
                    state.do("desktop.failed", **report, step="guest", cause="no answer")
            case "shape":
                state.do("template.update", template=T, standby=0, maximum=max(1, number))
            case _:
                {"make": state.make_everything, "settle": self.settle, "plan": self.plan}[what]()

    @property
    def rollout(self) -> Any:
        return self.state.view().rollouts.get(T, NO_ROLLOUT)  # type: ignore[call-overload]

    def of(self, user: str | None = None) -> list[Any]:
        return [d for d in self.state.view().desktops if user is None or d.user == user]

    def claim(self, user: str) -> None:
        over = self.rollout.over
        had = {d.id for d in self.of(user=user)}
        outcome = self.state.do("desktop.claim", user=user, template=T)
        if isinstance(outcome, Applied) and outcome.values["desktop"] not in had:
            given = next(d for d in self.of() if d.id == outcome.values["desktop"])
            assert given.version not in over

    def plan(self) -> bool:
        view = self.state.view()
        (template,) = view.templates
        decided = plan(view).actions
        assert not any(isinstance(a, Retire) and a.desktop.state == "in_use" for a in decided)
        mine = [d for d in view.desktops if d.version == template.version and d.state == "ready"]
        going = {a.desktop.id for a in decided if isinstance(a, Retire)}
        if self.rollout.canary is not None and mine and template.standby and template.maximum > len(self.of_users()):
            over = template.version in self.rollout.over
            full = len(self.of_users()) >= template.maximum - min(self.rollout.canary.size, template.maximum - 1)
            assert over or full or {d.id for d in mine} - going, "the last ready one went because of a canary"
        self.state.carry_out(decided)
        return bool(decided)

    def settle(self) -> None:
        """Plan and make until nothing is left to do."""
        for _ in range(40):
            moved = self.plan()
            self.state.make_everything()
            if not moved:
                return
        raise AssertionError("the plans never come to an end")

    def of_users(self) -> list[Any]:
        return [d for d in self.of() if d.state == "in_use"]

    def check(self, most: int) -> None:
        living = [d for d in self.of() if d.state in LIVING]
        assert len(living) <= most, "more than the maximum"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 4), st.integers(1, 5), st.lists(steps, min_size=6, max_size=30))
def test_what_must_hold_holds_in_any_order(standby: int, maximum: int, todo: list[tuple[str, str, int]]) -> None:
    line = Line(standby, maximum)
    most = maximum
    for what, word, number in todo:
        line.step(what, word, number)
        (template,) = line.state.view().templates
        # A maximum that was lowered takes nobody's desktop away.
        most = max(template.maximum, min(most, len([d for d in line.of() if d.state in LIVING])))
        line.check(most)
    line.settle()
    left = [d for d in line.of() if d.version in line.rollout.over and d.state in ("placed", "building", "ready")]
    assert left == []
