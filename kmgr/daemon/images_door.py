"""What `kmgr image` commands may ask of the running daemon: bring an image in, and how far that is."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from kmgr.control import Operation, Taking
from kmgr.errors import Refused
from kmgr.grid.port import Grid
from kmgr.replica import queries
from kmgr.templates.addresses import check_url
from kmgr.templates.importer import Importer
from kmgr.templates.reception import Reception
from kmgr.web.records import importing
from kmgr.web.services import FetchSum

_BY = "local"


def operations(grid: Grid, importer: Importer, reception: Reception, fetch_sum: FetchSum) -> Mapping[str, Operation]:
    """Return the operations of a server that has images, by their word."""

    async def listed(_: Mapping[str, Any]) -> Mapping[str, Any]:
        with grid.view() as db:
            images = [
                {
                    "id": one.id,
                    "name": one.name,
                    "versions": [_version(version) for version in queries.versions(db, one.id)],
                }
                for one in queries.images(db)
            ]
        jobs = (*importer.failed(), *reception.progress(), *importer.running())
        return {"images": images, "imports": [importing(one) for one in jobs]}

    async def begin(body: Mapping[str, Any]) -> Mapping[str, Any]:
        made = await reception.upload(
            by=_BY,
            image_name=_text(body, "name"),
            size_bytes=body.get("size"),
            notes=_text(body, "notes"),
            file_name=_text(body, "file"),
            fingerprint=_text(body, "fingerprint"),
            sha256=_text(body, "sha256"),
        )
        if made.complete:
            await reception.retry(made.id)
        return {"id": made.id, "offset": made.offset}

    async def end(body: Mapping[str, Any]) -> Mapping[str, Any]:
        known = await reception.end(_text(body, "id"), int(body["size"]))
        return {"offset": known.offset}

    async def fetch(body: Mapping[str, Any]) -> Mapping[str, Any]:
        url, sums, sha256 = _text(body, "url"), _text(body, "sums"), _text(body, "sha256")
        check_url(url)
        if sums and not sha256:
            check_url(sums)
            sha256 = await fetch_sum(sums, url.partition("?")[0].rpartition("/")[2])
        name, notes = _text(body, "name"), _text(body, "notes")
        made = await reception.fetch(by=_BY, image_name=name, url=url, notes=notes, sha256=sha256)
        return {"id": made.id}

    async def state(body: Mapping[str, Any]) -> Mapping[str, Any]:
        return importing(reception.find(_text(body, "id")))

    async def cancel(body: Mapping[str, Any]) -> Mapping[str, Any]:
        await reception.cancel(_text(body, "id"))
        return {}

    return {
        "images": listed, "import-begin": begin, "import-end": end, "import-fetch": fetch, "import-state": state,
        "import-cancel": cancel,
    }  # fmt: skip


def taking(reception: Reception) -> Mapping[str, Taking]:
    """Return the operations that bytes follow."""

    async def piece(body: Mapping[str, Any], chunks: AsyncIterator[bytes]) -> Mapping[str, Any]:
        known = await reception.append(_text(body, "id"), int(body["offset"]), chunks, length=int(body["length"]))
        return {"offset": known.offset}

    return {"import-piece": piece}


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise Refused(f"{name} must be a text")
    return value


def _version(version: Any) -> Mapping[str, Any]:
    return {
        "number": version.number,
        "size_bytes": version.size_bytes,
        "used_bytes": version.used_bytes,
        "notes": version.notes,
    }
