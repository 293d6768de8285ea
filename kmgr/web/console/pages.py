"""The console's pages: each is a frame around one live part, which refreshes when the grid moves.

Only reading is here; what an administrator does is in the file of each resource.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from aiohttp import web

from kmgr.errors import NotFound
from kmgr.provision.listing import Filter
from kmgr.web import auth, html_env, present, present_desktops, quotas
from kmgr.web.address import shown as shown_address
from kmgr.web.console import (
    address,
    desktops,
    directories,
    images,
    people,
    policies,
    published,
    servers,
    settings,
    template_wizard,
    templates,
)
from kmgr.web.console import quotas as quota_dialogs
from kmgr.web.policies import zone as shown_zone
from kmgr.web.services import SERVICES

_EVENTS_STEP = 50
_MOST_EVENTS = 1000
_DESKTOPS_STEP = 100
_MOST_DESKTOPS = 1000
_PEOPLE_STEP = 100
_MOST_PEOPLE = 1000
# What the list of desktops can be narrowed to by its address.
_FILTERS = ("state", "template", "server", "user", "words")

Values: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """One entry of the console's menu: its title, whether vitals refresh it too, and what it shows."""

    title: str
    vitals: bool
    read: Callable[[web.Request], Values]


def add_routes(app: web.Application) -> None:
    """Add the console to a server of a grid."""
    app.add_routes(
        [
            web.get("/console", show),
            web.get("/console/desktops/{desktop}", show_desktop),
            web.get("/console/part/desktops/{desktop}", part_desktop),
            web.get("/console/part/{section}", part),
            web.get("/console/{section}", show),
        ]
    )
    for resource in (
        address,
        servers,
        images,
        templates,
        template_wizard,
        published,
        policies,
        desktops,
        people,
        directories,
        quota_dialogs,
        settings,
    ):
        resource.add_routes(app)


async def show(request: web.Request) -> web.Response:
    """Show a section of the console."""
    auth.require_admin(request)
    name = request.match_info.get("section", "overview")
    section = _section(name)
    values: Values = {"section": name, "title": section.title, "vitals": section.vitals}
    return html_env.page(request, f"console/{name}.html", **values, **section.read(request))


async def part(request: web.Request) -> web.Response:
    """Return the live part of a section."""
    auth.require_admin(request)
    name = request.match_info["section"]
    return html_env.page(request, f"console/part/{name}.html", **_section(name).read(request))


async def show_desktop(request: web.Request) -> web.Response:
    """Show one desktop with a small picture of its screen."""
    values: Values = {"section": "desktops", "title": "", "vitals": False}
    return html_env.page(request, "console/desktop.html", **values, **_desktop(request))


async def part_desktop(request: web.Request) -> web.Response:
    """Return the live part of one desktop's page."""
    return html_env.page(request, "console/part/desktop.html", **_desktop(request))


def _section(name: str) -> Section:
    found = SECTIONS.get(name)
    if found is None:
        raise NotFound("The console has no such page.")
    return found


def _overview(request: web.Request) -> Values:
    return {"view": present.overview(request.app[SERVICES])}


def _servers(request: web.Request) -> Values:
    services = request.app[SERVICES]
    return {"servers": present.servers(services), "floating": shown_address(services)}


def _images(request: web.Request) -> Values:
    services = request.app[SERVICES]
    found = [one for one in present.servers(services) if one["role"] == "server"]
    return {"images": present.images(services), "servers": found, "imports": present.imports(services)}


def _templates(request: web.Request) -> Values:
    services = request.app[SERVICES]
    found = present.images(services)
    newest = {image["id"]: max((one["number"] for one in image["versions"]), default=0) for image in found}
    return {"templates": in_tree(present.templates(services)), "images": found, "newest": newest}


