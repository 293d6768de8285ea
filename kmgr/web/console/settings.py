"""What an administrator does with the grid-wide settings: change them, several at once."""

from typing import Any

from aiohttp import web

from kmgr.web import actions, auth, forms, html_env, present
from kmgr.web.forms import Form
from kmgr.web.records import Item
from kmgr.web.services import SERVICES

_PAGE = "/console/settings"
# The value that the form was made with: only what its reader changed is stored, not what others changed meanwhile.
_BEFORE = "before-"


def add_routes(app: web.Application) -> None:
    """Add what is done with settings."""
    app.add_routes([web.get("/console/settings/edit", ask_edit), web.post("/console/settings/edit", update)])


async def ask_edit(request: web.Request) -> web.Response:
    """Show the form of all settings."""
    auth.require_admin(request)
    found = present.settings(request.app[SERVICES])
    return html_env.dialog(request, "console/dialog/settings.html", settings=found, before=_BEFORE)


async def update(request: web.Request) -> web.Response:
    """Store what was changed, all of it or nothing."""
    by, services = auth.require_admin(request).person.name, request.app[SERVICES]
    form = await forms.read_form(request)
    known = present.settings(services)
    changes = forms.checked(form, lambda read: _changes(read, known))
    if not changes:
        return html_env.done(request, "Nothing was changed.", to=_PAGE)
    await actions.set_settings(services, by, changes)
    told = "; ".join(f"{one['help']}: {one['value']}" for one in present.settings(services) if one["name"] in changes)
    return html_env.done(request, f"Changed: {told}.", to=_PAGE)


def _changes(form: Form, known: list[Item]) -> dict[str, Any]:
    found = {
        one["name"]: form.number(one["name"], one["help"], least=one["least"], most=one["most"]) for one in known
    }
    return {name: value for name, value in found.items() if form.text(f"{_BEFORE}{name}") != str(value)}
