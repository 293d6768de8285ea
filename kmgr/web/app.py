"""The two web applications: of a server of a grid, and of one that has none yet."""

from pathlib import Path

from aiohttp import web

from kmgr.errors import Unavailable
from kmgr.web import auth, display, html_env, live, metrics
from kmgr.web.api import routes as api
from kmgr.web.console import pages as console
from kmgr.web.flood import FLOOD, Flood
from kmgr.web.middleware import add_headers, errors, json_error
from kmgr.web.portal import pages as portal
from kmgr.web.services import SERVICES, SETUP, Services, SetupServices
from kmgr.web.setup import pages as setup_pages
from kmgr.web.tickets import TICKETS, Tickets

STATIC = Path(__file__).parent / "static"
# Image uploads are streamed past this limit; everything else fits.
MOST_BODY_BYTES = 1 << 20


def make_app(services: Services) -> web.Application:
    """Return portal, console, API and displays of a server of a grid."""
    app = _application()
    app[SERVICES] = services
    app[TICKETS] = Tickets(services.clock)
    app[FLOOD] = Flood(services.clock)
    html_env.set_up(app)
    live.set_up(app)
    api.add_routes(app)
    display.add_routes(app)
    metrics.add_routes(app)
    portal.add_routes(app)
    console.add_routes(app)
    return app


def make_setup_app(setup: SetupServices) -> web.Application:
    """Return the wizard of a server without a grid."""
    app = _application()
    app[SETUP] = setup
    html_env.set_up(app)
    setup_pages.add_routes(app)
    app.router.add_get("/", _to_wizard)
    app.router.add_route("*", "/api/v1/{path:.*}", _no_grid)
    return app


def make_idle_app(words: str) -> web.Application:
    """Return what a server serves that must not act: the reason, whatever is asked."""

    async def refuse(_: web.Request) -> web.Response:
        raise Unavailable(words, code="fenced")

    app = _application()
    html_env.set_up(app)
    app.router.add_route("*", "/{path:.*}", refuse)
    return app


def _application() -> web.Application:
    app = web.Application(middlewares=(errors, auth.guard), client_max_size=MOST_BODY_BYTES)
    app.on_response_prepare.append(add_headers)
    app.router.add_static("/static/", STATIC)
    return app


async def _to_wizard(_: web.Request) -> web.Response:
    return web.Response(status=303, headers={"Location": "/setup"})


async def _no_grid(_: web.Request) -> web.Response:
    return json_error(503, "no_grid", "This server belongs to no grid yet: open /setup and answer two questions.")
