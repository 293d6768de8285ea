"""API: golden images and their import."""

import asyncio
from dataclasses import asdict

from aiohttp import web

from kmgr.errors import Refused
from kmgr.web import actions, present
from kmgr.web.api.fields import Fields, text
from kmgr.web.api.shapes import page, ref
from kmgr.web.api.table import PAGING, Access, Call, Route, answer, listed, nothing, read_body
from kmgr.web.uploads import go_on

_FROM_PATH: Fields = {
    "name": text("the image's name; a known name gets a new version", required=True, most=63),
    "path": text("a file in this server's folder of imports, as a whole path", most=4096),
    "file": text("the name of a file in this server's folder of imports", most=300),
    "notes": text("what is in this version"),
}
_FROM_URL: Fields = {
    "name": text("the image's name; a known name gets a new version", required=True, most=63),
    "url": text("where the file is: http or https", required=True, most=4096),
    "sha256": text("the SHA-256 that it must have", most=64),
    "sums": text("the address of a file of checksums that has it", most=4096),
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
        folder, whole = call.services.folder, body.get("path", "")
        path = await asyncio.to_thread(lambda: folder.inside(whole) if whole else folder.file(body.get("file", "")))
        made = await actions.import_file(call.services, call.by, body["name"], str(path), notes=body.get("notes", ""))
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


async def fetch(call: Call) -> web.Response:
    """Have this server download a disk; the import goes on by itself."""
    body = call.body
    made = await actions.fetch_image(
        call.services,
        call.by,
        body["name"],
        body["url"],
        notes=body.get("notes", ""),
        sha256=body.get("sha256", ""),
        sums=body.get("sums", ""),
    )
    return answer(made, 202)


async def offered(call: Call) -> web.Response:
    """Return what lies in this server's folder of imports."""
    files = await asyncio.to_thread(call.services.folder.files)
    return listed(call, (asdict(one) for one in files), lambda one: (one["name"],))


async def retry(call: Call) -> web.Response:
    """Try an import again that stopped for want of room or of a majority."""
    await actions.retry_import(call.services, call.part("id"))
    return nothing()


async def dismiss(call: Call) -> web.Response:
    """Cancel an upload or a download, or show a failed import no more."""
    await actions.cancel_import(call.services, call.part("id"))
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
    Route(
        "POST", "/images/imports", fetch, Access.ADMIN, "Have this server download a disk and import it",
        {202: ref("Import")}, body=_FROM_URL,
    ),
    Route(
        "POST", "/images/imports/{id}/retry", retry, Access.ADMIN,
        "Try again what stopped for want of room or of a majority", {204: None},
    ),
    Route(
        "DELETE", "/images/imports/{id}", dismiss, Access.ADMIN,
        "Cancel an upload or a download, or dismiss a failed import", {204: None},
    ),
    Route(
        "GET", "/images/files", offered, Access.ADMIN, "The files in this server's folder of imports",
        {200: page("OfferedFile")}, query=PAGING,
    ),
    Route("DELETE", "/images/{id}", delete, Access.ADMIN, "Delete a golden image", {204: None}),
)  # fmt: skip
