"""API: the versions of a template: publish with or without a canary, go back, tags, dates."""

import asyncio

from aiohttp import web

from kmgr.templates.canary import LONGEST_S, PATIENCE_S, WATCH_S
from kmgr.web import present_versions, version_actions
from kmgr.web.api.fields import Field, Fields, Kind, choice, text, whole
from kmgr.web.api.shapes import TEXT, many, page, record, ref
from kmgr.web.api.table import PAGING, Access, Call, Route, answer, listed, nothing
from kmgr.web.version_actions import PASS, STOP

LATEST = 1 << 45
_VERSION = Field(Kind.TEXT_OR_WHOLE, "a version's id or number", required=True)
PUBLISH: Fields = {
    "version": _VERSION,
    "notes": text("what changed", most=2000),
    "canary": whole("how many desktops are tried before others get it; 0: none", 0, 1000),
    "canary_percent": whole("the same as a part of the standbys", 0, 100),
    "watch_s": whole(f"how long they must have been ready; {WATCH_S} if missing", 1, LONGEST_S),
    "patience_s": whole(f"how long they may take to become ready; {PATIENCE_S} if missing", 1, LONGEST_S),
}
_BACK: Fields = {"version": Field(Kind.TEXT_OR_WHOLE, "a version's id or number; missing: the default before")}
_VERDICT: Fields = {"verdict": choice("pass: others get it now; stop: nobody does", PASS, STOP, required=True)}
_DATES: Fields = {
    "soft_at": whole("from when on no new desktops are made of it, in ms since 1970; 0: never", 0, LATEST),
    "hard_at": whole("from when on its desktops go; 0: never", 0, LATEST),
}


async def versions(call: Call) -> web.Response:
    """Return the versions of a template."""
    found = await asyncio.to_thread(present_versions.versions, call.services, call.part("id"))
    return listed(call, found, lambda one: (-one["number"], one["version"]))


async def publish(call: Call) -> web.Response:
    """Publish a version."""
    return answer(await version_actions.publish(call.services, call.by, call.part("id"), call.body))


async def roll_back(call: Call) -> web.Response:
    """Go back to a former version."""
    body = call.body
    return answer(await version_actions.roll_back(call.services, call.by, call.part("id"), body.get("version")))


async def decide(call: Call) -> web.Response:
    """Let a canary pass or stop it."""
    verdict = call.body["verdict"]
    return answer(await version_actions.decide(call.services, call.by, call.part("id"), verdict))


async def try_clones(call: Call) -> web.Response:
    """Have instant clones tried again."""
    return answer({"servers": await version_actions.try_clones(call.services, call.by, call.part("id"))})


async def tag(call: Call) -> web.Response:
    """Give a version a name."""
    given = (call.part("id"), call.part("tag"), call.body["version"])
    return answer(await version_actions.tag(call.services, call.by, *given))


async def untag(call: Call) -> web.Response:
    """Take a name away."""
    await version_actions.untag(call.services, call.by, call.part("id"), call.part("tag"))
    return nothing()


async def dates(call: Call) -> web.Response:
    """Say when a version ends."""
    where = (call.part("id"), call.part("version"))
    return answer(await version_actions.set_dates(call.services, call.by, *where, call.body))


ROUTES = (
    Route(
        "GET", "/templates/{id}/versions", versions, Access.ADMIN,
        "What a template has published, how each version stands, and what it could publish",
        {200: page("TemplateVersion")}, query=PAGING,
    ),
    Route(
        "POST", "/templates/{id}/publish", publish, Access.ADMIN,
        "Make new desktops from another version, if wished after a few were tried",
        {200: ref("Template")}, body=PUBLISH,
    ),
    Route(
        "POST", "/templates/{id}/rollback", roll_back, Access.ADMIN,
        "Go back to a former version; while a canary goes on and no version is named, only that ends",
        {200: ref("Template")}, body=_BACK,
    ),
    Route(
        "POST", "/templates/{id}/canary", decide, Access.ADMIN, "Let a canary pass now, or stop it",
        {200: ref("Template")}, body=_VERDICT,
    ),
    Route(
        "POST", "/templates/{id}/clones/retry", try_clones, Access.ADMIN,
        "Have servers that stopped trying to restore its desktops try again; returns their names",
        {200: record({"servers": many(TEXT)})},
    ),
    Route(
        "PUT", "/templates/{id}/tags/{tag}", tag, Access.ADMIN, "Give a version a name, which it keeps",
        {200: ref("TemplateVersion")}, body={"version": _VERSION},
    ),
    Route("DELETE", "/templates/{id}/tags/{tag}", untag, Access.ADMIN, "Take a name from a version", {204: None}),
    Route(
        "PATCH", "/templates/{id}/versions/{version}", dates, Access.ADMIN, "Say when a version ends",
        {200: ref("TemplateVersion")}, body=_DATES,
    ),
)  # fmt: skip
