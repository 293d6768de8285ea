"""Does a value fit a JSON Schema? As much of the standard as the API's description uses."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "boolean": (bool,),
    "null": (type(None),), "array": (list,), "object": (dict,),
}  # fmt: skip
_KNOWN = {
    "type", "properties", "required", "additionalProperties", "items", "enum", "anyOf", "$ref", "description",
    "minimum", "maximum", "minLength", "maxLength", "format",
}  # fmt: skip


def misfits(value: Any, schema: Mapping[str, Any], components: Mapping[str, Any], at: str = "$") -> Iterator[str]:
    """Yield what does not fit, with its place."""
    assert set(schema) <= _KNOWN, f"{at}: this checker does not know {set(schema) - _KNOWN}"
    if "$ref" in schema:
        yield from misfits(value, components[schema["$ref"].rpartition("/")[2]], components, at)
    if "anyOf" in schema:
        tries = [list(misfits(value, one, components, at)) for one in schema["anyOf"]]
        yield from [] if not all(tries) else min(tries, key=len)
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{at}: {value!r} is not {schema['type']}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    if isinstance(value, list):
        for n, one in enumerate(value):
            yield from misfits(one, schema.get("items", {}), components, f"{at}[{n}]")
    if isinstance(value, dict):
        yield from _in_object(value, schema, components, at)


def route_of(described: Mapping[str, Any], method: str, path: str) -> str:
    """Return the described path that an address belongs to, empty if none."""
    plain = path.partition("?")[0]
    for template in sorted(described["paths"], key=lambda one: one.count("{")):
        pattern = re.sub(r"{\w+}", "[^/]+", template)
        if method.lower() in described["paths"][template] and re.fullmatch(pattern, plain):
            return str(template)
    return ""


def answer_misfits(described: Mapping[str, Any], method: str, path: str, status: int, body: Any) -> list[str]:
    """Return in what an answer differs from the description; a path that is not described is fine for errors."""
    components = described["components"]["schemas"]
    template = route_of(described, method, path)
    answers = described["paths"][template][method.lower()]["responses"] if template else {}
    if status >= 400:
        return list(misfits(body, components["Error"], components))
    if str(status) not in answers:
        return [f"{method} {path} answered {status}, described are {sorted(answers)}"]
    content = answers[str(status)].get("content", {})
    if "application/json" not in content:
        return [] if body is None else [f"{method} {path} answered with a body that is not described"]
    return list(misfits(body, content["application/json"]["schema"], components))


def _in_object(
    value: dict[str, Any], schema: Mapping[str, Any], components: Mapping[str, Any], at: str
) -> Iterator[str]:
    known = schema.get("properties", {})
    yield from (f"{at}.{name} is missing" for name in schema.get("required", ()) if name not in value)
    more = schema.get("additionalProperties", True)
    for name, one in value.items():
        if name in known:
            yield from misfits(one, known[name], components, f"{at}.{name}")
        elif more is False:
            yield f"{at}.{name} is not described"
        elif isinstance(more, Mapping):
            yield from misfits(one, more, components, f"{at}.{name}")


def _is(value: Any, kinds: str | list[str]) -> bool:
    wanted = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, bool):
        return "boolean" in wanted
    return any(isinstance(value, _TYPES[kind]) for kind in wanted)
