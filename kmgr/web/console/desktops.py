"""What an administrator does with desktops: remove one, make a broken one anew."""

from typing import Any

from aiohttp import web

from kmgr.web import actions, auth, html_env, present
from kmgr.web.services import SERVICES

_PAGE = "/console/desktops"


def add_routes(app: web.Application) -> None:
    """Add what is done with desktops."""
    app.add_routes(
        [
            web.get("/console/desktops/{desktop}/retire", ask_retire),
            web.post("/console/desktops/{desktop}/retire", retire),
            web.post("/console/desktops/{desktop}/retry", retry),
        ]
    )


async def ask_retire(request: web.Request) -> web.Response:
    """Ask before a desktop is removed, and say whose it is."""
    return html_env.dialog(request, "console/dialog/retire.html", desktop=_desktop(request))


async def retire(request: web.Request) -> web.Response:
    """Remove a desktop, whoever uses it."""
    by, desktop = auth.require_admin(request).person.name, _desktop(request)
    await actions.retire_desktop(request.app[SERVICES], by, desktop["id"])
    return html_env.done(request, f"{desktop['name']} is being removed.", to=_PAGE)


async def retry(request: web.Request) -> web.Response:
    """Make a broken desktop anew."""
    by, desktop = auth.require_admin(request).person.name, _desktop(request)
    await actions.retry_desktop(request.app[SERVICES], by, desktop["id"])
    return html_env.done(request, f"{desktop['name']} is made anew.", to=_PAGE)


def _desktop(request: web.Request) -> dict[str, Any]:
    session = auth.require_admin(request)
    return present.desktop_of(request.app[SERVICES], session, request.match_info["desktop"])
