"""API: the rules of a template, and the time zone in which calendars are meant."""

from aiohttp import web

from kmgr.templates.machine import Firmware, Hardware
from kmgr.templates.policy import Clones, Day, IdleThen, Refresh, Seed
from kmgr.web import policies
from kmgr.web.api.fields import Fields, any_of, text
from kmgr.web.api.shapes import FLAG, TEXT, WHOLE, Schema, many, maybe, one_of, ref
from kmgr.web.api.table import Access, Call, Route, answer

_DAYS: Schema = many(one_of(*Day))
_RAMP: Schema = {
    "type": "object",
    "properties": {
        "days": _DAYS, "dates": many(TEXT), "start": TEXT, "end": TEXT, "standby": WHOLE, "early_min": WHOLE,
    },
    "required": ["start", "end", "standby"],
    "additionalProperties": False,
}  # fmt: skip
_SCHEDULE: Schema = {"type": "object", "properties": {"days": _DAYS, "at": TEXT}, "additionalProperties": False}
_DEVICES: Schema = {
    "type": "object",
    "properties": {"clipboard": FLAG, "sound": FLAG, "video_mib": WHOLE},
    "additionalProperties": False,
}
_MACHINE: Schema = {
    "type": "object",
    "properties": {"firmware": one_of(*Firmware), "tpm": FLAG, "hardware": one_of(*Hardware)},
    "additionalProperties": False,
}
POLICY: Fields = {
    "refresh": any_of("when a pooled desktop is made anew", one_of(*Refresh)),
    "schedule": any_of("with refresh `schedule`: on which days and when", maybe(_SCHEDULE)),
    "keep_s": any_of(
        "how long one is kept after its screen was closed; null: while they are logged in", maybe(WHOLE)
    ),
    "idle_s": any_of("without a key or a movement for so long the screen closes; null: never", maybe(WHOLE)),
    "idle_warning_s": any_of("how long before that the user is warned", WHOLE),
    "idle_then": any_of("what happens then", one_of(*IdleThen)),
    "calendar": any_of("how many are ready when", many(_RAMP)),
    "holidays": any_of("days like 2026-12-24 on which no ramp of a weekday counts", many(TEXT)),
    "holiday_standby": any_of("how many are ready on those", WHOLE),
    "suspend_standby": any_of("standbys sleep until they are claimed", FLAG),
    "network": any_of("a network of libvirt; empty: the server's usual one", TEXT),
    "devices": any_of("what a desktop has besides picture and keys", _DEVICES),
    "machine": any_of("the kind of machine that desktops are made as from now on", _MACHINE),
    "name_pattern": any_of("how desktops are called: a host name with {number} or {number:3}, and {template}", TEXT),
    "instant_clone": any_of("whether desktops may start from a saved memory", one_of(*Clones)),
    "seed": any_of("which first-boot program of the guest is told its name and properties", one_of(*Seed)),
    "seed_data": any_of("added to what that is told: user-data of cloud-init or cloudbase-init", TEXT),
    "properties": any_of("names and values for the guest", {"type": "object", "additionalProperties": TEXT}),
}


async def show(call: Call) -> web.Response:
    """Return the rules of a template."""
    return answer(policies.shown(call.services, call.part("id")))


async def change(call: Call) -> web.Response:
    """Change rules of a template."""
    return answer(await policies.change(call.services, call.by, call.part("id"), call.body))


async def zone(call: Call) -> web.Response:
    """Return the grid's time zone."""
    return answer(policies.zone(call.services))


async def change_zone(call: Call) -> web.Response:
    """Choose the grid's time zone."""
    return answer(await policies.change_zone(call.services, call.by, call.body["zone"]))


ROUTES = (
    Route(
        "GET", "/templates/{id}/policy", show, Access.ADMIN, "A template's rules, and what they mean now",
        {200: ref("Rules")},
    ),
    Route(
        "PATCH", "/templates/{id}/policy", change, Access.ADMIN, "Change some of a template's rules",
        {200: ref("Rules")}, body=POLICY,
    ),
    Route(
        "GET", "/time-zone", zone, Access.ADMIN, "The time zone in which calendars are meant", {200: ref("TimeZone")},
    ),
    Route(
        "PUT", "/time-zone", change_zone, Access.ADMIN, "Choose the grid's time zone",
        {200: ref("TimeZone")}, body={"zone": text("its name, like Europe/Berlin", required=True, most=64)},
    ),
)  # fmt: skip
