"""What an administrator does with golden images: import and delete. Uploads go straight to the API, with progress."""

import asyncio
import logging

from aiohttp import web

from kmgr.errors import KmgrError
from kmgr.replica.model import ALL_SERVERS, FEWEST_COPIES, MOST_COPIES
from kmgr.web import actions, auth, forms, html_env, present
from kmgr.web.services import SERVICES

logger = logging.getLogger(__name__)

_PAGE = "/console/images"
# An import that fails at once (no such file, no image) is told in the dialog; a longer one goes on in the background.
_AT_ONCE_S = 1.5
BACKGROUND: web.AppKey[set[asyncio.Task[None]]] = web.AppKey("imports_of_files", set)


def add_routes(app: web.Application) -> None:
    """Add what is done with golden images."""
    app[BACKGROUND] = set()
    app.add_routes(
        [
            web.get("/console/images/import", ask_import),
            web.post("/console/images/import", import_file),
            web.post("/console/imports/{import}/dismiss", dismiss),
            web.post("/console/imports/{import}/retry", retry),
            web.get("/console/images/{image}/delete", ask_delete),
            web.post("/console/images/{image}/delete", delete),
            web.get("/console/images/{image}/copies", ask_copies),
            web.post("/console/images/{image}/copies", set_copies),
            web.get("/console/images/{image}/versions/{number}/delete", ask_delete_version),
            web.post("/console/images/{image}/versions/{number}/delete", delete_version),
        ]
    )


async def ask_import(request: web.Request) -> web.Response:
    """Show the form for a disk image: from this computer, from an address, or from this server's folder."""
    auth.require_admin(request)
    services = request.app[SERVICES]
    files = await asyncio.to_thread(services.folder.files)
    return html_env.dialog(
        request,
        "console/dialog/import.html",
        images=present.images(services),
        name=request.query.get("name", ""),
        files=files,
        folder=str(services.folder.path),
    )


async def import_file(request: web.Request) -> web.Response:
    """Import a disk image that lies on this server, or have it downloaded."""
    by = auth.require_admin(request).person.name
    form = await forms.read_form(request)
    if form.text("from") == "url":
        return await _fetch(request, form, by)
    name, notes = form.text("name", "the name"), form.text("notes")
    path = form.text("path")
    file = "" if path else form.text("file", "the file")
    form.check()
    if not path:
        path = str(await asyncio.to_thread(request.app[SERVICES].folder.file, file))
    task = asyncio.create_task(_import(request.app, by, name, path, notes))
    request.app[BACKGROUND].add(task)
    task.add_done_callback(request.app[BACKGROUND].discard)
    done, _ = await asyncio.wait({task}, timeout=_AT_ONCE_S)
    if done:
        if task.exception() is not None:
            request.app[SERVICES].importer.forget(name)  # the dialog says it
        task.result()
        return html_env.done(request, f"{name} was imported.", to=_PAGE)
    # From here on nobody waits for it: the list of imports shows it, and if it fails why.
    task.add_done_callback(_note_failure)
    return html_env.done(request, f"{name} is being imported.", to=_PAGE)


async def dismiss(request: web.Request) -> web.Response:
    """Cancel an upload or a download, or show a failed import no more."""
    auth.require_admin(request)
    await actions.cancel_import(request.app[SERVICES], request.match_info["import"])
    return html_env.done(request, "Dismissed.", to=_PAGE)


async def retry(request: web.Request) -> web.Response:
    """Try an import again that stopped for want of room or of a majority."""
    auth.require_admin(request)
    await actions.retry_import(request.app[SERVICES], request.match_info["import"])
    return html_env.done(request, "Tried again.", to=_PAGE)


async def _fetch(request: web.Request, form: forms.Form, by: str) -> web.Response:
    name, url = form.text("name", "the name"), form.text("url", "the address")
    told = form.text("sum")
    form.check()
    sums = {"sums": told} if "/" in told else {"sha256": told}
    await actions.fetch_image(request.app[SERVICES], by, name, url, notes=form.text("notes"), **sums)
    return html_env.done(request, f"{name} is being downloaded by server {request.app[SERVICES].own.name}.", to=_PAGE)


async def ask_delete(request: web.Request) -> web.Response:
    """Ask before a golden image is deleted, and say which templates need it."""
    auth.require_admin(request)
    services = request.app[SERVICES]
    image = present.image_of(services, request.match_info["image"])
    used = [one["name"] for one in present.templates(services) if one["image"] == image["id"]]
    return html_env.dialog(request, "console/dialog/delete_image.html", image=image, used=used)


async def delete(request: web.Request) -> web.Response:
    """Delete a golden image with all its versions."""
    by = auth.require_admin(request).person.name
    image = present.image_of(request.app[SERVICES], request.match_info["image"])
    await actions.delete_image(request.app[SERVICES], by, image["id"])
    return html_env.done(request, f"Golden image {image['name']} was deleted.", to=_PAGE)


async def ask_copies(request: web.Request) -> web.Response:
    """Ask how many servers keep a golden image."""
    auth.require_admin(request)
    services = request.app[SERVICES]
    image = present.image_of(services, request.match_info["image"])
    count = sum(one["role"] == "server" for one in present.servers(services))
    return html_env.dialog(
        request, "console/dialog/copies.html", image=image, count=count, fewest=FEWEST_COPIES, most=MOST_COPIES
    )


async def set_copies(request: web.Request) -> web.Response:
    """Say how many servers keep a golden image."""
    by, services = auth.require_admin(request).person.name, request.app[SERVICES]
    image = present.image_of(services, request.match_info["image"])
    form = await forms.read_form(request)
    copies = ALL_SERVERS
    if form.choice("where", "where", ("all", "some")) == "some":
        copies = form.number("copies", "how many", least=FEWEST_COPIES, most=MOST_COPIES)
    form.check()
    await actions.set_copies(services, by, image["id"], copies)
    where = "all servers" if copies == ALL_SERVERS else f"{copies} servers"
    return html_env.done(request, f"{image['name']} is kept on {where}.", to=_PAGE)


async def ask_delete_version(request: web.Request) -> web.Response:
    """Ask before a version is deleted, and say who uses it or why the grid would keep it."""
    auth.require_admin(request)
    found = present.version_of(request.app[SERVICES], request.match_info["image"], request.match_info["number"])
    return html_env.dialog(request, "console/dialog/delete_version.html", image=found[0], version=found[1])


async def delete_version(request: web.Request) -> web.Response:
    """Delete one version of a golden image."""
    by, services = auth.require_admin(request).person.name, request.app[SERVICES]
    image, version = present.version_of(services, request.match_info["image"], request.match_info["number"])
    await actions.delete_version(services, by, image["id"], str(version["number"]))
    return html_env.done(request, f"Version {version['number']} of {image['name']} was deleted.", to=_PAGE)


async def _import(app: web.Application, by: str, name: str, path: str, notes: str) -> None:
    await actions.import_file(app[SERVICES], by, name, path, notes=notes)


def _note_failure(task: asyncio.Task[None]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if isinstance(error, KmgrError):
        logger.warning("an import failed", extra={"cause": error.message})
    elif error is not None:
        logger.error("an import failed by a bug", exc_info=error)
