"""What administrators do to make versions: get a desktop to edit or test, make a version of it, derive templates.

For API and pages alike; see `actions`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import kmgr.templates.queries as template_queries
from kmgr.balancer.place import choose, lacking, refusal, rooms
from kmgr.balancer.queries import look
from kmgr.entropy import new_id
from kmgr.errors import Conflict, NotFound, Refused
from kmgr.grid.outcomes import applied
from kmgr.ids import DesktopId, ServerId, TemplateId, VersionId
from kmgr.provision.model import Purpose
from kmgr.provision.queries import desktop as find_desktop
from kmgr.templates.install_queries import installers
from kmgr.templates.model import ImageKind, Refresh, Template
from kmgr.templates.policy import as_values, policy_of
from kmgr.web import actions, present, present_versions
from kmgr.web.records import Item
from kmgr.web.services import Services

Values = Mapping[str, Any]

# What an installation may ask for; the server's own disk is looked at too.
LARGEST_DISK_GIB = 16_384
_HOW = ("canary", "canary_percent", "watch_s", "patience_s")


async def bench(services: Services, by: str, template: str, version: str | int, purpose: str) -> DesktopId:
    """Have a desktop of any version of a template made, to edit or to test it; returns its id."""
    known = present.template_of(services, template)
    chosen = present_versions.version_of(services, known["id"], version)
    if not chosen["there"]:
        raise Refused(f"the disk of version {chosen['number']} was deleted")
    desktop = DesktopId(new_id("dsk"))
    body = {
        "desktop": desktop,
        "template": known["id"],
        "version": chosen["version"],
        "server": _server_for(services, TemplateId(known["id"]), VersionId(chosen["version"])),
        "purpose": Purpose(purpose),
        "user": by,
    }
    applied(await services.grid.propose("desktop.bench", body, by=by))
    return desktop


async def capture(services: Services, by: str, desktop: str, values: Values) -> Item:
    """Have a version made of one's desktop: of the template's golden image, or of another one.

    `publish` (true) publishes it to the template, after a canary if one is asked for; `template` names a new one.
    Returns the version's id and the golden image's name.
    """
    with services.grid.view() as db:
        found = find_desktop(db, DesktopId(desktop))
    if found is None:
        raise NotFound(f"there is no desktop {desktop}")
    template = present.template_of(services, found.template)
    name = values.get("template") or None
    image = values.get("image") or (name or _line_of(services, template))
    body = {
        "desktop": found.id,
        "version": new_id("ver"),
        "image": image,
        "notes": values.get("notes", ""),
        "keep": bool(values.get("keep", False)),
        "publish": {how: values[how] for how in _HOW if how in values} if values.get("publish") else None,
        "template": name,
    }
    applied(await services.grid.propose("desktop.capture", body, by=by))
    return {"version": body["version"], "image": image}


async def derive(services: Services, by: str, template: str, name: str, *, child: bool) -> Item:
    """Make a template like another one; a `child` hangs below it, and its versions become a line of their own."""
    with services.grid.view() as db:
        known = template_queries.template(db, TemplateId(present.template_of(services, template)["id"]))
    if known is None:
        raise NotFound(f"there is no template {template}")
    shape = ("notes", "image", "version", "vcpus", "memory_mib", "standby", "maximum", "refresh", "kind")
    body = {
        "template": new_id("tpl"),
        "name": name,
        **{field: getattr(known, field) for field in shape},
        "policy": as_values(known.policy),
        "parent": known.id if child else "",
    }
    applied(await services.grid.propose("template.create", body, by=by))
    return present.template_of(services, body["template"])


async def wizard(services: Services, by: str, values: Values, subject: tuple[str, str] | None) -> Item:
    """Make a template of a golden image's newest version and give it to somebody; returns it."""
    made = await actions.create_template(services, by, values)
    if subject is not None:
        await actions.assign(services, by, made["id"], *subject)
    return present.template_of(services, made["id"])


