"""Reads of templates' versions: rows of the state → records."""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr.grid.rows import rows
from kmgr.ids import TemplateId, VersionId
from kmgr.templates.versions import OVER, Canary, Rollout, Stand, TemplateVersion


def template_versions(db: Database, template: TemplateId | None = None) -> tuple[TemplateVersion, ...]:
    """Return the published versions of all templates, or of one, in the order in which they were published."""
    found = rows(
        db,
        "select * from template_versions where ? is null or template = ? order by template, at, number, version",
        [template, template],
    )
    return tuple(TemplateVersion(**{**row, "stand": Stand(row["stand"])}) for row in found)


def canaries(db: Database) -> tuple[Canary, ...]:
    """Return the canaries under way."""
    return tuple(Canary(**row) for row in rows(db, "select * from canaries order by template"))


def tags(db: Database, template: TemplateId | None = None) -> Mapping[TemplateId, Mapping[str, VersionId]]:
    """Return the named tags of each template that has any."""
    found: dict[TemplateId, dict[str, VersionId]] = {}
    sql = "select * from template_tags where ? is null or template = ? order by template, tag"
    for row in rows(db, sql, [template, template]):
        found.setdefault(TemplateId(row["template"]), {})[row["tag"]] = VersionId(row["version"])
    return found


def rollouts(db: Database) -> Mapping[TemplateId, Rollout]:
    """Return what the balancer has to know of each template that has a canary or versions that are over."""
    over: dict[TemplateId, set[VersionId]] = {}
    marks = ", ".join("?" for _ in OVER)
    sql = f"select template, version from template_versions where stand in ({marks}) order by template, version"  # noqa: S608
    for row in rows(db, sql, list(OVER)):
        over.setdefault(TemplateId(row["template"]), set()).add(VersionId(row["version"]))
    going = {canary.template: canary for canary in canaries(db)}
    return {
        template: Rollout(going.get(template), frozenset(over.get(template, ())))
        for template in sorted({*over, *going})
    }
