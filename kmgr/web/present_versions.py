"""Templates' versions as plain values: what was published, how it stands, its tags, its desktops, and the canary.

What the golden image has and the template never published is listed too, as `draft`.
"""

from collections import Counter
from collections.abc import Mapping

from sqlite_utils import Database

import kmgr.provision.queries as provision_queries
import kmgr.replica.queries as replica_queries
import kmgr.templates.queries as template_queries
from kmgr.errors import NotFound
from kmgr.ids import TemplateId, VersionId
from kmgr.provision.capture_queries import Capture, captures
from kmgr.provision.model import DesktopState, Purpose
from kmgr.provision.warm import why_boots
from kmgr.replica.model import Version, VersionState
from kmgr.templates.install_queries import installs
from kmgr.templates.model import Kind as TemplateKind
from kmgr.templates.model import Template
from kmgr.templates.version_queries import canaries, tags, template_versions
from kmgr.templates.versions import Canary, Stand, TemplateVersion, before, tags_of
from kmgr.web import present_warm
from kmgr.web.records import BEING_MADE, Item
from kmgr.web.services import Services

DRAFT = "draft"

States = Mapping[VersionId, Counter[DesktopState]]


def versions(services: Services, template: str) -> list[Item]:
    """Return a template's versions, the newest first; `template` is an id."""
    with services.grid.view() as db:
        found = template_queries.template(db, TemplateId(template))
        if found is None:
            raise NotFound(f"there is no template {template}")
        shown = _versions(db, found)
    heard, names = services.board.all(), present_warm.names_of(services)
    # Of those that desktops are made of: a draft has run nowhere.
    asked = [one for one in shown if one["stand"] in (Stand.PUBLISHED, Stand.CANARY) and not why_boots(found)]
    told = {one["version"]: present_warm.checked(heard, names, one["version"]) for one in asked}
    return [{**one, "clones": told.get(one["version"], "")} for one in shown]


def version_of(services: Services, template: str, wanted: str | int) -> Item:
    """Return one version of a template, by id, number or tag."""
    for one in versions(services, template):
        if wanted in (one["version"], one["number"], str(one["number"])) or wanted in one["tags"]:
            return one
    raise NotFound(f"this template has no version {wanted}")


def bench(services: Services, template: str) -> list[Item]:
    """Return the desktops of a template that are edited or tested, by name, and the versions being made of them."""
    with services.grid.view() as db:
        found = [
            one
            for one in provision_queries.desktops(db, template=TemplateId(template))
            if one.state is not DesktopState.RETIRED
        ]
        numbers = {one.id: one.number for one in replica_queries.versions(db)}
        wanted = {one.desktop: one for one in captures(db)}
    return [
        {
            "id": one.id,
            "name": one.name,
            "user": one.user,
            "state": str(one.state),
            "purpose": str(one.purpose),
            "number": numbers.get(one.version, 0),
            "capture": _capture(wanted.get(one.id)),
        }
        for one in found
        if one.purpose is not Purpose.USE or one.id in wanted
    ]


def endings(db: Database) -> Mapping[tuple[TemplateId, VersionId], str]:
    """Return what people whose desktop is of a version that ends are told."""
    told = {
        Stand.ENDED: "The version it was made from has ended: it is made anew when you log out.",
        Stand.WITHDRAWN: "The version it was made from was withdrawn: it is made anew when you log out.",
        Stand.STOPPED: "The version it was made from was withdrawn: it is made anew when you log out.",
    }
    pooled = {one.id for one in template_queries.templates(db) if one.kind is TemplateKind.POOLED}
    found = (one for one in template_versions(db) if one.template in pooled)
    return {(one.template, one.version): told[one.stand] for one in found if one.stand in told}


def _capture(capture: Capture | None) -> Item | None:
    if capture is None:
        return None
    told = (capture.state, capture.image, capture.notes, capture.step, capture.cause, capture.at)
    return dict(zip(("state", "image", "notes", "step", "cause", "at"), told, strict=True))


