"""The wizard's page: *which grid?* and *who?* or *the four words*; then it waits until the portal answers."""

from aiohttp import web

from kmgr.errors import KmgrError
from kmgr.grid.preflight import PreflightStopped
from kmgr.web import forms, html_env
from kmgr.web.services import SETUP
from kmgr.web.setup import answers

_GROUP = 4


def add_routes(app: web.Application) -> None:
    """Add the wizard to a server without a grid."""
    app.add_routes(
        [
            web.get("/setup", show),
            web.post("/setup", submit),
            web.get("/setup/grids", grids),
            web.get("/api/v1/setup", answers.describe),
            web.post("/api/v1/setup", answers.answer),
        ]
    )


async def show(request: web.Request) -> web.Response:
    """Show the two questions; the grids found nearby follow by themselves."""
    setup = request.app[SETUP]
    return html_env.page(
        request, "setup/wizard.html", server=setup.config.name, fingerprint=_spelled(setup.fingerprint)
    )


async def grids(request: web.Request) -> web.Response:
    """Return the grids that were found, or why there may be none."""
    found = await request.app[SETUP].browse()
    return html_env.page(request, "setup/grids.html", grids=answers.grids_of(found), problem=found.problem)


async def submit(request: web.Request) -> web.Response:
    """Create or join; problems go beside the form, which keeps what was typed."""
    try:
        wanted = answers.from_form(await forms.read_form(request))
        warnings = await answers.carry_out(request.app[SETUP], wanted)
    except PreflightStopped as stopped:
        return html_env.page(request, "setup/findings.html", status=stopped.http_status, findings=stopped.findings)
    except KmgrError as error:
        title = "This server is not part of a grid yet"
        return html_env.error_page(request, error.http_status, title, error.message)
    fragment = html_env.page(request, "setup/waiting.html", joined=not hasattr(wanted, "admin"), warnings=warnings)
    fragment.headers["HX-Retarget"] = "#wizard"
    fragment.headers["HX-Reswap"] = "innerHTML"
    return fragment


def _spelled(fingerprint: str) -> str:
    plain = fingerprint.replace(":", "").lower()
    return " ".join(plain[at : at + _GROUP] for at in range(0, len(plain), _GROUP))
