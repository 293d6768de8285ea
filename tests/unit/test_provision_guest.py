"""What a guest's agent answers is a guest's word: whatever it is, it ends in an answer or in that guest's failure."""

import json
from typing import Any

import pytest

from kmgr.provision.causes import Trouble, recognise
from kmgr.provision.guest import GuestFailed, returned


@pytest.mark.parametrize(
    ("told", "heard"),
    [
        ({}, {}),
        ({"pid": 7}, {"pid": 7}),
        (None, {}),
        ("", {}),
        ([{"user": "anna"}], {"value": [{"user": "anna"}]}),
        ("word", {"value": "word"}),
        (3, {"value": 3}),
    ],
)
def test_what_an_agent_returns_is_taken_as_it_is(told: Any, heard: Any) -> None:
    assert returned(json.dumps({"return": told})) == heard


@pytest.mark.parametrize("answer", ["[]", "7", "{}", "null", '"return"'])
def test_an_answer_that_returns_nothing_is_none(answer: str) -> None:
    assert returned(answer) == {}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param('{"return": ' + "[" * 100_000 + "]" * 100_000 + "}", id="lists in lists"),
        pytest.param('{"return": ' + '{"a": ' * 100_000 + "1" + "}" * 100_000 + "}", id="objects in objects"),
        pytest.param('{"return": ' + "7" * 100_000 + "}", id="a number without end"),
        pytest.param('{"return": ', id="cut off"),
        pytest.param("", id="nothing at all"),
    ],
)
def test_an_answer_that_nobody_can_read_is_the_guests_failure_and_nobody_elses(answer: str) -> None:
    with pytest.raises(GuestFailed) as failure:
        returned(answer)
    assert recognise("guest", failure.value.message) is Trouble.AGENT_FLOODS
    assert len(failure.value.message) < 500
