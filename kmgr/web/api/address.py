"""API: the grid address."""

from aiohttp import web

from kmgr.web import address
from kmgr.web.api.fields import text
from kmgr.web.api.shapes import ref
from kmgr.web.api.table import Access, Call, Route, answer


async def show(call: Call) -> web.Response:
    """Return the grid address and who holds it."""
    return answer(address.shown(call.services))


async def change(call: Call) -> web.Response:
    """Choose the grid address."""
    return answer(await address.change(call.services, call.by, call.body["address"]))


_BODY = {"address": text("IPv4 address with prefix length, like 192.0.2.5/24; empty: none")}

ROUTES = (
    Route(
        "GET", "/grid-address", show, Access.ADMIN, "The address that one live server of the grid holds",
        {200: ref("GridAddress")},
    ),
    Route(
        "PUT", "/grid-address", change, Access.ADMIN, "Choose the address that one live server of the grid holds",
        {200: ref("GridAddress")}, body=_BODY,
    ),
)  # fmt: skip