def rollouts(db: Database) -> Mapping[TemplateId, Item]:
    """Return of each template its `canary`, `before`, the number to go back to, and `parent`; each may be None."""
    going = {one.template: one for one in canaries(db)}
    noted: dict[TemplateId, list[TemplateVersion]] = {}
    for one in template_versions(db):
        noted.setdefault(one.template, []).append(one)
    states = _states(db) if going else {}
    installing = installs(db)
    found: dict[TemplateId, Item] = {}
    for template in template_queries.templates(db):
        own = noted.get(template.id, [])
        former = before(own, template.version)
        canary = going.get(template.id)
        found[template.id] = {
            "canary": _canary(canary, own, states.get(template.id, {})) if canary else None,
            "before": former.number if former else None,
            "parent": template.parent,
            "installing": installing.get(template.id),
        }
    return found


def _versions(db: Database, template: Template) -> list[Item]:
    noted = {one.version: one for one in template_versions(db, template.id)}
    there = {one.id: one for one in replica_queries.versions(db, template.image)}
    named = tags_of(tuple(noted.values()), template.version, tags(db, template.id).get(template.id, {}))
    states = _states(db, template.id).get(template.id, {})
    going = {one.version: one for one in canaries(db) if one.template == template.id}
    ids = sorted({*noted, *there}, key=lambda one: _order(noted.get(one), there.get(one)), reverse=True)
    shown = []
    for version in ids:
        published, made = noted.get(version), there.get(version)
        canary = going.get(version)
        shown.append(
            {
                **_said(version, published, made, default=version == template.version),
                "default": version == template.version,
                "tags": list(named.get(version, ())),
                "there": made is not None and made.state is VersionState.READY,
                **_counts(states.get(version, Counter())),
                "canary": _canary(canary, list(noted.values()), states) if canary else None,
            }
        )
    return shown


def _said(version: VersionId, published: TemplateVersion | None, made: Version | None, *, default: bool) -> Item:
    if published is None:
        stand = "published" if default else DRAFT
        source = (made.number, made.notes, made.created_by, made.created_at) if made else (0, "", "", 0)
        return {
            "version": version, "number": source[0], "notes": source[1], "author": source[2], "at": source[3],
            "stand": stand, "step": "", "cause": "", "soft_at": None, "hard_at": None,
        }  # fmt: skip
    return {
        "version": version,
        "number": published.number,
        "notes": published.notes,
        "author": published.author,
        "at": published.at,
        "stand": str(published.stand),
        "step": published.step,
        "cause": published.cause,
        "soft_at": published.soft_at,
        "hard_at": published.hard_at,
    }


def _canary(canary: Canary, noted: list[TemplateVersion], states: States) -> Item:
    counted = states.get(canary.version, Counter())
    return {
        "version": canary.version,
        "number": next((one.number for one in noted if one.version == canary.version), 0),
        "size": canary.size,
        "ready": counted[DesktopState.READY] + counted[DesktopState.IN_USE],
        "building": sum(counted[state] for state in BEING_MADE),
        "failed": canary.failed,
        "cause": canary.cause,
        "watch_s": canary.watch_s,
        "patience_s": canary.patience_s,
        "at": canary.at,
        "by": canary.by,
    }


def _counts(states: Counter[DesktopState]) -> Item:
    return {
        "ready": states[DesktopState.READY],
        "building": sum(states[state] for state in BEING_MADE),
        "in_use": states[DesktopState.IN_USE],
        "broken": states[DesktopState.BROKEN],
    }


def _states(
    db: Database, template: TemplateId | None = None
) -> dict[TemplateId, dict[VersionId, Counter[DesktopState]]]:
    found: dict[TemplateId, dict[VersionId, Counter[DesktopState]]] = {}
    for one in provision_queries.desktops(db, template=template):
        if one.purpose is not Purpose.USE:
            continue
        found.setdefault(one.template, {}).setdefault(one.version, Counter())[one.state] += 1
    return found


def _order(published: TemplateVersion | None, made: Version | None) -> tuple[int, int]:
    number = made.number if made else published.number if published else 0
    return (number, published.at if published else 0)
