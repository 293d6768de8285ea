"""Pages from templates: the only file that knows jinja2.

Everything is escaped by default. A page is a whole document; a fragment is what htmx puts into one.
After an action a handler answers `done(...)`: htmx closes the dialog, shows a note and refreshes what is live;
a browser without it is sent on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from kmgr.clock import SystemClock
from kmgr.web import auth, words
from kmgr.web.services import SERVICES, SETUP

FOLDER = Path(__file__).parent / "html"
ENVIRONMENT: web.AppKey[Environment] = web.AppKey("html", Environment)

# The console's menu: address, title, icon.
_MENU = (
    ("overview", "Overview", "home"),
    ("servers", "Servers", "server"),
    ("images", "Golden images", "image"),
    ("templates", "Templates", "template"),
    ("desktops", "Desktops", "desktop"),
    ("users", "Users", "users"),
    ("events", "Events", "events"),
    ("settings", "Settings", "settings"),
    ("help", "Help", "book"),
)
# Where the browser is told to put an error that has no place of its own.
_TOAST = {"HX-Retarget": "#toasts", "HX-Reswap": "beforeend"}


def set_up(app: web.Application) -> None:
    """Give an application its templates."""
    app[ENVIRONMENT] = environment(_version(app))


def environment(version: str) -> Environment:
    """Return the templates with their filters; `version` makes browsers ask anew for scripts after an upgrade."""
    found = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.globals.update(asset=lambda name: f"/static/{name}?v={version}", plural=words.plural)
    found.filters.update(
        size=words.size,
        mib=words.mib,
        span=words.span,
        lasted=words.lasted,
        ago_words=words.ago,
        state_name=words.state_name,
        state_colour=words.state_colour,
        level=words.level,
        sentence=words.sentence,
        unit=words.unit,
        when=_when,
    )
    found.globals["used_percent"] = words.used_percent
    return found


def page(request: web.Request, name: str, /, *, status: int = 200, **values: Any) -> web.Response:
    """Answer with a template, whole page or fragment alike."""
    return web.Response(text=_render(request, name, values), status=status, content_type="text/html")


def dialog(request: web.Request, name: str, /, **values: Any) -> web.Response:
    """Answer with the content of a dialog; opened by its address it stands on a page of its own."""
    if is_htmx(request):
        return page(request, name, **values)
    return page(request, "console/alone.html", content=name, section="", title="", **values)


def done(request: web.Request, text: str, *, to: str) -> web.Response:
    """Answer after an action: `text` is the note, `to` the page to see what came of it."""
    if is_htmx(request):
        note = json.dumps({"kmgr:done": {"text": text}})
        return web.Response(status=204, headers={"HX-Trigger": note})
    return see_other(to)


def go(request: web.Request, to: str) -> web.Response:
    """Send the browser to another page, also out of an htmx request."""
    return web.Response(status=204, headers={"HX-Redirect": to}) if is_htmx(request) else see_other(to)


def see_other(to: str) -> web.Response:
    """Answer 303 to a page of ours."""
    return web.Response(status=303, headers={"Location": to})


def is_htmx(request: web.Request) -> bool:
    """Tell whether htmx asks, so that a fragment is the answer."""
    return "HX-Request" in request.headers


def error_page(request: web.Request, status: int, title: str, message: str) -> web.Response:
    """Answer with an error: a page, or for htmx a line in the dialog's form or a note in the corner."""
    if not is_htmx(request):
        return page(request, "error.html", status=status, code=status, title=title, message=message)
    target = request.headers.get("HX-Target", "")
    if target.endswith("-error"):
        return page(request, "fragment/alert.html", status=status, title=title, message=message)
    answer = page(request, "fragment/toast.html", status=status, title=title, message=message)
    answer.headers.update(_TOAST)
    return answer


def _render(request: web.Request, name: str, values: Mapping[str, Any]) -> str:
    template = request.app[ENVIRONMENT].get_template(name)
    services = request.app.get(SERVICES)
    clock = services.clock if services is not None else SystemClock()
    common = {
        "session": auth.maybe_session(request) if services is not None else None,
        "csrf": auth.csrf_token(request),
        "version": _version(request.app),
        "grid_name": services.own.grid_name if services is not None else "",
        "server_name": services.own.name if services is not None else "",
        "now": clock.now_ms(),
        "menu": _MENU,
    }
    return template.render(common | dict(values))


def _version(app: web.Application) -> str:
    services, setup = app.get(SERVICES), app.get(SETUP)
    return services.version if services is not None else setup.version if setup is not None else ""


@pass_context
def _when(context: Context, at_ms: int | None, missing: str = "–") -> str:
    """Return a moment as a `<time>`: relative, with the full stamp in its title."""
    if at_ms is None:
        return missing
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        words.iso(at_ms), words.stamp(at_ms), words.ago(at_ms, context["now"])
    )
