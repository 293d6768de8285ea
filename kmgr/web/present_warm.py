"""Why desktops of a template boot instead of being restored, or keep the image's name, as their servers said last."""

from collections.abc import Mapping

import kmgr.grid.queries as grid_queries
from kmgr.grid.model import Vitals
from kmgr.ids import ServerId, TemplateId, VersionId
from kmgr.web.records import Item
from kmgr.web.services import Services


def slow_starts(services: Services, template: TemplateId) -> list[Item]:
    """Return the reasons, each with the names of the servers that gave it."""
    return reasons(services.board.all(), names_of(services), template)


def unnamed(services: Services, template: TemplateId) -> list[Item]:
    """Return why guests of a template keep the computer name of their image, with the servers that said so."""
    names, heard = names_of(services), services.board.all()
    told: dict[str, list[str]] = {}
    for server in sorted(names, key=lambda known: names[known]):
        notes = heard[server].extra.get("unnamed") if server in heard else None
        why = notes.get(template) if isinstance(notes, dict) else None
        if isinstance(why, str) and why:
            told.setdefault(why, []).append(names[server])
    return [{"why": why, "servers": on} for why, on in sorted(told.items())]


def stopped(services: Services, template: TemplateId) -> Mapping[ServerId, str]:
    """Return the servers, by id with their names, that do not try to restore desktops of a template any more."""
    heard = services.board.all()
    return {server: name for server, name in names_of(services).items() if _has_stopped(heard, server, template)}


def checked(heard: Mapping[ServerId, Vitals], names: Mapping[ServerId, str], version: VersionId) -> str:
    """Say on how many servers clones of a version were made, compared and found right; empty if none makes any."""
    told = [_warm(heard, server).get("checked") for server in names]
    able = [versions for versions in told if isinstance(versions, list)]
    count = sum(version in versions for versions in able)
    if not able:
        return ""
    if not count:
        return "instant clones: not checked yet, its first desktop on each server boots"
    return f"instant clones: checked on {count} of {len(able)} server{'' if len(able) == 1 else 's'}"


def reasons(heard: Mapping[ServerId, Vitals], names: Mapping[ServerId, str], template: TemplateId) -> list[Item]:
    """Return what servers that are still there said of a template, by reason.

    `again`: one of them does not try it any more by itself.
    """
    told: dict[str, list[ServerId]] = {}
    for server in sorted(names, key=lambda known: names[known]):
        notes = _warm(heard, server).get("notes")
        why = notes.get(template) if isinstance(notes, dict) else None
        if isinstance(why, str) and why:
            told.setdefault(why, []).append(server)
    return [
        {
            "why": why,
            "servers": [names[server] for server in on],
            "again": any(_has_stopped(heard, server, template) for server in on),
        }
        for why, on in sorted(told.items())
    ]


def _has_stopped(heard: Mapping[ServerId, Vitals], server: ServerId, template: TemplateId) -> bool:
    told = _warm(heard, server).get("stopped")
    return isinstance(told, list) and template in told


def _warm(heard: Mapping[ServerId, Vitals], server: ServerId) -> Mapping[str, object]:
    told = heard[server].extra.get("warm") if server in heard else None
    return told if isinstance(told, dict) else {}


def names_of(services: Services) -> Mapping[ServerId, str]:
    """Return the names of the servers, by id."""
    with services.grid.view() as db:
        return {server.id: server.name for server in grid_queries.servers(db)}
