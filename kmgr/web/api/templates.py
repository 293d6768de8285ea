"""API: templates, and who may use them."""

import asyncio

from aiohttp import web

from kmgr.templates.commands import LIMITS
from kmgr.templates.model import Kind as DesktopKind
from kmgr.templates.model import Refresh
from kmgr.users.model import SubjectKind
from kmgr.web import actions, present
from kmgr.web.api.fields import Field, Fields, Kind, any_of, choice, flag, schema_of, text, whole
from kmgr.web.api.policies import POLICY
from kmgr.web.api.shapes import page, ref
from kmgr.web.api.table import PAGING, Access, Call, Route, answer, listed, nothing

_REFRESH = choice("when a desktop is made anew", *Refresh)
_SHAPE: Fields = {name: whole(f"how many {unit}", least, most) for name, (least, most, unit) in LIMITS.items()}
CREATE: Fields = {
    "name": text("a host name's stem: desktops are named after it", required=True, most=40),
    "notes": text("what people read about it"),
    "image": text("a golden image's id or name", required=True),
    "version": Field(Kind.TEXT_OR_WHOLE, "a version's id or number; missing: the newest"),
    **{name: whole(f"how many {unit}", least, most, required=True) for name, (least, most, unit) in LIMITS.items()},
    "refresh": _REFRESH,
    "policy": any_of("its rules, as far as they are not the usual ones", schema_of(POLICY)),
    "kind": choice("pooled: made anew after use (if missing); personal: kept for whoever got it", *DesktopKind),
}
_CHANGE: Fields = {**_SHAPE, "notes": text("what people read"), "refresh": _REFRESH, "enabled": flag("may be used")}
_ASSIGN: Fields = {
    "kind": choice("to whom", *SubjectKind, required=True),
    "subject": text("the account's or group's name; empty for everyone"),
}


async def templates(call: Call) -> web.Response:
    """Return the templates."""
    return listed(call, await asyncio.to_thread(present.templates, call.services), lambda one: (one["name"],))


async def create(call: Call) -> web.Response:
    """Make a template."""
    return answer(await actions.create_template(call.services, call.by, call.body), 201)


async def change(call: Call) -> web.Response:
    """Change a template."""
    return answer(await actions.update_template(call.services, call.by, call.part("id"), call.body))


async def delete(call: Call) -> web.Response:
    """Delete a template."""
    await actions.delete_template(call.services, call.by, call.part("id"))
    return nothing()


async def mend(call: Call) -> web.Response:
    """Let a template be refilled again."""
    return answer(await actions.mend(call.services, call.by, call.part("id")))


async def assignments(call: Call) -> web.Response:
    """Return who may use a template."""
    found = present.assignments(call.services, call.part("id"))
    return listed(call, found, lambda one: (one["kind"], one["subject"]))


async def assign(call: Call) -> web.Response:
    """Let somebody use a template."""
    template, kind, subject = call.part("id"), call.body["kind"], call.body.get("subject", "")
    found = await actions.assign(call.services, call.by, template, kind, subject)
    return answer({"items": found, "next": None})


async def unassign(call: Call) -> web.Response:
    """Take a template from somebody."""
    kind, subject = call.query["kind"], call.query.get("subject", "")
    await actions.unassign(call.services, call.by, call.part("id"), kind, subject)
    return nothing()


ROUTES = (
    Route(
        "GET", "/templates", templates, Access.ADMIN, "The templates with the counts of their desktops",
        {200: page("Template")}, query=PAGING,
    ),
    Route(
        "POST", "/templates", create, Access.ADMIN, "Make a template",
        {201: ref("Template")}, body=CREATE,
    ),
    Route(
        "PATCH", "/templates/{id}", change, Access.ADMIN, "Change a template",
        {200: ref("Template")}, body=_CHANGE,
    ),
    Route("DELETE", "/templates/{id}", delete, Access.ADMIN, "Delete a template and its desktops", {204: None}),
    Route(
        "POST", "/templates/{id}/mend", mend, Access.ADMIN, "Refill a template again after failures",
        {200: ref("Template")},
    ),
    Route(
        "GET", "/templates/{id}/assignments", assignments, Access.ADMIN, "Who may use a template",
        {200: page("Assignment")}, query=PAGING,
    ),
    Route(
        "POST", "/templates/{id}/assignments", assign, Access.ADMIN, "Let somebody use a template",
        {200: page("Assignment")}, body=_ASSIGN,
    ),
    Route(
        "DELETE", "/templates/{id}/assignments", unassign, Access.ADMIN, "Take a template from somebody",
        {204: None}, query=_ASSIGN,
    ),
)  # fmt: skip
