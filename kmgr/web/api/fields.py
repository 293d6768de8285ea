"""What a request may say: a table of fields, checked as a whole, so that all problems are told at once.

Pure. The same table makes the API's description.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from kmgr.errors import Refused
from kmgr.web.api.shapes import Schema
from kmgr.whole import is_whole, must_be


class Kind(StrEnum):
    """What a field's value is."""

    TEXT = "a text"
    WHOLE = "a whole number"
    FLAG = "true or false"
    TEXTS = "a list of texts"
    TEXT_OR_WHOLE = "a text or a whole number"
    ANY = "a JSON value"


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its kind, whether it must be there, its limits (of a number, or of a text's length).

    One of kind `ANY` is described by its `shape` and checked by whoever reads it.
    """

    kind: Kind
    help: str
    required: bool = False
    least: int | None = None
    most: int | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False
    shape: Schema | None = None


Fields: TypeAlias = Mapping[str, Field]
Values: TypeAlias = dict[str, Any]

_TYPES: Mapping[Kind, tuple[type, ...]] = {
    Kind.TEXT: (str,),
    Kind.WHOLE: (int,),
    Kind.FLAG: (bool,),
    Kind.TEXTS: (list,),
    Kind.TEXT_OR_WHOLE: (str, int),
}
_SCHEMAS: Mapping[Kind, Schema] = {
    Kind.TEXT: {"type": "string"},
    Kind.WHOLE: {"type": "integer"},
    Kind.FLAG: {"type": "boolean"},
    Kind.TEXTS: {"type": "array", "items": {"type": "string"}},
    Kind.TEXT_OR_WHOLE: {"type": ["string", "integer"]},
    Kind.ANY: {},
}


def text(help: str, *, required: bool = False, most: int = 1000, secret: bool = False) -> Field:
    """Return a field for a text; a required one may not be empty."""
    return Field(Kind.TEXT, help, required, 1 if required else None, most, secret=secret)


def whole(help: str, least: int, most: int, *, required: bool = False) -> Field:
    """Return a field for a whole number within limits."""
    return Field(Kind.WHOLE, help, required, least, most)


def flag(help: str) -> Field:
    """Return a field for yes or no."""
    return Field(Kind.FLAG, help)


def choice(help: str, *choices: str, required: bool = False) -> Field:
    """Return a field for one of some words."""
    return Field(Kind.TEXT, help, required, choices=choices)


def any_of(help: str, shape: Schema) -> Field:
    """Return a field whose value is described by a shape and checked by whoever reads it."""
    return Field(Kind.ANY, help, shape=shape)


def check_body(given: object, fields: Fields) -> Values:
    """Return the fields of a JSON body; raise one `Refused` that names every problem."""
    if not isinstance(given, dict):
        raise Refused("The body of this request must be a JSON object.", code="bad_body")
    problems = [f"{name}: there is no such field here" for name in sorted(given) if name not in fields]
    for name, field in fields.items():
        if name not in given:
            problems += [f"{name}: required"] if field.required else []
        elif problem := _problem(given[name], field):
            problems.append(f"{name}: {problem}")
    if problems:
        raise Refused("; ".join(problems), code="bad_body")
    return {name: given[name] for name in fields if name in given}


def check_query(given: Mapping[str, str], fields: Fields) -> Values:
    """Return the known parameters of an address; unknown ones don't matter."""
    found: Values = {name: _meant(given[name], field) for name, field in fields.items() if name in given}
    return check_body(found, fields)


def schema_of(fields: Fields) -> Schema:
    """Return the JSON Schema of a body."""
    return {
        "type": "object",
        "properties": {name: field_schema(field) for name, field in fields.items()},
        "required": [name for name, field in fields.items() if field.required],
        "additionalProperties": False,
    }


def field_schema(field: Field) -> Schema:
    """Return the JSON Schema of one field."""
    found: dict[str, Any] = {**_SCHEMAS[field.kind], **(field.shape or {}), "description": field.help}
    if field.choices:
        found["enum"] = list(field.choices)
    least, most = ("minimum", "maximum") if field.kind is Kind.WHOLE else ("minLength", "maxLength")
    if field.kind in (Kind.WHOLE, Kind.TEXT):
        found |= {word: limit for word, limit in ((least, field.least), (most, field.most)) if limit is not None}
    if field.secret:
        found["format"] = "password"
    return found


def _problem(value: object, field: Field) -> str:
    if field.kind is Kind.ANY:
        return ""
    if field.kind is Kind.WHOLE:
        least = field.least or 0
        return "" if is_whole(value, least, field.most) else must_be(value, least, field.most)
    right = isinstance(value, _TYPES[field.kind]) and (isinstance(value, bool) == (field.kind is Kind.FLAG))
    if not right:
        return f"must be {field.kind}"
    if field.choices and value not in field.choices:
        return f"must be one of {', '.join(field.choices)}"
    if isinstance(value, list):
        return "" if all(isinstance(one, str) for one in value) else f"must be {field.kind}"
    if field.kind is Kind.TEXT and isinstance(value, str):
        return _outside(len(value.strip()) if field.required else len(value), field)
    return ""


def _outside(length: int, field: Field) -> str:
    least, most = field.least or 0, field.most
    if is_whole(length, least, most):
        return ""
    return f"must have a length from {least} to {most if most is not None else 'any'}"


def _meant(given: str, field: Field) -> object:
    if field.kind is Kind.FLAG and given in {"true", "false"}:
        return given == "true"
    if field.kind is Kind.WHOLE and given.removeprefix("-").isascii() and given.removeprefix("-").isdigit():
        return int(given[:20])
    return given
