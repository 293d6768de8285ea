"""One row per address of the API: who may, what it takes, what it answers, and the function that does it.

From the same rows come the routes, the checks before a handler runs, and the
description in OpenAPI. A handler is called only if the person may and the body is good.
"""

import base64
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from aiohttp import web

from kmgr.errors import Refused
from kmgr.users.model import Session
from kmgr.web import auth, uploads
from kmgr.web.api.fields import Fields, Values, check_body, check_query, text, whole
from kmgr.web.api.shapes import Schema
from kmgr.web.records import Item
from kmgr.web.services import SERVICES, Services

PREFIX = "/api/v1"
PAGE = 200
MOST_PAGE = 1000
_BAD_CURSOR = "cursor: this is not the `next` of an earlier page"

PAGING: Fields = {
    "limit": whole("how many items at most", 1, MOST_PAGE),
    "cursor": text("where the page before ended: its `next`", most=500),
}


class Access(StrEnum):
    """Who may use an address."""

    ANYONE = "anyone"
    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Call:
    """One permitted request with its checked body and query."""

    request: web.Request
    services: Services
    maybe_session: Session | None
    body: Values = field(repr=False)
    query: Values

    @property
    def session(self) -> Session:
        """Return who asks."""
        return auth.session_of(self.request)

    @property
    def by(self) -> str:
        """Return the account that asks."""
        return self.session.person.name

    def part(self, name: str) -> str:
        """Return a named part of the address."""
        return self.request.match_info[name]


Handler: TypeAlias = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One address. `body` is None if none is taken, and unread if `raw`; `answers` maps statuses to shapes."""

    method: str
    path: str
    handler: Handler
    access: Access
    summary: str
    answers: Mapping[int, Schema | None]
    body: Fields | None = None
    query: Fields = field(default_factory=dict)
    raw: bool = False
    media: str = "application/json"


def add(app: web.Application, routes: Iterable[Route]) -> None:
    """Add rows to an application."""
    for route in routes:
        expect = uploads.not_yet if route.raw else None
        app.router.add_route(route.method, PREFIX + route.path, _served(route), expect_handler=expect)


def answer(body: Any, status: int = 200) -> web.Response:
    """Answer with JSON."""
    return web.json_response(body, status=status)


def nothing() -> web.Response:
    """Answer that it is done and there is nothing to say about it."""
    return web.Response(status=204)


def listed(call: Call, items: Iterable[Item], key: Callable[[Item], tuple[Any, ...]]) -> web.Response:
    """Answer with one page of a list, ordered by `key`, which no two items share.

    The cursor is the key of the page's last item, so that it stays right while items come and go.
    """
    limit, after = call.query.get("limit", PAGE), _key_of(call.query.get("cursor", ""))
    ordered = sorted(items, key=key)
    left = ordered if after is None else [one for one in ordered if key(one) > _fitting(after, key(one))]
    shown = left[:limit]
    more = _cursor(key(shown[-1])) if len(left) > len(shown) else None
    return answer({"items": shown, "next": more})


def sought(
    call: Call,
    read: Callable[[tuple[str, str] | None, int], tuple[Iterable[Item], bool]],
    key: Callable[[Item], tuple[str, str]],
) -> web.Response:
    """Answer with one page of a list that is too long to be read whole.

    `read` is given the key behind which the page begins and how many items it may have; it tells whether more follow.
    """
    after = _key_of(call.query.get("cursor", ""))
    if after is not None and [type(part) for part in after] != [str, str]:
        raise Refused(_BAD_CURSOR, code="bad_body")
    found, more = read((after[0], after[1]) if after is not None else None, call.query.get("limit", PAGE))
    shown = list(found)
    return answer({"items": shown, "next": _cursor(key(shown[-1])) if more and shown else None})


async def read_body(request: web.Request, fields: Fields) -> Values:
    """Return the checked JSON body of a request."""
    data = await request.read()
    if data and request.content_type != "application/json":
        raise Refused("Send the body as JSON, with Content-Type: application/json.", code="bad_body")
    try:
        given = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise Refused(f"The body of this request is not JSON: {error}.", code="bad_body") from error
    return check_body(given, fields)


def _served(route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def serve(request: web.Request) -> web.StreamResponse:
        match route.access:
            case Access.ADMIN:
                auth.require_admin(request)
            case Access.USER:
                auth.session_of(request)
            case Access.ANYONE:
                pass
        query = check_query(request.query, route.query)
        body = await read_body(request, route.body) if route.body is not None and not route.raw else {}
        call = Call(request, request.app[SERVICES], auth.maybe_session(request), body, query)
        return await route.handler(call)

    return serve


def _cursor(key: tuple[Any, ...]) -> str:
    """Spell a key so that it goes into an address as it is."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def _key_of(cursor: str) -> tuple[Any, ...] | None:
    if not cursor:
        return None
    try:
        return tuple(json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))))
    except (ValueError, TypeError, RecursionError):
        raise Refused(_BAD_CURSOR, code="bad_body") from None


def _fitting(after: tuple[Any, ...], key: tuple[Any, ...]) -> tuple[Any, ...]:
    if list(map(type, after)) != list(map(type, key)):
        raise Refused(_BAD_CURSOR, code="bad_body")
    return after
