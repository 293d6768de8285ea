"""What an administrator does with desktops: remove one, make a broken one anew, tell its user something."""

from typing import Any

from aiohttp import web

from kmgr.errors import NotFound
from kmgr.provision.attendance_commands import MOST_LETTERS
from kmgr.web import actions, auth, forms, html_env, present
from kmgr.web.services import SERVICES

_PAGE = "/console/desktops"


def add_routes(app: web.Application) -> None:
    """Add what is done with desktops."""
    app.add_routes(
        [
            web.get("/console/desktops/{desktop}/retire", ask_retire),
            web.post("/console/desktops/{desktop}/retire", retire),
            web.post("/console/desktops/{desktop}/retry", retry),
            web.get("/console/desktops/{desktop}/message", ask_message),
            web.post("/console/desktops/{desktop}/message", message),
            web.get("/console/desktops/{desktop}/superseded/{server}/{generation}/drop", ask_drop),
            web.post("/console/desktops/{desktop}/superseded/{server}/{generation}/drop", drop),
            web.get("/console/desktops/{desktop}/superseded/{server}/{generation}/put-back", ask_put_back),
            web.post("/console/desktops/{desktop}/superseded/{server}/{generation}/put-back", put_back),
        ]
    )


async def ask_retire(request: web.Request) -> web.Response:
    """Ask before a desktop is removed, and say whose it is."""
    return html_env.dialog(request, "console/dialog/retire.html", desktop=_desktop(request))


async def retire(request: web.Request) -> web.Response:
    """Remove a desktop, whoever uses it."""
    by, desktop = auth.require_admin(request).person.name, _desktop(request)
    lose = (await forms.read_form(request)).text("lose")
    await actions.retire_desktop(request.app[SERVICES], by, desktop["id"], lose=lose)
    return html_env.done(request, f"{desktop['name']} is being removed.", to=_PAGE)


async def retry(request: web.Request) -> web.Response:
    """Make a broken desktop anew."""
    by, desktop = auth.require_admin(request).person.name, _desktop(request)
    await actions.retry_desktop(request.app[SERVICES], by, desktop["id"])
    what = "is tried again" if desktop["protection"] else "is made anew"
    return html_env.done(request, f"{desktop['name']} {what}.", to=_PAGE)


async def ask_message(request: web.Request) -> web.Response:
    """Ask what whoever works on a desktop is to be told."""
    auth.require_admin(request)
    return html_env.dialog(request, "console/dialog/message.html", desktop=_desktop(request), most=MOST_LETTERS)


async def message(request: web.Request) -> web.Response:
    """Show a message to whoever works on a desktop."""
    by, desktop = auth.require_admin(request).person.name, _desktop(request)
    form = await forms.read_form(request)
    words = form.text("text", "the message")
    form.check()
    told = await actions.message(request.app[SERVICES], by, desktop["id"], words)
    where = ["in the desktop"] if not told["why_not_in_guest"] else []
    where += ["on the page of its screen"] if told["page"] else []
    text = f"{told['user']} is told {' and '.join(where)}."
    if not where:
        text = (
            f"{told['user']} reads it when they open the desktop's screen within an hour; the guest cannot be told."
        )
    return html_env.done(request, text, to=f"{_PAGE}/{desktop['id']}")


async def ask_drop(request: web.Request) -> web.Response:
    """Ask before a former disk is deleted."""
    desktop = _desktop(request)
    return html_env.dialog(request, "console/dialog/superseded.html", desktop=desktop, disk=_disk(request, desktop))


async def drop(request: web.Request) -> web.Response:
    """Delete a personal desktop's former disk."""
    by, desktop = auth.require_admin(request).person.name, _desktop(request)
    disk = _disk(request, desktop)
    await actions.drop_superseded(request.app[SERVICES], by, desktop["id"], disk["server"], disk["generation"])
    return html_env.done(
        request, f"The former disk on {disk['server_name']} is being deleted.", to=f"{_PAGE}/{desktop['id']}"
    )


async def ask_put_back(request: web.Request) -> web.Response:
    """Ask before a former disk is put back."""
    desktop = _desktop(request)
    return html_env.dialog(request, "console/dialog/put_back.html", desktop=desktop, disk=_disk(request, desktop))


async def put_back(request: web.Request) -> web.Response:
    """Let a personal desktop go on from a former disk."""
    by, desktop = auth.require_admin(request).person.name, _desktop(request)
    disk = _disk(request, desktop)
    await actions.put_back(request.app[SERVICES], by, desktop["id"], disk["server"], disk["generation"])
    return html_env.done(
        request, f"It goes on from its former disk on {disk['server_name']}.", to=f"{_PAGE}/{desktop['id']}"
    )


def _disk(request: web.Request, desktop: dict[str, Any]) -> dict[str, Any]:
    key = (request.match_info["server"], request.match_info["generation"])
    for disk in desktop["superseded"]:
        if (disk["server"], str(disk["generation"])) == key:
            return dict(disk)
    raise NotFound("there is no such former disk (any more)")


def _desktop(request: web.Request) -> dict[str, Any]:
    session = auth.require_admin(request)
    return present.desktop_of(request.app[SERVICES], session, request.match_info["desktop"])
