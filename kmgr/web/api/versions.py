"""API: how golden images are kept: on how many servers, and which versions."""

from aiohttp import web

from kmgr.replica.model import ALL_SERVERS, MOST_COPIES
from kmgr.web import actions
from kmgr.web.api.fields import Fields, whole
from kmgr.web.api.shapes import ref
from kmgr.web.api.table import Access, Call, Route, answer, nothing

_CHANGE: Fields = {
    "copies": whole("how many servers keep each version; 0: all of them", ALL_SERVERS, MOST_COPIES, required=True),
}


async def change(call: Call) -> web.Response:
    """Say how many servers keep an image."""
    return answer(await actions.set_copies(call.services, call.by, call.part("id"), call.body["copies"]))


async def delete(call: Call) -> web.Response:
    """Delete one version."""
    await actions.delete_version(call.services, call.by, call.part("id"), call.part("number"))
    return nothing()


ROUTES = (
    Route(
        "PATCH", "/images/{id}", change, Access.ADMIN, "Say how many servers keep a golden image",
        {200: ref("Image")}, body=_CHANGE,
    ),
    Route(
        "DELETE", "/images/{id}/versions/{number}", delete, Access.ADMIN,
        "Delete a version that no template and no desktop uses", {204: None},
    ),
)  # fmt: skip
