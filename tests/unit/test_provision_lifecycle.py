"""The life of a desktop: the table, its picture, and what is not in it."""

import pytest

from kmgr.errors import Conflict
from kmgr.provision.lifecycle import LIFECYCLE, LIVING, Event, after
from kmgr.provision.model import DesktopState as S
from tests.lab.lifecycle_picture import PAGE, redrawn


def test_what_the_page_draws_is_the_code() -> None:
    text = PAGE.read_text()
    assert redrawn(text) == text, "docs/lifecycle.md is stale: python -m tests.lab.lifecycle_picture draws it anew"


def test_every_state_is_a_row_and_is_explained_in_the_picture() -> None:
    assert set(LIFECYCLE) == set(S)
    text = PAGE.read_text()
    for state in S:
        assert f"**{state}**" in text


def test_every_state_can_be_reached_from_placed_and_every_event_has_a_use() -> None:
    reached, ways = {S.PLACED}, [S.PLACED]
    while ways:
        for then in LIFECYCLE[ways.pop()].values():
            if then not in reached:
                reached.add(then)
                ways.append(then)
    assert reached == set(S)
    assert {event for row in LIFECYCLE.values() for event in row} == set(Event)


def test_a_desktop_can_be_retired_from_everywhere_and_then_nothing_else() -> None:
    for state in S:
        assert after(state, Event.RETIRED) is S.RETIRED
    # But for the word of a server that was cut off: somebody works on it there.
    assert set(LIFECYCLE[S.RETIRED]) == {Event.RETIRED, Event.KEPT}
    assert all(after(state, Event.KEPT) is S.IN_USE for state in S)


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("event", Event)
def test_what_is_not_in_the_table_is_refused_in_words(state: S, event: Event) -> None:
    if event in LIFECYCLE[state]:
        assert after(state, event) in S
        return
    with pytest.raises(Conflict, match=f"a desktop that is {state.replace('_', ' ')} cannot be {event}"):
        after(state, event)


def test_a_user_never_gets_a_desktop_that_is_not_ready() -> None:
    assert [state for state in S if after_or_none(state, Event.CLAIMED) is S.IN_USE] == [S.READY, S.IN_USE]


def test_only_living_desktops_count_against_the_maximum() -> None:
    assert set(S) - set(LIVING) == {S.BROKEN, S.RETIRED}


def after_or_none(state: S, event: Event) -> S | None:
    return LIFECYCLE[state].get(event)
