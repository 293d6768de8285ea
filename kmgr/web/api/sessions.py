"""API: logging in and out."""

import asyncio

from aiohttp import web

from kmgr.web import actions, auth, present
from kmgr.web.api.fields import Fields, text
from kmgr.web.api.shapes import WHOLE, page, record, ref
from kmgr.web.api.table import PAGING, Access, Call, Route, answer, listed, nothing

_LOG_IN: Fields = {
    "user": text("the name of an account or of a person of the directory", required=True, most=200),
    "password": text("their password", required=True, secret=True),
}


async def log_in(call: Call) -> web.Response:
    """Open a session; its token goes into the answer and into the browser's cookie."""
    token, session = await actions.log_in(call.request, call.body["user"], call.body["password"])
    person = session.person
    said = {
        "token": token,
        "user": person.name,
        "display_name": person.display_name,
        "role": str(person.role),
        "expires_at": session.expires_at,
    }
    response = answer(said, 201)
    auth.set_cookie(response, token)
    return response


async def sessions(call: Call) -> web.Response:
    """Return the living sessions."""
    found = await asyncio.to_thread(present.sessions, call.services, call.session)
    return listed(call, found, lambda one: (-one["created_at"], one["user"], one["address"], one["server"]))


async def log_out(call: Call) -> web.Response:
    """End the session of this request."""
    await call.services.sessions.log_out(auth.token_of(call.request))
    response = nothing()
    auth.clear_cookie(response)
    return response


async def close_all(call: Call) -> web.Response:
    """End all sessions of a person."""
    return answer({"closed": await actions.close_sessions(call.services, call.by, call.part("user"))})


ROUTES = (
    Route(
        "POST", "/sessions", log_in, Access.ANYONE, "Log in",
        {201: ref("LogIn")}, body=_LOG_IN,
    ),
    Route(
        "GET", "/sessions", sessions, Access.USER, "The sessions: all for an administrator, else one's own",
        {200: page("Session")}, query=PAGING,
    ),
    Route("DELETE", "/sessions/current", log_out, Access.USER, "Log out", {204: None}),
    Route(
        "DELETE", "/sessions/of/{user}", close_all, Access.ADMIN, "End all sessions of a person",
        {200: record({"closed": WHOLE})},
    ),
)  # fmt: skip
