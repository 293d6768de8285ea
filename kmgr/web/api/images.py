"""API: golden images and their import."""

import asyncio

from aiohttp import web

from kmgr.errors import Refused
from kmgr.web import actions, present
from kmgr.web.api.fields import Fields, text
from kmgr.web.api.shapes import page, ref
from kmgr.web.api.table import PAGING, Access, Call, Route, answer, listed, nothing, read_body
from kmgr.web.uploads import go_on

_FROM_PATH: Fields = {
    "name": text("the image's name; a known name gets a new version", required=True, most=63),
    "path": text("a qcow2 or raw file on this server, as a whole path", required=True, most=4096),
    "notes": text("what is in this version"),
}
_UPLOAD: Fields = {
    "name": text("the image's name; a known name gets a new version", most=63),
    "file": text("the name of the file that is sent, for people", most=300),
    "notes": text("what is in this version"),
}


async def images(call: Call) -> web.Response:
    """Return the golden images."""
    return listed(call, await asyncio.to_thread(present.images, call.services), lambda one: (one["name"],))


async def import_image(call: Call) -> web.Response:
    """Import a disk: the body itself, as long as it is, or a file that lies on this server."""
    request = call.request
    if request.content_type == "application/json":
        await go_on(request)
        body = await read_body(request, _FROM_PATH)
        made = await actions.import_file(
            call.services, call.by, body["name"], body["path"], notes=body.get("notes", "")
        )
        return answer(made, 201)
    if not call.query.get("name"):
        raise Refused("name: required, in the address: /images?name=…", code="bad_body")
    if request.content_length is None:
        raise web.HTTPLengthRequired
    await go_on(request)
    made = await actions.import_upload(
        call.services,
        call.by,
        call.query["name"],
        request.content.iter_any(),
        size_bytes=request.content_length,
        notes=call.query.get("notes", ""),
    )
    return answer(made, 201)


async def imports(call: Call) -> web.Response:
    """Return the imports that run on this server or failed there."""
    return listed(call, present.imports(call.services), lambda one: (one["started_at"], one["id"]))


async def dismiss(call: Call) -> web.Response:
    """Show a failed import no more."""
    actions.dismiss_import(call.services, call.part("id"))
    return nothing()


async def delete(call: Call) -> web.Response:
    """Delete a golden image."""
    await actions.delete_image(call.services, call.by, call.part("id"))
    return nothing()


ROUTES = (
    Route(
        "GET", "/images", images, Access.ADMIN, "The golden images, their versions, and where they are",
        {200: page("Image")}, query=PAGING,
    ),
    Route(
        "POST", "/images", import_image, Access.ADMIN,
        "Import a disk: the file as the body (with Content-Length), or JSON for a file on this server",
        {201: ref("Image")}, body=_FROM_PATH, query=_UPLOAD, raw=True,
    ),
    Route(
        "GET", "/images/imports", imports, Access.ADMIN,
        "The imports on this server: those that run, and those that failed of late",
        {200: page("Import")}, query=PAGING,
    ),
    Route("DELETE", "/images/imports/{id}", dismiss, Access.ADMIN, "Dismiss a failed import", {204: None}),
    Route("DELETE", "/images/{id}", delete, Access.ADMIN, "Delete a golden image", {204: None}),
)  # fmt: skip
