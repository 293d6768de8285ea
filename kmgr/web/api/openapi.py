"""The API's own description, OpenAPI 3.1, made from the table of routes."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kmgr.web.api.fields import Fields, field_schema, schema_of
from kmgr.web.api.shapes import COMPONENTS, Schema, ref
from kmgr.web.api.table import PREFIX, Access, Route

_PART = re.compile(r"{(\w+)}")
_WORDS: Mapping[int, str] = {
    200: "Done, or there it is",
    201: "Made",
    202: "Not yet: ask again",
    204: "Done, there is nothing to say about it",
}


def describe(routes: Iterable[Route], *, version: str) -> dict[str, Any]:
    """Return the description of the API."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(route)
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "cookie": {"type": "apiKey", "in": "cookie", "name": "__Host-kmgr"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "kmgr", "version": version, "description": _INTRODUCTION},
        "paths": paths,
        "components": {"schemas": dict(COMPONENTS), "securitySchemes": schemes},
    }


_INTRODUCTION = (
    "Every server of the grid answers alike. Errors are `{error: {code, message}}`. Requests that change something "
    "and are authorised by the cookie carry the header X-CSRF-Token; those with a bearer token need none."
)


def _operation(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{_PART.sub('', route.path).replace('/', '_').rstrip('_')}"
        + "".join(f"_by_{part}" for part in _PART.findall(route.path)),
        "tags": [route.path.split("/")[1]],
        "parameters": [*map(_part, _PART.findall(route.path)), *_parameters(route.query)],
        "responses": {str(status): _response(route, status, shape) for status, shape in route.answers.items()},
        "security": [] if route.access is Access.ANYONE else [{"bearer": []}, {"cookie": []}],
    }
    found["responses"]["default"] = {
        "description": "Why not: `message` is for people",
        "content": {"application/json": {"schema": ref("Error")}},
    }
    if route.access is Access.ADMIN:
        found["description"] = "For administrators."
    if route.body is not None:
        content: dict[str, Any] = {"application/json": {"schema": schema_of(route.body)}}
        if route.raw:
            content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _response(route: Route, status: int, shape: Schema | None) -> dict[str, Any]:
    told: dict[str, Any] = {"description": _WORDS[status]}
    if shape is not None:
        told["content"] = {route.media: {"schema": shape}}
    elif route.media != "application/json":
        told["content"] = {route.media: {}}
    return told


def _part(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _parameters(query: Fields) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": field.required, "schema": field_schema(field)}
        for name, field in query.items()
    ]
