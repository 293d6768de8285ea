"""The console's pages: each is a frame around one live part, which refreshes when the grid moves.

Only reading is here; what an administrator does is in the file of each resource.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from aiohttp import web

from kmgr.errors import NotFound
from kmgr.web import auth, html_env, present
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
    templates,
)
from kmgr.web.policies import zone as shown_zone
from kmgr.web.services import SERVICES

_EVENTS_STEP = 50
_MOST_EVENTS = 1000
# What the list of desktops can be narrowed to by its address: parameter → field.
_FILTERS: Mapping[str, str] = {"state": "state", "template": "template_id", "server": "server"}

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
        published,
        policies,
        desktops,
        people,
        directories,
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
    return {"templates": present.templates(services), "images": found, "newest": newest}


def _desktops(request: web.Request) -> Values:
    session = auth.require_admin(request)
    found = present.desktops(request.app[SERVICES], session)
    asked = {name: request.query.get(name, "") for name in _FILTERS}
    shown = [one for one in found if all(asked[name] in ("", one[field]) for name, field in _FILTERS.items())]
    return {"desktops": shown, "whole": len(found), "state": asked.pop("state"), "narrowed": asked}


def _desktop(request: web.Request) -> Values:
    session = auth.require_admin(request)
    return {"desktop": present.desktop_of(request.app[SERVICES], session, request.match_info["desktop"])}


def _users(request: web.Request) -> Values:
    session, services = auth.require_admin(request), request.app[SERVICES]
    return {
        "accounts": present.accounts(services),
        "directories": present.directories(services),
        "sessions": present.sessions(services, session),
        "me": session.person.name,
    }


def _events(request: web.Request) -> Values:
    asked, kind = request.query.get("limit", ""), request.query.get("kind", "")
    limit = min(int(asked), _MOST_EVENTS) if asked.isascii() and asked.isdecimal() else _EVENTS_STEP
    found = present.events(request.app[SERVICES], limit=limit + 1, kind=kind or None)
    more = len(found) > limit < _MOST_EVENTS
    return {"events": found[:limit], "kind": kind, "limit": limit, "step": _EVENTS_STEP, "more": more}


def _settings(request: web.Request) -> Values:
    services = request.app[SERVICES]
    return {"settings": present.settings(services), "zone": shown_zone(services)}


SECTIONS: Mapping[str, Section] = {
    "overview": Section("Overview", True, _overview),
    "servers": Section("Servers", True, _servers),
    "images": Section("Golden images", True, _images),
    "templates": Section("Templates", False, _templates),
    "desktops": Section("Desktops", False, _desktops),
    "users": Section("Users", False, _users),
    "events": Section("Events", False, _events),
    "settings": Section("Settings", False, _settings),
}
