"""API: uploads that can be interrupted, by tus 1.0; a complete one is imported by itself."""

from email.utils import formatdate

from aiohttp import hdrs, web

from kmgr.errors import NotAllowed, Refused
from kmgr.templates.arriving import Arrival, Way
from kmgr.web import present, tus
from kmgr.web.api.shapes import ref
from kmgr.web.api.table import PREFIX, Access, Call, Route, answer
from kmgr.web.uploads import go_on


async def offer(_: Call) -> web.Response:
    """Say what is spoken here."""
    return web.Response(status=204, headers=tus.OFFER)


async def create(call: Call) -> web.Response:
    """Begin an upload, or point at the one under way that this is the file of."""
    headers = call.request.headers
    tus.check_version(headers)
    told = tus.metadata(headers)
    made = await call.services.reception.upload(
        by=call.by,
        image_name=told.get("name", ""),
        size_bytes=tus.length_of(headers),
        notes=told.get("notes", ""),
        file_name=told.get("filename", ""),
        fingerprint=told.get("fingerprint", ""),
        sha256=told.get("sha256", ""),
    )
    return _about(call, made, 201, {hdrs.LOCATION: f"{PREFIX}/uploads/{made.id}"})


async def look(call: Call) -> web.Response:
    """Say how far an upload is; who sent until now gives way."""
    tus.check_version(call.request.headers)
    _own(call)
    known = await call.services.reception.arrivals.settle(call.part("id"))
    told = tus.spelled({"name": known.image_name, "filename": known.file_name, "notes": known.notes})
    return _about(call, known, 200, {"Upload-Metadata": told})


async def append(call: Call) -> web.Response:
    """Take a piece; what came of it is kept even if the connection breaks."""
    request, reception = call.request, call.services.reception
    tus.check_version(request.headers)
    if request.content_type != tus.MEDIA:
        raise tus.WrongMedia(f"A piece of an upload is sent as {tus.MEDIA}.")
    known, offset = _own(call), tus.number(request.headers, "Upload-Offset")
    checksum = tus.checksum_of(request.headers)
    await go_on(request)
    if known.size_bytes is None and "Upload-Length" in request.headers:
        known = await reception.end(known.id, tus.number(request.headers, "Upload-Length"))
    try:
        known = await reception.append(
            known.id, offset, request.content.iter_any(), length=request.content_length, checksum=checksum
        )
    except Refused as error:
        if error.code == "too_long":
            raise tus.TooLong(error.message) from error
        if error.code == "checksum":
            raise tus.WrongPiece(error.message) from error
        raise
    return _about(call, known, 204, {})


async def progress(call: Call) -> web.Response:
    """Return how far an upload or its import is."""
    return answer(present.importing(call.services, call.part("id")))


async def cancel(call: Call) -> web.Response:
    """Forget an upload and what came of it."""
    tus.check_version(call.request.headers)
    _own(call)
    await call.services.reception.cancel(call.part("id"))
    return web.Response(status=204, headers={"Tus-Resumable": tus.VERSION})


def _own(call: Call) -> Arrival:
    known = call.services.reception.arrivals.get(call.part("id"))
    if known.by != call.by or known.way is not Way.UPLOAD:
        raise NotAllowed(f"{known.shown} is sent by {known.by}: only they go on with it")
    return known


def _about(call: Call, known: Arrival, status: int, more: dict[str, str]) -> web.Response:
    expires = call.services.reception.arrivals.expires_at(known)
    length = {"Upload-Defer-Length": "1"} if known.size_bytes is None else {"Upload-Length": str(known.size_bytes)}
    headers = {
        "Tus-Resumable": tus.VERSION,
        "Upload-Offset": str(known.offset),
        "Upload-Expires": formatdate(expires / 1000, usegmt=True),
        hdrs.CACHE_CONTROL: "no-store",
    }
    return web.Response(status=status, headers={**headers, **length, **more})


ROUTES = (
    Route("OPTIONS", "/uploads", offer, Access.ADMIN, "What of tus is spoken here (resumable uploads)", {204: None}),
    Route(
        "POST", "/uploads", create, Access.ADMIN,
        "Begin a resumable upload (tus: Upload-Length, Upload-Metadata name, filename, notes, fingerprint, sha256)",
        {201: None}, raw=True,
    ),
    Route("HEAD", "/uploads/{id}", look, Access.ADMIN, "How far an upload is (tus: Upload-Offset)", {200: None}),
    Route(
        "GET", "/uploads/{id}", progress, Access.ADMIN, "How far an upload or its import is",
        {200: ref("Import")},
    ),
    Route(
        "PATCH", "/uploads/{id}", append, Access.ADMIN, "Send a piece (tus: Upload-Offset, Upload-Checksum)",
        {204: None}, body={}, raw=True,
    ),
    Route("DELETE", "/uploads/{id}", cancel, Access.ADMIN, "Forget an upload", {204: None}),
)  # fmt: skip
