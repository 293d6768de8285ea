"""What an administrator does with people: built-in accounts and sessions."""

from typing import Any

from aiohttp import web

from kmgr.users.model import Role
from kmgr.web import actions, auth, forms, html_env, present
from kmgr.web.services import SERVICES

_PAGE = "/console/users"


def add_routes(app: web.Application) -> None:
    """Add what is done with accounts and sessions."""
    at = "/console/accounts/{name}"
    app.add_routes(
        [
            web.get("/console/accounts/new", ask_new),
            web.post("/console/accounts/new", create),
            web.get(f"{at}/edit", ask_edit),
            web.post(f"{at}/edit", update),
            web.get(f"{at}/password", ask_password),
            web.post(f"{at}/password", set_password),
            web.post(f"{at}/disable", disable),
            web.post(f"{at}/enable", enable),
            web.get(f"{at}/delete", ask_delete),
            web.post(f"{at}/delete", delete),
            web.post("/console/sessions/{name}/end", end_sessions),
        ]
    )


async def ask_new(request: web.Request) -> web.Response:
    """Show the form for a new account."""
    auth.require_admin(request)
    return html_env.dialog(request, "console/dialog/account.html", account=None)


async def create(request: web.Request) -> web.Response:
    """Make an account."""
    by, form = auth.require_admin(request).person.name, await forms.read_form(request)
    values = {
        "name": form.text("name", "the name"),
        "display_name": form.text("display_name"),
        "role": form.choice("role", "role", Role),
        "groups": form.words("groups"),
        "password": form.secret("password", "the password"),
    }
    form.check()
    made = await actions.create_account(request.app[SERVICES], by, values)
    return html_env.done(request, f"Account {made['name']} was made.", to=_PAGE)


async def ask_edit(request: web.Request) -> web.Response:
    """Show the form of an account."""
    return html_env.dialog(request, "console/dialog/account.html", account=_account(request))


async def update(request: web.Request) -> web.Response:
    """Change an account."""
    account, form = _account(request), await forms.read_form(request)
    changes = {
        "display_name": form.text("display_name") or account["name"],
        "role": form.choice("role", "role", Role),
        "groups": form.words("groups"),
    }
    form.check()
    await _update(request, account["name"], changes)
    return html_env.done(request, f"Account {account['name']} was changed.", to=_PAGE)


async def ask_password(request: web.Request) -> web.Response:
    """Show the form for another password."""
    return html_env.dialog(request, "console/dialog/password.html", account=_account(request))


async def set_password(request: web.Request) -> web.Response:
    """Give an account another password."""
    account, form = _account(request), await forms.read_form(request)
    password = form.secret("password", "the password")
    form.same("password", "again", "the password")
    form.check()
    await actions.set_password(request.app[SERVICES], _by(request), account["name"], password)
    return html_env.done(request, f"{account['name']} has a new password.", to=_PAGE)


async def disable(request: web.Request) -> web.Response:
    """Let nobody log in with an account."""
    account = _account(request)
    await _update(request, account["name"], {"disabled": True})
    return html_env.done(request, f"{account['name']} cannot log in any more.", to=_PAGE)


async def enable(request: web.Request) -> web.Response:
    """Let an account be used again."""
    account = _account(request)
    await _update(request, account["name"], {"disabled": False})
    return html_env.done(request, f"{account['name']} can log in again.", to=_PAGE)


async def ask_delete(request: web.Request) -> web.Response:
    """Ask before an account is deleted."""
    services = request.app[SERVICES]
    return html_env.dialog(
        request,
        "console/dialog/delete_account.html",
        account=_account(request),
        directories=present.directories(services),
    )


async def delete(request: web.Request) -> web.Response:
    """Delete an account."""
    account, form = _account(request), await forms.read_form(request)
    moves = form.ticked("moves")
    await actions.delete_account(request.app[SERVICES], _by(request), account["name"], moves=moves)
    said = f"Account {account['name']} was deleted."
    return html_env.done(request, f"{said} Its desktops stay." if moves else said, to=_PAGE)


async def end_sessions(request: web.Request) -> web.Response:
    """Log a person out everywhere."""
    name = request.match_info["name"]
    await actions.close_sessions(request.app[SERVICES], _by(request), name)
    return html_env.done(request, f"{name} was logged out everywhere.", to=_PAGE)


async def _update(request: web.Request, name: str, changes: dict[str, Any]) -> None:
    await actions.update_account(request.app[SERVICES], _by(request), name, changes)


def _account(request: web.Request) -> dict[str, Any]:
    auth.require_admin(request)
    return present.account_of(request.app[SERVICES], request.match_info["name"])


def _by(request: web.Request) -> str:
    return auth.require_admin(request).person.name
