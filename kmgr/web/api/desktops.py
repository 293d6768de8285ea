"""API: what a person may use, their desktops, and the way to the screens."""

import asyncio
from collections.abc import Iterable

from aiohttp import web

from kmgr.provision.attendance_commands import MOST_LETTERS
from kmgr.provision.display import fetch_screenshot
from kmgr.provision.listing import Filter
from kmgr.users.broker import Wait
from kmgr.web import actions, present, present_desktops
from kmgr.web.api.fields import Fields, text, whole
from kmgr.web.api.shapes import FLAG, TEXT, many, page, record, ref
from kmgr.web.api.table import PAGING, Access, Call, Route, answer, listed, nothing, sought
from kmgr.web.records import Item

_LOSE: Fields = {"lose": text("of a personal desktop: the name of the user whose work is deleted with it")}
_SUPERSEDED: Fields = {
    "server": text("the server that keeps it", required=True),
    "generation": whole("the disk's generation", 1, 1 << 31, required=True),
}
_SOUGHT: Fields = {
    "state": text("only those in this state"),
    "template": text("only those of this template (id)"),
    "server": text("only those on this server (id)"),
    "user": text("only those of this user"),
    "words": text("only those with each of these words in the name of desktop, user, template or server", most=200),
}
_MESSAGE: Fields = {"text": text("what they are told", required=True, most=MOST_LETTERS)}
_OPEN: Fields = {"template": text("a template's name or id", required=True)}


async def offers(call: Call) -> web.Response:
    """Return what this person may use."""
    found = await asyncio.to_thread(present.offers, call.services, call.session)
    return listed(call, found, lambda one: (one["name"],))


async def desktops(call: Call) -> web.Response:
    """Return the desktops, the same at every server."""
    wanted = Filter(**{name: call.query.get(name, "") for name in _SOUGHT})

    def read(after: tuple[str, str] | None, limit: int) -> tuple[Iterable[Item], bool]:
        found = present_desktops.page(call.services, call.session, wanted, limit=limit, after=after)
        return found.items, found.more

    return await asyncio.to_thread(sought, call, read, lambda one: (one["name"], one["id"]))


async def life(call: Call) -> web.Response:
    """Return a desktop's life so far."""
    found = await asyncio.to_thread(present_desktops.life, call.services, call.session, call.part("id"))
    return answer({"items": found})


async def open_one(call: Call) -> web.Response:
    """Give this person a desktop, or say how long it will take and why."""
    given = await actions.open_desktop(call.services, call.session, call.body["template"])
    if isinstance(given, Wait):
        return answer({"estimate_s": given.estimate_s, "reason": given.reason}, 202)
    shown = present.desktop_of(call.services, call.session, given.desktop.id)
    return answer(shown, 201 if given.new else 200)


async def desktop(call: Call) -> web.Response:
    """Return one desktop."""
    return answer(present.desktop_of(call.services, call.session, call.part("id")))


async def give_back(call: Call) -> web.Response:
    """Give a desktop back."""
    await actions.release_desktop(call.services, call.session, call.part("id"), lose=call.query.get("lose", ""))
    return nothing()


async def put_back(call: Call) -> web.Response:
    """Let a desktop go on from a former disk."""
    server, generation = call.query["server"], call.query["generation"]
    await actions.put_back(call.services, call.by, call.part("id"), server, generation)
    return answer(present.desktop_of(call.services, call.session, call.part("id")))


async def drop_superseded(call: Call) -> web.Response:
    """Delete a former disk."""
    server, generation = call.query["server"], call.query["generation"]
    await actions.drop_superseded(call.services, call.by, call.part("id"), server, generation)
    return nothing()


async def ticket(call: Call) -> web.Response:
    """Make a one-time link to a screen."""
    return answer(await actions.ticket(call.request, call.session, call.part("id")), 201)


async def retry(call: Call) -> web.Response:
    """Make a broken desktop anew."""
    await actions.retry_desktop(call.services, call.by, call.part("id"))
    return answer(present.desktop_of(call.services, call.session, call.part("id")))


async def message(call: Call) -> web.Response:
    """Show a message to whoever works on a desktop."""
    return answer(await actions.message(call.services, call.by, call.part("id"), call.body["text"]))


async def screenshot(call: Call) -> web.Response:
    """Return what a desktop shows, as its server sees it now."""
    found = present.desktop_of(call.services, call.session, call.part("id"))
    actions.look_at(call.session, found["name"], found["user"])
    picture = await fetch_screenshot(call.services.requests, found["server"], found["id"], found["user"])
    return web.Response(body=picture, content_type="image/png")


ROUTES = (
    Route(
        "GET", "/offers", offers, Access.USER, "What this person may use, and why",
        {200: page("Offer")}, query=PAGING,
    ),
    Route(
        "GET", "/desktops", desktops, Access.USER, "The desktops: all for an administrator, else one's own",
        {200: page("Desktop")}, query={**PAGING, **_SOUGHT},
    ),
    Route(
        "POST", "/desktops", open_one, Access.USER,
        "Get a desktop: 201 a new one, 200 the one they had, 202 none is ready yet",
        {200: ref("DesktopHere"), 201: ref("DesktopHere"), 202: ref("Wait")}, body=_OPEN,
    ),
    Route(
        "GET", "/desktops/{id}", desktop, Access.USER, "One desktop, with what it waits for",
        {200: ref("DesktopHere")},
    ),
    Route(
        "GET", "/desktops/{id}/life", life, Access.ADMIN, "The stages of its life so far, the first one first",
        {200: record({"items": many(ref("Stage"))})},
    ),
    Route(
        "DELETE", "/desktops/{id}", give_back, Access.USER,
        "Give a desktop back; an administrator deletes a personal one by naming whose work is lost",
        {204: None}, query=_LOSE,
    ),
    Route(
        "DELETE", "/desktops/{id}/superseded", drop_superseded, Access.ADMIN,
        "Delete a personal desktop's former disk on a server",
        {204: None}, query=_SUPERSEDED,
    ),
    Route(
        "POST", "/desktops/{id}/superseded/put-back", put_back, Access.ADMIN,
        "Power a personal desktop off and let it go on from a former disk; its present one is kept as a former one",
        {200: ref("DesktopHere")}, query=_SUPERSEDED,
    ),
    Route(
        "POST", "/desktops/{id}/ticket", ticket, Access.USER, "A one-time link to the screen, for 30 s",
        {201: ref("Ticket")},
    ),
    Route(
        "POST", "/desktops/{id}/retry", retry, Access.ADMIN, "Make a broken desktop anew",
        {200: ref("DesktopHere")},
    ),
    Route(
        "POST", "/desktops/{id}/message", message, Access.ADMIN,
        "Show a message to whoever works on a desktop, in its guest if that can be told and on its screen's page",
        {200: record({"user": TEXT, "why_not_in_guest": TEXT, "page": FLAG})}, body=_MESSAGE,
    ),
    Route(
        "GET", "/desktops/{id}/screenshot", screenshot, Access.USER, "What a desktop shows now",
        {200: None}, media="image/png",
    ),
)  # fmt: skip
