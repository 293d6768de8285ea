"""The portal's pages: log in, my desktops, one desktop's screen.

Handlers are thin: what is shown comes from `present`, what is done from `actions`.
"""

from typing import Any
from urllib.parse import quote

from aiohttp import web

from kmgr.errors import KmgrError, OutcomeUnknown, Unavailable
from kmgr.grid.queries import settings
from kmgr.users.access import may_administer
from kmgr.users.broker import Ready, Wait
from kmgr.users.directory import WrongPassword
from kmgr.users.model import normalised
from kmgr.users.queries import locked_until
from kmgr.users.sessions import Throttled
from kmgr.web import actions, auth, forms, html_env, present
from kmgr.web.flood import TooMany, retry_after
from kmgr.web.services import SERVICES

_LOCAL = "/"


def add_routes(app: web.Application) -> None:
    """Add the portal to a server of a grid."""
    app.add_routes(
        [
            web.get("/login", show_login),
            web.post("/login", log_in),
            web.post("/logout", log_out),
            web.get("/", home),
            web.get("/part/offers", offers),
            web.post("/open/{template}", open_desktop),
            web.get("/release/{desktop}", ask_release),
            web.post("/release/{desktop}", release),
            web.get("/desktop/{desktop}", desktop),
        ]
    )


async def show_login(request: web.Request) -> web.Response:
    """Show the log-in form; whoever is logged in goes on."""
    onward = own_page(request.query.get("next", ""))
    if auth.maybe_session(request) is not None:
        return html_env.see_other(onward)
    return _login_page(request, onward=onward)


async def log_in(request: web.Request) -> web.Response:
    """Open a session and go on, or say why not; the name stays in the form."""
    form = await forms.read_form(request)
    user, onward = form.text("user"), own_page(form.text("next"))
    try:
        password = form.secret("password", "the password")
        token, session = await actions.log_in(request, user, password)
    except KmgrError as error:
        return _login_page(request, onward=onward, user=user, error=error)
    if onward == _LOCAL and may_administer(session.person).allowed and not _uses_desktops(request, token):
        onward = "/console"
    answer = html_env.see_other(onward)
    auth.set_cookie(answer, token)
    return answer


async def log_out(request: web.Request) -> web.Response:
    """End the session and show the log-in form."""
    await request.app[SERVICES].sessions.log_out(auth.token_of(request))
    answer = html_env.see_other("/login")
    auth.clear_cookie(answer)
    return answer


async def home(request: web.Request) -> web.Response:
    """Show what this person may use."""
    return _offers(request, "portal/home.html")


async def offers(request: web.Request) -> web.Response:
    """Return the live part of the first page."""
    return _offers(request, "portal/offers.html")


async def open_desktop(request: web.Request) -> web.Response:
    """Give a desktop and go to its screen, or wait for one: the card then asks again by itself."""
    session, template = auth.session_of(request), request.match_info["template"]
    services = request.app[SERVICES]
    now = services.clock.now_ms()
    since = _stamp(request.query.get("since"), now)
    match await actions.open_desktop(services, session, template):
        case Ready(desktop=given):
            return html_env.go(request, f"/desktop/{given.id}")
        case Wait() as wait if html_env.is_htmx(request):
            return _waiting(request, wait, passed_s=(now - since) / 1000)
        case Wait():
            return html_env.see_other(f"/?waiting={quote(template)}&since={now}")


async def ask_release(request: web.Request) -> web.Response:
    """Ask whether a desktop shall really be given back."""
    found = present.desktop_of(request.app[SERVICES], auth.session_of(request), request.match_info["desktop"])
    return html_env.dialog(request, "portal/release.html", desktop=found)


async def release(request: web.Request) -> web.Response:
    """Give a desktop back."""
    session, wanted = auth.session_of(request), request.match_info["desktop"]
    found = present.desktop_of(request.app[SERVICES], session, wanted)
    await actions.release_desktop(request.app[SERVICES], session, wanted)
    return html_env.done(request, f"{found['name']} was given back.", to="/")


async def desktop(request: web.Request) -> web.Response:
    """Show the screen of a desktop; its script gets a ticket and connects."""
    found = present.desktop_of(request.app[SERVICES], auth.session_of(request), request.match_info["desktop"])
    return html_env.page(request, "portal/desktop.html", desktop=found)


def _offers(request: web.Request, name: str) -> web.Response:
    session = auth.session_of(request)
    found = present.offers(request.app[SERVICES], session)
    now = request.app[SERVICES].clock.now_ms()
    waiting = request.query.get("waiting", "")
    # What has arrived meanwhile is not waited for: its card offers to open it.
    if any(one["template"] == waiting and one["desktop"] for one in found):
        waiting = ""
    since = _stamp(request.query.get("since"), now)
    return html_env.page(request, name, offers=found, waiting=waiting, since=since)


def _waiting(request: web.Request, wait: Wait, *, passed_s: float) -> web.Response:
    percent = None
    if wait.estimate_s is not None:
        whole = max(1.0, passed_s + wait.estimate_s)
        percent = min(99, round(100 * passed_s / whole))
    values: dict[str, Any] = {"estimate_s": wait.estimate_s, "reason": wait.reason, "percent": percent}
    return html_env.page(request, "portal/waiting.html", **values)


def _login_page(request: web.Request, *, onward: str, user: str = "", error: KmgrError | None = None) -> web.Response:
    # A lock, an unreachable directory or a grid without a majority is nothing that the person did wrong.
    waits = isinstance(error, Throttled | TooMany | Unavailable | OutcomeUnknown)
    kind = "warning" if waits else "danger"
    status = error.http_status if error is not None else 200
    values = {"next": onward, "user": user, "kind": kind}
    told = {"error": _told(request, user, error), "error_code": error.code if error else ""}
    answer = html_env.page(request, "login.html", status=status, **values, **told)
    answer.headers.update(retry_after(error))
    return answer


def _told(request: web.Request, user: str, error: KmgrError | None) -> str:
    """Say what went wrong; after a wrong password also what comes next: the same for names that nobody has."""
    if not isinstance(error, WrongPassword):
        return error.message if error is not None else ""
    services = request.app[SERVICES]
    with services.grid.view() as db:
        known, until = settings(db), locked_until(db, normalised(user))
    wait_s = (until - services.clock.now_ms() + 999) // 1000
    if wait_s > 0:
        return f"{error.message} That was one wrong try too many: this name can log in again in {wait_s} s."
    return (
        f"{error.message} After {known['login_tries']} wrong tries in a row a name waits {known['login_wait_s']} s."
    )


def _uses_desktops(request: web.Request, token: str) -> bool:
    services = request.app[SERVICES]
    session = services.sessions.session_of(token)
    return session is not None and bool(services.broker.offers(session.person))


def own_page(wanted: str) -> str:
    """Return the page to go on to: only one of ours, never another site's."""
    plain = wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and wanted.isprintable()
    return wanted if plain and not wanted.startswith("/login") else _LOCAL


def _stamp(text: str | None, now: int) -> int:
    return min(now, int(text)) if text and text.isascii() and text.isdecimal() else now
