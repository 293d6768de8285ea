"""From a disk to desktops in five choices: which disk, what name, how large, for how many, for whom.

What else a template has is set to what suits most, and can be changed afterwards.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from aiohttp import web

from kmgr.templates.commands import LIMITS
from kmgr.templates.machine import MACHINES, System
from kmgr.templates.model import ImageKind, Kind
from kmgr.users.model import SubjectKind
from kmgr.web import auth, bench_actions, forms, html_env, present, records, suggestions
from kmgr.web.forms import Form
from kmgr.web.services import SERVICES

_PAGE = "/console/templates/wizard"
# One in so many people finds a desktop ready at once, though all of them came in the same minute.
_STANDBY_PART = 5
# Windows asks for 64; an empty disk takes only what is written to it.
_DISK_GIB = 64
# As the image looks: the usual answer.
_SUGGESTED = "suggested"


@dataclass(frozen=True, slots=True)
class Size:
    """A size of desktops that people can choose by its use."""

    key: str
    title: str
    use: str
    vcpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What was chosen: of the template, for whom, and for an installation. No `system`: as the image looks."""

    values: Mapping[str, Any]
    subject: tuple[str, str] | None
    disk_gib: int
    drivers: str
    system: System | None


SIZES = (
    Size("small", "Small", "one program or a kiosk", 1, 1024),
    Size("medium", "Medium", "office work and browsing", 2, 4096),
    Size("large", "Large", "development, many programs", 4, 8192),
)


def add_routes(app: web.Application) -> None:
    """Add the wizard."""
    app.add_routes(
        [
            web.get(_PAGE, show),
            web.get(f"{_PAGE}/disks", disks),
            web.post(_PAGE, make),
        ]
    )


async def show(request: web.Request) -> web.Response:
    """Show the five choices."""
    values: dict[str, Any] = {"section": "templates", "title": "New desktops", "vitals": True, "sizes": SIZES}
    found = await asyncio.to_thread(_disks, request)
    return html_env.page(request, "console/wizard.html", **values, **found, groups=_groups(request))


async def disks(request: web.Request) -> web.Response:
    """Return the live part: the disks there are, and those on their way."""
    return html_env.page(request, "console/part/wizard_disks.html", **await asyncio.to_thread(_disks, request))


async def make(request: web.Request) -> web.Response:
    """Make the template, publish the disk and give it to its people."""
    by, services = auth.require_admin(request).person.name, request.app[SERVICES]
    chosen = forms.checked(await forms.read_form(request), _chosen)
    image = present.image_of(services, chosen.values["image"])
    system = chosen.system
    if system is None:
        system = await asyncio.to_thread(suggestions.system_of, services, image)
    values = {**chosen.values, "policy": {"machine": asdict(MACHINES[system])}}
    if image["kind"] == ImageKind.ISO:
        desktop = await bench_actions.install_wizard(
            services, by, values, chosen.subject, disk_gib=chosen.disk_gib, drivers=chosen.drivers
        )
        return html_env.go(request, f"/console/desktops/{desktop}")
    made = await bench_actions.wizard(services, by, values, chosen.subject)
    return html_env.go(request, f"/console/templates/{made['id']}")


def _chosen(form: Form) -> _Chosen:
    size = form.choice("size", "how large they are", [one.key for one in SIZES])
    most = LIMITS["maximum"][1]
    people = form.number("people", "how many people", least=1, most=most)
    kind = form.choice("kind", "whose the desktops are", Kind) if form.text("kind") else Kind.POOLED
    shape = next((one for one in SIZES if one.key == size), SIZES[0])
    values = {
        "image": form.text("image", "the disk"),
        "name": form.text("name", "the name"),
        "kind": kind,
        "vcpus": shape.vcpus,
        "memory_mib": shape.memory_mib,
        "standby": max(1, -(-people // _STANDBY_PART)),
        "maximum": people,
    }
    disk_gib = _DISK_GIB
    if form.text("disk_gib"):
        disk_gib = form.number("disk_gib", "the size of the empty disk", least=1, most=bench_actions.LARGEST_DISK_GIB)
    system = form.choice("system", "what it is", [_SUGGESTED, *System]) if form.text("system") else _SUGGESTED
    known = System(system) if system in list(System) else None
    found = _Chosen(values, None, disk_gib, form.text("drivers"), known)
    whom = form.choice("whom", "for whom", ["everyone", "group", "nobody"])
    match whom:
        case "everyone":
            return replace(found, subject=(SubjectKind.EVERYONE, ""))
        case "group":
            return replace(found, subject=(SubjectKind.GROUP, form.text("group", "the group")))
        case _:
            return found


def _disks(request: web.Request) -> dict[str, Any]:
    auth.require_admin(request)
    services = request.app[SERVICES]
    every = present.images(services)
    images = [one for one in every if _chooseable(one)]
    discs = [one for one in every if one["kind"] in (ImageKind.ISO, ImageKind.DRIVERS) and one["versions"]]
    # The newest first: it is what somebody who comes from an import means.
    images.sort(key=lambda one: one["versions"][-1]["created_at"], reverse=True)
    chosen = request.query.get("image", "")
    known = {one["id"] for one in images}
    if chosen not in known:
        chosen = images[0]["id"] if images else ""
    return {
        "images": images,
        "imports": present.imports(services),
        "chosen": chosen,
        "disk_gib": _DISK_GIB,
        "looks": suggestions.told(services, images),
        "discs": discs,
        "drivers": request.query.get("drivers", ""),
    }


def _chooseable(image: records.Item) -> bool:
    return image["kind"] in (ImageKind.DISK, ImageKind.ISO) and any(
        one["state"] == "ready" for one in image["versions"]
    )


def _groups(request: web.Request) -> list[str]:
    return sorted({group for one in present.accounts(request.app[SERVICES]) for group in one["groups"]})
