"""Bodies and addresses: everything that is wrong is told at once."""

from typing import Any

import pytest

from kmgr.errors import Refused
from kmgr.web.api.fields import Field, Fields, Kind, check_body, check_query, choice, flag, schema_of, text, whole
from tests.lab.schemas import misfits

FIELDS: Fields = {
    "name": text("its name", required=True, most=8),
    "count": whole("how many", 1, 10, required=True),
    "on": flag("whether"),
    "groups": Field(Kind.TEXTS, "which"),
    "colour": choice("which colour", "red", "green"),
    "version": Field(Kind.TEXT_OR_WHOLE, "which"),
}


def test_a_good_body_is_returned_as_it_is() -> None:
    body = {"name": "a", "count": 3, "on": False, "groups": ["x"], "colour": "red", "version": 7}
    assert check_body(body, FIELDS) == body
    assert check_body({"name": "a", "count": 1}, FIELDS) == {"name": "a", "count": 1}


def test_every_problem_is_named_in_one_error() -> None:
    body = {"name": "", "count": True, "on": 1, "groups": ["x", 2], "colour": "blue", "version": None, "size": 1}
    with pytest.raises(Refused) as caught:
        check_body(body, FIELDS)
    told = caught.value.message.split("; ")
    assert told == [
        "size: there is no such field here",
        "name: must have a length from 1 to 8",
        "count: must be a whole number from 1 to 10, not True",
        "on: must be true or false",
        "groups: must be a list of texts",
        "colour: must be one of red, green",
        "version: must be a text or a whole number",
    ]
    assert caught.value.code == "bad_body"


@pytest.mark.parametrize("count", [0, 11, -5, 3.0, "3"])
def test_a_number_has_limits(count: Any) -> None:
    with pytest.raises(Refused, match="count"):
        check_body({"name": "a", "count": count}, FIELDS)


@pytest.mark.parametrize("given", [[], "text", None, 3])
def test_a_body_is_an_object(given: Any) -> None:
    with pytest.raises(Refused, match="JSON object"):
        check_body(given, FIELDS)


def test_numbers_in_an_address_are_read_and_what_is_unknown_does_not_matter() -> None:
    query: Fields = {"limit": whole("how many", 1, 10), "kind": text("which")}
    assert check_query({"limit": "7", "kind": "3", "other": "x"}, query) == {"limit": 7, "kind": "3"}
    for bad in ("seven", "", "-", "11", "9" * 5000):
        with pytest.raises(Refused, match="limit"):
            check_query({"limit": bad}, query)


@pytest.mark.parametrize(
    ("body", "good"),
    [
        ({"name": "a", "count": 3, "version": "x"}, True),
        ({"name": "a"}, False),
        ({"name": "a", "count": "3"}, False),
        ({"name": "a", "count": 3, "size": 1}, False),
        ({"name": "a", "count": 3, "colour": "blue"}, False),
    ],
)
def test_the_description_of_a_body_agrees_with_its_check(body: dict[str, Any], good: bool) -> None:
    assert (not list(misfits(body, schema_of(FIELDS), {}))) is good
    try:
        check_body(body, FIELDS)
    except Refused:
        assert not good
    else:
        assert good
