"""What an administrator does with directories of people (LDAP, AD): set one up, try it, forget it."""

from typing import Any

from aiohttp import web

from kmgr.entropy import new_id
from kmgr.errors import NotFound
from kmgr.web import actions, auth, forms, html_env, present
from kmgr.web.forms import Form
from kmgr.web.services import SERVICES

_PAGE = "/console/users"


def add_routes(app: web.Application) -> None:
    """Add what is done with directories."""
    app.add_routes(
        [
            web.get("/console/directories/new", ask_new),
            web.post("/console/directories/test", test),
            web.get("/console/directories/{directory}/edit", ask_edit),
            web.post("/console/directories/{directory}/edit", save),
            web.get("/console/directories/{directory}/delete", ask_delete),
            web.post("/console/directories/{directory}/delete", delete),
        ]
    )


async def ask_new(request: web.Request) -> web.Response:
    """Show the form for a new directory."""
    auth.require_admin(request)
    return html_env.dialog(request, "console/dialog/directory.html", directory=None, id=new_id("dir"))


async def ask_edit(request: web.Request) -> web.Response:
    """Show the form of a directory."""
    found = _directory(request)
    return html_env.dialog(request, "console/dialog/directory.html", directory=found, id=found["id"])


async def test(request: web.Request) -> web.Response:
    """Log a person in at the directory as typed, without saving it."""
    auth.require_admin(request)
    form = await forms.read_form(request)
    values = _values(form)
    user, password = form.text("test_user", "a name to try"), form.secret("test_password", "the password to try")
    form.check()
    who = await actions.try_directory(request.app[SERVICES], form.text("id") or new_id("dir"), values, user, password)
    return html_env.page(request, "fragment/success.html", title="It works", message=who)


async def save(request: web.Request) -> web.Response:
    """Add or change a directory."""
    by = auth.require_admin(request).person.name
    values = forms.checked(await forms.read_form(request), _values)
    await actions.set_directory(request.app[SERVICES], by, request.match_info["directory"], values)
    return html_env.done(request, "The directory was saved.", to=_PAGE)


async def ask_delete(request: web.Request) -> web.Response:
    """Ask before a directory is forgotten."""
    return html_env.dialog(request, "console/dialog/delete_directory.html", directory=_directory(request))


async def delete(request: web.Request) -> web.Response:
    """Forget a directory."""
    by, found = auth.require_admin(request).person.name, _directory(request)
    await actions.remove_directory(request.app[SERVICES], by, found["id"])
    return html_env.done(request, "The directory was removed.", to=_PAGE)


def _values(form: Form) -> dict[str, Any]:
    urls = form.words("urls")
    if not urls:
        form.add_problem("the address is missing")
    return {
        "urls": urls,
        "base_dn": form.text("base_dn", "where people are"),
        "user_filter": form.text("user_filter", "how a person is found"),
        "bind_name": form.text("bind_name", "how a person logs in"),
        "ca_pem": form.text("ca_pem"),
        "start_tls": form.ticked("start_tls"),
        "admin_group": form.text("admin_group"),
    }


def _directory(request: web.Request) -> dict[str, Any]:
    auth.require_admin(request)
    wanted = request.match_info["directory"]
    for one in present.directories(request.app[SERVICES]):
        if one["id"] == wanted:
            return one
    raise NotFound("This directory was removed in the meantime.")
