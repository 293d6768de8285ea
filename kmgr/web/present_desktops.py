"""Desktops as plain values: pages of their list, and one's life so far."""

from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

import kmgr.provision.queries as provision_queries
import kmgr.templates.queries as template_queries
from kmgr.ids import DesktopId
from kmgr.provision import listing
from kmgr.provision.listing import Filter
from kmgr.provision.model import Desktop
from kmgr.users.access import may_administer
from kmgr.users.model import Session
from kmgr.web import present_copies, records
from kmgr.web.records import Item
from kmgr.web.services import Services


@dataclass(frozen=True, slots=True)
class Page:
    """Some desktops of a long list: whether `more` follow, and how many are in which state."""

    items: tuple[Item, ...]
    more: bool
    counts: dict[str, int]


def page(
    services: Services, session: Session, wanted: Filter, *, limit: int, after: tuple[str, str] | None = None
) -> Page:
    """Return a page of the desktops by name: of all for an administrator, of their own for others."""
    if not may_administer(session.person).allowed:
        wanted = Filter(wanted.state, wanted.template, wanted.server, session.person.name, wanted.words)
    with services.grid.view() as db:
        found = listing.page(db, wanted, limit=limit + 1, after=after)
        counted = listing.counts(db, wanted)
        shown = _shown(services, db, found[:limit])
    return Page(shown, len(found) > limit, dict(counted))


def life(services: Services, session: Session, desktop: str) -> list[Item]:
    """Return the stages of a desktop's life, the first one first; the last one lasts until now."""
    found = services.broker.see(session.person, DesktopId(desktop))
    now = services.clock.now_ms()
    with services.grid.view() as db:
        stages = provision_queries.life(db, found.id)
        names = present_copies.look(services, db).names
    ends: list[Any] = [*(stage.at for stage in stages[1:]), None]
    return [
        records.stage(stage, until=until, now=now, servers=names) for stage, until in zip(stages, ends, strict=True)
    ]


def _shown(services: Services, db: Database, found: tuple[Desktop, ...]) -> tuple[Item, ...]:
    names = {one.id: one.name for one in template_queries.templates(db)}
    sight = present_copies.look(services, db)
    return tuple(sight.desktop(one, names) for one in found)
