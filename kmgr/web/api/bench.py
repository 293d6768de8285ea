"""API: how versions come about: desktops to edit and to test, versions of a desktop's disk, derived templates."""

from dataclasses import asdict

from aiohttp import web

from kmgr.provision.model import Purpose
from kmgr.templates.machine import MACHINES, System
from kmgr.web import bench_actions, present, present_versions
from kmgr.web.api.fields import Field, Fields, Kind, choice, flag, text, whole
from kmgr.web.api.published import PUBLISH
from kmgr.web.api.shapes import TEXT, page, record, ref
from kmgr.web.api.table import PAGING, Access, Call, Route, answer, listed
from kmgr.web.api.templates import CREATE

_BENCH: Fields = {
    "version": Field(Kind.TEXT_OR_WHOLE, "a version's id, number or tag", required=True),
    "purpose": choice(
        "edit: to make a version of it; test: to look at it", Purpose.EDIT, Purpose.TEST, required=True
    ),
}
_CAPTURE: Fields = {
    "notes": text("what was changed", most=2000),
    "image": text("the golden image to make a version of; missing: the template's", most=63),
    "publish": flag("publish it to the desktop's template"),
    **{name: PUBLISH[name] for name in ("canary", "canary_percent", "watch_s", "patience_s")},
    "template": text("the name of a template to make of it", most=40),
    "keep": flag("the desktop goes on afterwards; else it is removed"),
}
_INSTALL: Fields = {
    **{name: field for name, field in CREATE.items() if name not in ("image", "version")},
    "disk_gib": whole(
        "the size of the empty disk that it is installed on", 1, bench_actions.LARGEST_DISK_GIB, required=True
    ),
    "drivers": text("the id of an ISO with drivers, which lies in a second drive"),
    "system": choice("what is installed: which kind of machine it needs; missing: as policy.machine says", *System),
}
_DERIVE: Fields = {
    "name": text("the new template's name", required=True, most=40),
    "child": flag("it hangs below this one, and its versions become a line of their own"),
}


async def bench(call: Call) -> web.Response:
    """Make a desktop to edit or to test."""
    body = call.body
    made = await bench_actions.bench(call.services, call.by, call.part("id"), body["version"], body["purpose"])
    return answer(present.desktop_of(call.services, call.session, made), 202)


async def benches(call: Call) -> web.Response:
    """Return the desktops of a template that are edited or tested."""
    known = present.template_of(call.services, call.part("id"))
    return listed(call, present_versions.bench(call.services, known["id"]), lambda one: (one["name"], one["id"]))


async def install(call: Call) -> web.Response:
    """Begin a template that is installed from an ISO."""
    values, image = dict(call.body), call.part("id")
    disk_gib, drivers, system = values.pop("disk_gib"), values.pop("drivers", ""), values.pop("system", None)
    if system is not None:
        values["policy"] = {**values.get("policy", {}), "machine": asdict(MACHINES[System(system)])}
    made = await bench_actions.install(call.services, call.by, image, values, disk_gib=disk_gib, drivers=drivers)
    return answer(present.desktop_of(call.services, call.session, made), 202)


async def capture(call: Call) -> web.Response:
    """Make a version of a desktop's disk."""
    return answer(await bench_actions.capture(call.services, call.by, call.part("id"), call.body), 202)


async def derive(call: Call) -> web.Response:
    """Make a template like this one."""
    name, child = call.body["name"], bool(call.body.get("child", False))
    return answer(await bench_actions.derive(call.services, call.by, call.part("id"), name, child=child), 201)


ROUTES = (
    Route(
        "POST", "/templates/{id}/bench", bench, Access.ADMIN,
        "Have a desktop of any version made, published or not: it is yours and in no pool",
        {202: ref("DesktopHere")}, body=_BENCH,
    ),
    Route(
        "GET", "/templates/{id}/bench", benches, Access.ADMIN, "The desktops that are edited or tested",
        {200: page("BenchDesktop")}, query=PAGING,
    ),
    Route(
        "POST", "/images/{id}/install", install, Access.ADMIN,
        "Begin a template with an empty disk and have your desktop of it boot from an ISO",
        {202: ref("DesktopHere")}, body=_INSTALL,
    ),
    Route(
        "POST", "/desktops/{id}/version", capture, Access.ADMIN,
        "Have your desktop shut down and a version made of its disk",
        {202: record({"version": TEXT, "image": TEXT})}, body=_CAPTURE,
    ),
    Route(
        "POST", "/templates/{id}/copy", derive, Access.ADMIN, "Make a template like this one, or one derived from it",
        {201: ref("Template")}, body=_DERIVE,
    ),
)  # fmt: skip
