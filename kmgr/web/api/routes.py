"""All addresses of the API, and what answers where there is none."""

from aiohttp import web

from kmgr.web.api import (
    accounts,
    address,
    attention,
    bench,
    desktops,
    grid,
    images,
    policies,
    published,
    quotas,
    servers,
    sessions,
    templates,
    uploads,
    versions,
)
from kmgr.web.api.openapi import describe
from kmgr.web.api.table import Access, Call, Route, add, answer


async def description(call: Call) -> web.Response:
    """Return the API's description."""
    return answer(describe(ROUTES, version=call.services.version))


ROUTES: tuple[Route, ...] = (
    *sessions.ROUTES,
    *grid.ROUTES,
    *address.ROUTES,
    *servers.ROUTES,
    *images.ROUTES,
    *uploads.ROUTES,
    *versions.ROUTES,
    *templates.ROUTES,
    *published.ROUTES,
    *bench.ROUTES,
    *policies.ROUTES,
    *desktops.ROUTES,
    *attention.ROUTES,
    *accounts.ROUTES,
    *quotas.ROUTES,
    Route(
        "GET", "/openapi.json", description, Access.ANYONE, "This description",
        {200: {"type": "object"}},
    ),
)  # fmt: skip


def add_routes(app: web.Application) -> None:
    """Add the API to an application."""
    add(app, ROUTES)