def in_tree(templates: list[Values]) -> list[Values]:
    """Return templates so that derived ones follow the one that they come from, each with its `depth`."""
    known = {one["id"] for one in templates}
    below: dict[str | None, list[Values]] = {}
    for one in templates:
        below.setdefault(one["parent"] if one["parent"] in known else None, []).append(one)

    def walk(parent: str | None, depth: int) -> list[Values]:
        found = []
        for one in below.get(parent, []):
            found += [{**one, "depth": depth}, *walk(one["id"], depth + 1)]
        return found

    return walk(None, 0)


def _desktops(request: web.Request) -> Values:
    session = auth.require_admin(request)
    asked = {name: request.query.get(name, "") for name in _FILTERS}
    view, limit = request.query.get("view", ""), _limit(request, _DESKTOPS_STEP, _MOST_DESKTOPS)
    found = present_desktops.page(request.app[SERVICES], session, Filter(**asked), limit=limit)
    return {
        "desktops": found.items,
        "counts": found.counts,
        "more": found.more and limit < _MOST_DESKTOPS,
        "limit": limit,
        "step": _DESKTOPS_STEP,
        "view": view,
        "sought": asked,
    }


def _desktop(request: web.Request) -> Values:
    session, services = auth.require_admin(request), request.app[SERVICES]
    desktop = request.match_info["desktop"]
    return {
        "desktop": present.desktop_of(services, session, desktop),
        "life": present_desktops.life(services, session, desktop),
    }


def _limit(request: web.Request, step: int, most: int) -> int:
    asked = request.query.get("limit", "")
    return max(1, min(int(asked), most)) if asked.isascii() and asked.isdecimal() else step


def _users(request: web.Request) -> Values:
    session, services = auth.require_admin(request), request.app[SERVICES]
    words, limit = request.query.get("words", ""), _limit(request, _PEOPLE_STEP, _MOST_PEOPLE)
    accounts = [
        one
        for one in present.accounts(services)
        if has_words(words, one["name"], one["display_name"], *one["groups"])
    ]
    sessions = [one for one in present.sessions(services, session) if has_words(words, one["user"], one["source"])]
    return {
        "accounts": accounts[:limit],
        "directories": present.directories(services),
        "quotas": quotas.shown(services),
        "quota_usual": quotas.usual(services),
        "sessions": sessions[:limit],
        "me": session.person.name,
        "words": words,
        "limit": limit,
        "step": _PEOPLE_STEP,
        "found": {"accounts": len(accounts), "sessions": len(sessions)},
        "most": _MOST_PEOPLE,
    }


def has_words(words: str, *texts: str) -> bool:
    """Tell whether each word of a search is somewhere in these texts, capital letters or not."""
    all_of_it = "\n".join(texts).casefold()
    return all(word in all_of_it for word in words.casefold().split())


def _events(request: web.Request) -> Values:
    kind, limit = request.query.get("kind", ""), _limit(request, _EVENTS_STEP, _MOST_EVENTS)
    found = present.events(request.app[SERVICES], limit=limit + 1, kind=kind or None)
    more = len(found) > limit < _MOST_EVENTS
    return {"events": found[:limit], "kind": kind, "limit": limit, "step": _EVENTS_STEP, "more": more}


def _settings(request: web.Request) -> Values:
    services = request.app[SERVICES]
    return {"settings": present.settings(services), "zone": shown_zone(services)}


def _help(request: web.Request) -> Values:
    services = request.app[SERVICES]
    return {"waits_s": next(one["value"] for one in present.settings(services) if one["name"] == "login_wait_s")}


SECTIONS: Mapping[str, Section] = {
    "overview": Section("Overview", True, _overview),
    "servers": Section("Servers", True, _servers),
    "images": Section("Golden images", True, _images),
    "templates": Section("Templates", False, _templates),
    "desktops": Section("Desktops", False, _desktops),
    "users": Section("Users", False, _users),
    "events": Section("Events", False, _events),
    "settings": Section("Settings", False, _settings),
    "help": Section("Help", False, _help),
}
