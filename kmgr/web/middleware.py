"""What every answer has in common: errors as statuses, and headers that keep browsers strict.

Handlers raise; here the error tree becomes JSON under `/api/` and a page elsewhere.
"""

import logging
from http import HTTPStatus
from urllib.parse import quote

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from kmgr.errors import KmgrError, NotLoggedIn
from kmgr.web import html_env
from kmgr.web.flood import retry_after
from kmgr.web.uploads import refuse

logger = logging.getLogger(__name__)

_CONTENT_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self' wss:",
        "object-src 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _CONTENT_POLICY,
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_YEAR_S = 31_536_000

# What aiohttp itself refuses, in our words: status → (code, message).
_REFUSED = {
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take {method} requests."),
    411: ("length_required", "Say how long the body is (Content-Length): it is checked against the free disk space."),
    413: ("too_large", "The body of this request is too large: at most 1 MiB is taken here."),
}
_BUG = "This server made a mistake, and its log has the details. Try again; if it stays, tell your administrator."
_TITLES = {
    400: "This cannot be done as it was asked",
    401: "You cannot log in",
    403: "You may not do this",
    404: "There is nothing here",
    409: "This has changed in the meantime",
    429: "Too many tries",
    500: "This server made a mistake",
    503: "Not at this moment",
    504: "It is not known whether this was done",
}


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what handlers raise into an answer; a bug is logged and says nothing about itself to the outside."""
    try:
        return await handler(request)
    except KmgrError as error:
        answer = _answer(request, error.http_status, error.code, error.message)
        answer.headers.update(retry_after(error))
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        code, message = _REFUSED.get(error.status, ("refused", error.reason))
        answer = _answer(request, error.status, code, message.format(method=request.method))
        if hdrs.ALLOW in error.headers:
            answer.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    except (ConnectionResetError, BrokenPipeError, web.RequestPayloadError):
        return _answer(request, 400, "broken_off", "The request broke off before it was complete: send it again.")
    except Exception:
        logger.exception("a request failed by a bug", extra={"method": request.method, "path": request.path})
        answer = _answer(request, 500, "bug", _BUG)
    return await refuse(request, answer)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Put the security headers on an answer, whatever made it; a signal of the application."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers[hdrs.SERVER] = "kmgr"
    if request.path.startswith("/static/") and response.status < HTTPStatus.BAD_REQUEST:
        fixed = f"public, max-age={_YEAR_S}, immutable"
        response.headers.setdefault(hdrs.CACHE_CONTROL, fixed if "v" in request.query else "no-cache")
    else:
        response.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")


def is_api(request: web.Request) -> bool:
    """Tell whether a program asks, so that JSON is the answer."""
    return request.path.startswith("/api/")


def json_error(status: int, code: str, message: str) -> web.Response:
    """Answer an error as JSON."""
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


def _answer(request: web.Request, status: int, code: str, message: str) -> web.Response:
    if is_api(request):
        return json_error(status, code, message)
    if code == NotLoggedIn.code:
        return _to_log_in(request)
    title = _TITLES.get(status, HTTPStatus(status).phrase)
    return html_env.error_page(request, status, title, message)


def _to_log_in(request: web.Request) -> web.Response:
    # After logging in, a person goes on with the page; a form's address is no page.
    back = f"?next={quote(request.path_qs, safe='/')}" if request.method == hdrs.METH_GET else ""
    if html_env.is_htmx(request):
        return web.Response(status=401, headers={"HX-Redirect": "/login"})
    return web.Response(status=303, headers={hdrs.LOCATION: f"/login{back}"})
