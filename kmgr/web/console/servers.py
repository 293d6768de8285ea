"""What an administrator does with servers: invite, drain, undrain, remove."""

from typing import Any

from aiohttp import web

from kmgr.balancer.redundancy import Drain, Remove
from kmgr.errors import NotFound
from kmgr.grid.queries import server
from kmgr.ids import ServerId
from kmgr.provision.drain_commands import MOST_MINUTES
from kmgr.web import actions, auth, html_env, present
from kmgr.web.forms import read_form
from kmgr.web.services import SERVICES

_PAGE = "/console/servers"


def add_routes(app: web.Application) -> None:
    """Add what is done with servers."""
    app.add_routes(
        [
            web.post("/console/servers/invitation", invite),
            web.get("/console/servers/{server}/{step:drain|remove}", ask),
            web.post("/console/servers/{server}/drain", drain),
            web.post("/console/servers/{server}/undrain", undrain),
            web.post("/console/servers/{server}/remove", remove),
            web.get("/console/servers/{server}/off", ask_off),
            web.post("/console/servers/{server}/off", off),
        ]
    )


async def invite(request: web.Request) -> web.Response:
    """Make an invitation and show it, once."""
    by = auth.require_admin(request).person.name
    made = await actions.invite(request.app[SERVICES], by)
    return html_env.dialog(request, "console/dialog/invitation.html", invitation=made)


async def ask(request: web.Request) -> web.Response:
    """Ask before a server is drained or removed, and say what it means."""
    auth.require_admin(request)
    step = request.match_info["step"]
    server = _server(request)
    action = Drain(ServerId(server["id"])) if step == "drain" else Remove(ServerId(server["id"]))
    reasons = present.reasons_against(request.app[SERVICES], action)
    return html_env.dialog(request, f"console/dialog/{step}.html", server=server, reasons=reasons)


async def drain(request: web.Request) -> web.Response:
    """Give a server no new desktops."""
    by, server = auth.require_admin(request).person.name, _server(request)
    form = await read_form(request)
    given = form.text("notice_minutes")
    minutes = form.number("notice_minutes", "The notice", least=0, most=MOST_MINUTES) if given else 0
    form.check()
    forced = form.ticked("force")
    await actions.drain(request.app[SERVICES], by, server["id"], force=forced, notice_minutes=minutes)
    return html_env.done(request, f"{server['name']} gets no new desktops from now on.", to=_PAGE)


async def ask_off(request: web.Request) -> web.Response:
    """Ask whether a server really is switched off."""
    auth.require_admin(request)
    return html_env.dialog(request, "console/dialog/off.html", server=_known(request))


async def off(request: web.Request) -> web.Response:
    """Say that a server which is away is switched off."""
    by, server = auth.require_admin(request).person.name, _known(request)
    await actions.server_off(request.app[SERVICES], by, server["id"])
    return html_env.done(request, f"The personal desktops of {server['name']} may go on elsewhere.", to=_PAGE)


def _known(request: web.Request) -> dict[str, str]:
    """Return id and name of a server, also of one that was removed."""
    with request.app[SERVICES].grid.view() as db:
        found = server(db, ServerId(request.match_info["server"]))
    if found is None:
        raise NotFound("there is no such server in this grid")
    return {"id": found.id, "name": found.name}


async def undrain(request: web.Request) -> web.Response:
    """Let a server have new desktops again."""
    by, server = auth.require_admin(request).person.name, _server(request)
    await actions.undrain(request.app[SERVICES], by, server["id"])
    return html_env.done(request, f"{server['name']} gets desktops again.", to=_PAGE)


async def remove(request: web.Request) -> web.Response:
    """Take a server out of the grid."""
    by, server = auth.require_admin(request).person.name, _server(request)
    await actions.remove_server(request.app[SERVICES], by, server["id"], force=await _forced(request))
    return html_env.done(request, f"{server['name']} was removed from the grid.", to=_PAGE)


async def _forced(request: web.Request) -> bool:
    return (await read_form(request)).ticked("force")


def _server(request: web.Request) -> dict[str, Any]:
    wanted = request.match_info["server"]
    for one in present.servers(request.app[SERVICES]):
        if one["id"] == wanted:
            return one
    raise NotFound("This server is not in the grid any more.")
