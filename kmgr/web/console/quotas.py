"""What an administrator does with quotas: say how many desktops somebody may have, and take that back."""

from aiohttp import web

from kmgr.provision.allowance import Whom
from kmgr.provision.quota_commands import MOST
from kmgr.web import auth, forms, html_env, present, quotas
from kmgr.web.services import SERVICES

_PAGE = "/console/users"


def add_routes(app: web.Application) -> None:
    """Add what is done with quotas."""
    app.add_routes(
        [
            web.get("/console/quotas/new", ask),
            web.post("/console/quotas/new", change),
            web.post("/console/quotas/drop", drop),
        ]
    )


async def ask(request: web.Request) -> web.Response:
    """Show the form."""
    auth.require_admin(request)
    services = request.app[SERVICES]
    accounts = present.accounts(services)
    values = {
        "accounts": [one["name"] for one in accounts],
        "groups": sorted({group for one in accounts for group in one["groups"]}),
        "templates": present.templates(services),
    }
    return html_env.dialog(request, "console/dialog/quota.html", **values)


async def change(request: web.Request) -> web.Response:
    """Set a quota."""
    by, form = auth.require_admin(request).person.name, await forms.read_form(request)
    whom = form.choice("whom", "for whom", Whom)
    values = {
        "whom": whom,
        "subject": form.text("subject", "the name"),
        "template": form.text("template") if whom == Whom.GROUP else "",
        "most": form.number("most", "how many desktops", least=0, most=MOST),
    }
    form.check()
    await quotas.change(request.app[SERVICES], by, values)
    return html_env.done(request, "The quota counts from now on.", to=_PAGE)


async def drop(request: web.Request) -> web.Response:
    """Drop a quota."""
    by, form = auth.require_admin(request).person.name, await forms.read_form(request)
    values = {name: form.text(name) for name in ("whom", "subject", "template")}
    await quotas.drop(request.app[SERVICES], by, values)
    return html_env.done(request, "The quota was dropped.", to=_PAGE)
