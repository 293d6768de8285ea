"""Why desktops of a template boot by themselves instead of being restored, as their servers said last."""

from collections.abc import Mapping

import kmgr.grid.queries as grid_queries
from kmgr.grid.model import Vitals
from kmgr.ids import ServerId, TemplateId
from kmgr.web.records import Item
from kmgr.web.services import Services


def slow_starts(services: Services, template: TemplateId) -> list[Item]:
    """Return the reasons, each with the names of the servers that gave it."""
    with services.grid.view() as db:
        names = {server.id: server.name for server in grid_queries.servers(db)}
    return reasons(services.board.all(), names, template)


def reasons(heard: Mapping[ServerId, Vitals], names: Mapping[ServerId, str], template: TemplateId) -> list[Item]:
    """Return what servers that are still there said of a template, by reason."""
    told: dict[str, list[str]] = {}
    for server, name in sorted(names.items(), key=lambda known: known[1]):
        warm = heard[server].extra.get("warm") if server in heard else None
        notes = warm.get("notes") if isinstance(warm, dict) else None
        why = notes.get(template) if isinstance(notes, dict) else None
        if isinstance(why, str) and why:
            told.setdefault(why, []).append(name)
    return [{"why": why, "servers": on} for why, on in sorted(told.items())]
