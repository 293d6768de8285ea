"""API: built-in accounts, and the directories of people."""

import asyncio

from aiohttp import web

from kmgr.users.model import Role
from kmgr.users.passwords import LEAST_LENGTH, MOST_LENGTH
from kmgr.web import actions, present
from kmgr.web.api.fields import Field, Fields, Kind, choice, flag, text
from kmgr.web.api.shapes import TEXT, page, record, ref
from kmgr.web.api.table import PAGING, Access, Call, Route, answer, listed, nothing

_PASSWORD = Field(Kind.TEXT, "the password", required=True, least=LEAST_LENGTH, most=MOST_LENGTH, secret=True)
_CHANGE: Fields = {
    "display_name": text("how people see them", most=200),
    "role": choice("what they may do", *Role),
    "groups": Field(Kind.TEXTS, "the groups they belong to"),
    "disabled": flag("may not log in"),
}
_CREATE: Fields = {
    "name": text("the name they log in with", required=True, most=64),
    "password": _PASSWORD,
    **{name: one for name, one in _CHANGE.items() if name != "disabled"},
}
_MOVES: Fields = {"moves": flag("the same person logs in by a directory from now on, and keeps what the name has")}
_DIRECTORY: Fields = {
    "urls": Field(Kind.TEXTS, "ldaps:// or ldap:// addresses, tried in order", required=True),
    "base_dn": text("where people and groups are looked for", required=True),
    "user_filter": text("how an entry is found; {name} is who logs in", required=True),
    "bind_name": text("how a person binds; {name} is who logs in", required=True),
    "ca_pem": text("the certificate that signs the servers' ones; empty: the machine's list", most=50_000),
    "start_tls": flag("ldap:// is turned into TLS"),
    "admin_group": text("members of this group administer the grid"),
}
_TRY: Fields = {
    "id": text("the directory's name", most=40),
    **_DIRECTORY,
    "user": text("who logs in", required=True, most=200),
    "password": text("their password", required=True, secret=True),
}


async def accounts(call: Call) -> web.Response:
    """Return the built-in accounts."""
    return listed(call, await asyncio.to_thread(present.accounts, call.services), lambda one: (one["name"],))


async def create(call: Call) -> web.Response:
    """Add an account."""
    return answer(await actions.create_account(call.services, call.by, call.body), 201)


async def change(call: Call) -> web.Response:
    """Change an account."""
    return answer(await actions.update_account(call.services, call.by, call.part("name"), call.body))


async def set_password(call: Call) -> web.Response:
    """Give an account another password."""
    await actions.set_password(call.services, call.by, call.part("name"), call.body["password"])
    return nothing()


async def delete(call: Call) -> web.Response:
    """Remove an account."""
    await actions.delete_account(call.services, call.by, call.part("name"), moves=call.query.get("moves", False))
    return nothing()


async def directories(call: Call) -> web.Response:
    """Return the directories."""
    return listed(call, present.directories(call.services), lambda one: (one["id"],))


async def put_directory(call: Call) -> web.Response:
    """Add or change a directory."""
    return answer(await actions.set_directory(call.services, call.by, call.part("id"), call.body))


async def remove_directory(call: Call) -> web.Response:
    """Forget a directory."""
    await actions.remove_directory(call.services, call.by, call.part("id"))
    return nothing()


async def try_directory(call: Call) -> web.Response:
    """Log somebody in at a directory that need not be saved yet."""
    body = call.body
    who = await actions.try_directory(
        call.services, body.get("id", "directory"), body, body["user"], body["password"]
    )
    return answer({"who": who})


ROUTES = (
    Route(
        "GET", "/accounts", accounts, Access.ADMIN, "The built-in accounts",
        {200: page("Account")}, query=PAGING,
    ),
    Route("POST", "/accounts", create, Access.ADMIN, "Add an account", {201: ref("Account")}, body=_CREATE),
    Route(
        "PATCH", "/accounts/{name}", change, Access.ADMIN, "Change an account",
        {200: ref("Account")}, body=_CHANGE,
    ),
    Route(
        "POST", "/accounts/{name}/password", set_password, Access.ADMIN,
        "Give an account another password; its sessions end",
        {204: None}, body={"password": _PASSWORD},
    ),
    Route(
        "DELETE", "/accounts/{name}", delete, Access.ADMIN,
        "Remove an account; refused while a desktop is kept for it, unless its person moves to a directory",
        {204: None}, query=_MOVES,
    ),
    Route(
        "GET", "/directories", directories, Access.ADMIN, "The LDAP and AD directories, in the order asked",
        {200: page("Directory")}, query=PAGING,
    ),
    Route(
        "PUT", "/directories/{id}", put_directory, Access.ADMIN, "Add or change a directory",
        {200: ref("Directory")}, body=_DIRECTORY,
    ),
    Route("DELETE", "/directories/{id}", remove_directory, Access.ADMIN, "Forget a directory", {204: None}),
    Route(
        "POST", "/directories/test", try_directory, Access.ADMIN,
        "Log somebody in at a directory that need not be saved yet",
        {200: record({"who": TEXT})}, body=_TRY,
    ),
)  # fmt: skip
