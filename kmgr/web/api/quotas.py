"""API: how many desktops people may have at once."""

from aiohttp import web

from kmgr.provision.allowance import Whom
from kmgr.provision.quota_commands import MOST
from kmgr.web import quotas
from kmgr.web.api.fields import Fields, choice, text, whole
from kmgr.web.api.shapes import page
from kmgr.web.api.table import PAGING, Access, Call, Route, answer, listed, nothing

_KEY: Fields = {
    "whom": choice("this person, each member of a group, or all of the group together", *Whom, required=True),
    "subject": text("the person's or the group's name", required=True, most=256),
    "template": text("of a group together: of this template only; missing: of all templates"),
}
_SET: Fields = {**_KEY, "most": whole("how many desktops at once; 0: none", 0, MOST, required=True)}


async def show(call: Call) -> web.Response:
    """Return the quotas."""
    return listed(call, quotas.shown(call.services), lambda one: (one["whom"], one["subject"], one["template"] or ""))


async def change(call: Call) -> web.Response:
    """Set a quota."""
    return answer({"items": await quotas.change(call.services, call.by, call.body), "next": None})


async def drop(call: Call) -> web.Response:
    """Drop a quota."""
    await quotas.drop(call.services, call.by, call.query)
    return nothing()


ROUTES = (
    Route(
        "GET", "/quotas", show, Access.ADMIN, "How many desktops people may have at once", {200: page("Quota")},
        query=PAGING,
    ),
    Route("PUT", "/quotas", change, Access.ADMIN, "Set or change a quota", {200: page("Quota")}, body=_SET),
    Route("DELETE", "/quotas", drop, Access.ADMIN, "Drop a quota", {204: None}, query=_KEY),
)  # fmt: skip
