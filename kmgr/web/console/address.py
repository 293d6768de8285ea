"""What an administrator does with the grid address."""

from aiohttp import web

from kmgr.web import address, auth, forms, html_env
from kmgr.web.services import SERVICES


def add_routes(app: web.Application) -> None:
    """Add what is done with the grid address."""
    app.add_routes([web.get("/console/servers/address", ask), web.post("/console/servers/address", change)])


async def ask(request: web.Request) -> web.Response:
    """Show the form."""
    auth.require_admin(request)
    return html_env.dialog(request, "console/dialog/address.html", floating=address.shown(request.app[SERVICES]))


async def change(request: web.Request) -> web.Response:
    """Choose another one, or none."""
    by, form = auth.require_admin(request).person.name, await forms.read_form(request)
    found = await address.change(request.app[SERVICES], by, form.text("address"))
    text = f"The grid address is {found['address']}." if found["address"] else "The grid has no address of its own."
    return html_env.done(request, text, to="/console/servers")
