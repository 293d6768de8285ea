"""Who is asking, and whether the request came from our own pages.

A session is a token in a cookie, or in `Authorization: Bearer` for programs. A
browser sends the cookie by itself, so whatever changes something must also carry
a word that only our pages know: it is derived from the token (every server
derives the same one), or, before there is a session, from a random cookie
of the form. Bearer requests need none: nothing sends that header by itself.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from kmgr.entropy import new_token
from kmgr.errors import NotAllowed, NotLoggedIn, Refused
from kmgr.users.access import may_administer
from kmgr.users.model import Session
from kmgr.web.services import SERVICES

COOKIE = "__Host-kmgr"
FORM_COOKIE = "__Host-kmgr-form"
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf"

_SAFE: Final = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})
_OWN_SITES: Final = frozenset({"same-origin", "none"})
_BEARER = "bearer "
# The only address of the API that does something for whoever is not logged in.
LOG_IN = "/api/v1/sessions"
_FILES = "/static/"
_FORM = "application/x-www-form-urlencoded"

_SESSION: web.RequestKey[Session | None] = web.RequestKey("session", Session)
_FRESH_SECRET: web.RequestKey[str] = web.RequestKey("fresh_secret", str)


def token_of(request: web.Request) -> str:
    """Return the session token that a request carries, empty if none; a header counts before the cookie."""
    return _bearer(request) or request.cookies.get(COOKIE, "")


def maybe_session(request: web.Request) -> Session | None:
    """Return the session of a request, or None if nobody is logged in."""
    if _SESSION not in request:
        services, token = request.app.get(SERVICES), token_of(request)
        request[_SESSION] = services.sessions.session_of(token) if services is not None and token else None
    return request[_SESSION]


def session_of(request: web.Request) -> Session:
    """Return the session of a request; raise `NotLoggedIn` if there is none."""
    session = maybe_session(request)
    if session is None:
        raise NotLoggedIn("You are not logged in, or your session has ended. Log in and try again.")
    return session


def require_admin(request: web.Request) -> Session:
    """Return the session of an administrator; raise `NotAllowed` with the reason for anybody else."""
    session = session_of(request)
    verdict = may_administer(session.person)
    if not verdict.allowed:
        raise NotAllowed(f"This is for administrators, and {verdict.reason}. Ask one of them.")
    return session


def set_cookie(response: web.StreamResponse, token: str) -> None:
    """Give the browser its session; it ends there with the browser, and here when it expires."""
    _keep(response, COOKIE, token)


def clear_cookie(response: web.StreamResponse) -> None:
    """Take the session from the browser."""
    response.del_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="Strict")


def csrf_token(request: web.Request) -> str:
    """Return the word that this browser's forms and scripts must carry."""
    if maybe_session(request) is not None:
        return word(token_of(request))
    secret = request.cookies.get(FORM_COOKIE) or request.get(_FRESH_SECRET)
    if not secret:
        secret = request[_FRESH_SECRET] = new_token()
    return word(secret)


async def check_csrf(request: web.Request) -> None:
    """Raise `NotAllowed` for a change that another site's page may have caused."""
    if request.method in _SAFE:
        return
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in _OWN_SITES:
        raise NotAllowed("This request came from another site's page, so nothing was done.", code="cross_site")
    if _bearer(request):
        return
    known = maybe_session(request) is not None
    if not known and request.path.startswith("/api/"):
        # Nothing that a browser sends by itself gives this request a right; JSON it never sends to another site.
        if request.can_read_body and request.content_type != "application/json":
            if SERVICES in request.app and request.path != LOG_IN:
                session_of(request)
            raise Refused("Send the body as JSON, with Content-Type: application/json.", code="bad_body")
        return
    secret = request.cookies.get(COOKIE if known else FORM_COOKIE, "")
    shown = request.headers.get(CSRF_HEADER) or await _field(request)
    if not secret or not hmac.compare_digest(word(secret).encode(), shown.encode()):
        raise NotAllowed(
            "This page is older than your session, so nothing was done. Load it again and repeat the step.",
            code="csrf",
        )


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check every change for its origin; give forms their cookie; renew the session that is used."""
    await check_csrf(request)
    if not request.path.startswith(_FILES) and (session := maybe_session(request)) is not None:
        await request.app[SERVICES].sessions.keep(session)
    response = await handler(request)
    fresh = request.get(_FRESH_SECRET)
    if fresh and not response.prepared:
        _keep(response, FORM_COOKIE, fresh)
    return response


def _bearer(request: web.Request) -> str:
    value = request.headers.get(hdrs.AUTHORIZATION, "")
    return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else ""


async def _field(request: web.Request) -> str:
    if request.content_type != _FORM:
        return ""
    form: Mapping[str, object] = await request.post()
    return str(form.get(CSRF_FIELD, ""))


def word(secret: str) -> str:
    """Return the word that pages carry, made from the secret of a session or a form."""
    return hmac.new(secret.encode(), b"kmgr csrf", hashlib.sha256).hexdigest()


def _keep(response: web.StreamResponse, name: str, value: str) -> None:
    response.set_cookie(name, value, path="/", secure=True, httponly=True, samesite="Strict")
