"""API: the servers of the grid."""

import asyncio

from aiohttp import web

from kmgr.provision.drain_commands import MOST_MINUTES
from kmgr.web import actions, present
from kmgr.web.api.fields import flag, whole
from kmgr.web.api.shapes import page, ref
from kmgr.web.api.table import PAGING, Access, Call, Route, answer, listed, nothing


async def servers(call: Call) -> web.Response:
    """Return the servers of the grid."""
    return listed(call, await asyncio.to_thread(present.servers, call.services), lambda one: (one["name"], one["id"]))


async def invite(call: Call) -> web.Response:
    """Make an invitation for one new server."""
    return answer(await actions.invite(call.services, call.by), 201)


async def drain(call: Call) -> web.Response:
    """Give a server no new desktops."""
    given = {"force": call.body.get("force", False), "notice_minutes": call.body.get("notice_minutes", 0)}
    return answer(await actions.drain(call.services, call.by, call.part("id"), **given))


async def undrain(call: Call) -> web.Response:
    """Let a server have new desktops again."""
    return answer(await actions.undrain(call.services, call.by, call.part("id")))


async def off(call: Call) -> web.Response:
    """Say that a server which is away is switched off."""
    await actions.server_off(call.services, call.by, call.part("id"))
    return nothing()


async def remove(call: Call) -> web.Response:
    """Take a server out of the grid."""
    await actions.remove_server(call.services, call.by, call.part("id"), force=bool(call.query.get("force")))
    return nothing()


_FORCE = "do it although the grid would be weaker: without it that is refused with the reasons (code `unsafe`)"
_NOTICE = "minutes after which desktops that cannot be moved end; their users are told. 0: they stay"

ROUTES = (
    Route(
        "GET", "/servers", servers, Access.ADMIN, "The servers with what they last reported",
        {200: page("Server")}, query=PAGING,
    ),
    Route(
        "POST", "/servers/invitation", invite, Access.ADMIN, "Make a one-time invitation for a new server",
        {201: ref("Invitation")},
    ),
    Route(
        "POST", "/servers/{id}/drain", drain, Access.ADMIN, "Give a server no new desktops",
        {200: ref("Server")}, body={"force": flag(_FORCE), "notice_minutes": whole(_NOTICE, 0, MOST_MINUTES)},
    ),
    Route(
        "POST", "/servers/{id}/undrain", undrain, Access.ADMIN, "Let a server have new desktops again",
        {200: ref("Server")},
    ),
    Route(
        "POST", "/servers/{id}/off", off, Access.ADMIN,
        "Say that a lost or removed server is switched off: what it might run without a majority goes on elsewhere",
        {204: None},
    ),
    Route(
        "DELETE", "/servers/{id}", remove, Access.ADMIN, "Take a server out of the grid for good",
        {204: None}, query={"force": whole(_FORCE, 0, 1)},
    ),
)  # fmt: skip