async def install(
    services: Services, by: str, image: str, values: Values, *, disk_gib: int, drivers: str = ""
) -> DesktopId:
    """Begin a template with an empty disk and have a desktop of it boot from an ISO; returns that desktop's id.

    `image` is the id of an image of ISOs, of which the newest version counts; `values` are the template's. `drivers`
    is another one, which lies in a second drive (empty: none).
    """
    iso = present.image_of(services, image)
    if iso["kind"] != ImageKind.ISO:
        raise Refused(f"{iso['name']} is not an installer (ISO): make a template of it, no installation")
    if not iso["versions"]:
        raise Refused(f"no version of {iso['name']} is here (any more): import it again")
    more = _drivers(services, drivers)
    if not 1 <= disk_gib <= LARGEST_DISK_GIB:
        raise Refused(f"a disk of {disk_gib} GiB cannot be made: 1 to {LARGEST_DISK_GIB}")
    _check_machine(services, values)
    blank = await _blank(services, by, disk_gib)
    version, template = blank["versions"][-1]["id"], new_id("tpl")
    shape = {"notes": "", "refresh": Refresh.ON_LOGOUT, "standby": 0, "maximum": 1, **values}
    body = {
        **shape,
        "template": template,
        "image": blank["id"],
        "version": version,
        "iso": iso["versions"][-1]["id"],
        **more,
    }
    applied(await services.grid.propose("template.install", body, by=by))
    return await bench(services, by, template, version, Purpose.EDIT)


async def install_wizard(
    services: Services, by: str, values: Values, subject: tuple[str, str] | None, *, disk_gib: int, drivers: str = ""
) -> DesktopId:
    """Begin a template that is installed from an ISO and give it to somebody, who sees it once it is published."""
    shape = {name: value for name, value in values.items() if name != "image"}
    desktop = await install(services, by, values["image"], shape, disk_gib=disk_gib, drivers=drivers)
    if subject is not None:
        await actions.assign(services, by, present.template_of(services, values["name"])["id"], *subject)
    return desktop


def _check_machine(services: Services, values: Values) -> None:
    """Raise `Conflict` if no server that is up can make the wanted kind of machine: nothing is begun then."""
    machine = policy_of(values.get("policy", {})).machine
    with services.grid.view() as db:
        left = rooms(look(db, services.board.all(), services.clock.monotonic()))
    why = {room.name: room.closed or lacking(machine, room.machines) for room in left}
    if why and all(why.values()):
        told = "; ".join(f"{name} {reason}" for name, reason in sorted(why.items()))
        raise Conflict(f"No server can install this now: {told}.", code="no_room")


def _drivers(services: Services, image: str) -> Values:
    """Return the newest version of a CD with drivers as a command names it; nothing if none is wanted."""
    if not image:
        return {}
    found = present.image_of(services, image)
    if found["kind"] not in (ImageKind.ISO, ImageKind.DRIVERS) or not found["versions"]:
        raise Refused(f"{found['name']} is no CD with drivers (ISO) that is here: import it first")
    return {"drivers": found["versions"][-1]["id"]}


async def _blank(services: Services, by: str, disk_gib: int) -> Item:
    """Return the image of empty disks of a size, made now if there is none."""
    name = f"empty disk of {disk_gib} GiB"
    made = [one for one in present.images(services) if one["name"] == name and one["versions"]]
    if not made:
        await services.importer.import_blank(disk_gib << 30, image_name=name, by=by)
        made = [one for one in present.images(services) if one["name"] == name]
    return made[0]


def _server_for(services: Services, template: TemplateId, version: VersionId) -> ServerId:
    with services.grid.view() as db:
        known = template_queries.template(db, template)
        isos = installers(db, template)
    if known is None:
        raise NotFound(f"there is no template {template}")
    return _server_of(services, replace(known, version=version), isos)


def _server_of(services: Services, wanted: Template, isos: Sequence[VersionId]) -> ServerId:
    """Return a server for a desktop that needs ISOs beside its disk; `Conflict` says why there is none."""
    with services.grid.view() as db:
        view = look(db, services.board.all(), services.clock.monotonic())
    for iso in isos:  # all are needed there: the empty disk, and what is installed on it
        both = view.holders.get(wanted.version, frozenset()) & view.holders.get(iso, frozenset())
        view = replace(view, holders={**view.holders, wanted.version: both})
    left = rooms(view)
    found = choose(wanted, left, view, holders_only=True)
    if found is None:
        raise Conflict(f"No desktop can be made now: {refusal(wanted, left, view)}.", code="no_room")
    return found.server


def _line_of(services: Services, template: Item) -> str:
    """Return the golden image that a template's next version is of: a derived one begins its own."""
    if template["installing"]:
        return str(template["name"])
    if not template["parent"]:
        return str(template["image_name"])
    parent = present.template_of(services, template["parent"])
    return str(template["name"] if parent["image"] == template["image"] else template["image_name"])
