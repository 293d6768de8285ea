"""API: the grid as a whole: its state, history, settings, and the live feed."""

import asyncio

from aiohttp import web

from kmgr.settings import SETTINGS
from kmgr.web import actions, present
from kmgr.web.api.fields import Fields, text, whole
from kmgr.web.api.shapes import page, ref
from kmgr.web.api.table import PAGE, PAGING, Access, Call, Route, answer
from kmgr.web.live import live

_SETTINGS: Fields = {name: whole(one.help, one.least, one.most) for name, one in SETTINGS.items()}
_EVENTS: Fields = {
    "limit": PAGING["limit"],
    "cursor": whole("the `next` of the page before", 0, 1 << 62),
    "kind": text("only lines of this kind"),
    "subject": text("only lines about the thing with this id"),
}


async def status(call: Call) -> web.Response:
    """Return what this server knows about the grid; nobody need be logged in."""
    return answer(present.status(call.services))


async def redundancy(call: Call) -> web.Response:
    """Return whether any one server may be lost."""
    return answer(await asyncio.to_thread(present.redundancy, call.services))


async def events(call: Call) -> web.Response:
    """Return lines of the history, newest first."""
    asked, limit = call.query, call.query.get("limit", PAGE)
    found = await asyncio.to_thread(
        present.events, call.services, asked.get("cursor"), limit + 1, asked.get("kind"), asked.get("subject")
    )
    shown = found[:limit]
    return answer({"items": shown, "next": str(shown[-1]["n"]) if len(found) > limit else None})


async def settings(call: Call) -> web.Response:
    """Return the grid-wide settings."""
    return answer({"items": present.settings(call.services), "next": None})


async def change_settings(call: Call) -> web.Response:
    """Store some settings."""
    return answer({"items": await actions.set_settings(call.services, call.by, call.body), "next": None})


async def feed(call: Call) -> web.StreamResponse:
    """Send events until the session or the server ends."""
    return await live(call.request)


ROUTES = (
    Route(
        "GET", "/status", status, Access.ANYONE, "What this server knows about the grid",
        {200: ref("Status")},
    ),
    Route(
        "GET", "/redundancy", redundancy, Access.ADMIN, "May any one server be lost now? If not, what to do",
        {200: ref("Redundancy")},
    ),
    Route(
        "GET", "/events", events, Access.ADMIN, "The grid's history, newest first",
        {200: page("Event")}, query=_EVENTS,
    ),
    Route(
        "GET", "/settings", settings, Access.ADMIN, "The grid-wide settings with their limits",
        {200: page("Setting")},
    ),
    Route(
        "PATCH", "/settings", change_settings, Access.ADMIN, "Change settings",
        {200: page("Setting")}, body=_SETTINGS,
    ),
    Route(
        "GET", "/live", feed, Access.USER, "Server-sent events: `state` and `vitals`",
        {200: None}, media="text/event-stream",
    ),
)  # fmt: skip
