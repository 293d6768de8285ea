"""Who needs which version of a golden image: templates that publish, try or tag it, desktops made from it."""

from sqlite_utils import Database

from kmgr.grid.rows import rows
from kmgr.ids import ServerId, VersionId
from kmgr.provision.model import DesktopState, Purpose
from kmgr.replica.model import Uses
from kmgr.templates.install_queries import install_drivers, installs
from kmgr.templates.queries import templates
from kmgr.templates.version_queries import canaries, tags


def uses(db: Database) -> Uses:
    """Return who needs which version. Retired desktops count until their server has removed them, copies too."""
    published: dict[VersionId, list[str]] = {}
    for template in templates(db):
        published.setdefault(template.version, []).append(template.name)
    desktops: dict[VersionId, dict[ServerId, int]] = {}
    for row in rows(db, "select version, server, count(*) as n from desktops group by version, server order by 1, 2"):
        desktops.setdefault(VersionId(row["version"]), {})[ServerId(row["server"])] = int(row["n"])
    # A copy of a personal desktop is an overlay on the same version, on another server.
    for row in rows(
        db,
        "select d.version, c.server, count(*) as n from copies c join desktops d on d.id = c.desktop"
        " group by d.version, c.server order by 1, 2",
    ):
        where = desktops.setdefault(VersionId(row["version"]), {})
        where[ServerId(row["server"])] = where.get(ServerId(row["server"]), 0) + int(row["n"])
    others: dict[VersionId, list[str]] = {}
    names = {template.id: template.name for template in templates(db)}
    for canary in canaries(db):
        others.setdefault(canary.version, []).append(f"the canary of {names.get(canary.template, canary.template)}")
    for template_id, tagged in tags(db).items():
        for tag, version in tagged.items():
            others.setdefault(version, []).append(f"the tag {tag} of {names.get(template_id, template_id)}")
    for template_id, iso in (*installs(db).items(), *install_drivers(db).items()):
        others.setdefault(iso, []).append(f"the installation of {names.get(template_id, template_id)}")
    return Uses(
        {version: tuple(names) for version, names in published.items()},
        desktops,
        {version: tuple(words) for version, words in others.items()},
        _at_work(db),
    )


def _at_work(db: Database) -> frozenset[ServerId]:
    """Return the servers with a desktop at whose screen somebody is, or that an administrator edits or tests."""
    sql = (
        "select distinct server from desktops where state = ? and"
        " (purpose <> ? or connected_at is not null and disconnected_at is null)"
    )
    return frozenset(ServerId(row["server"]) for row in rows(db, sql, [DesktopState.IN_USE, Purpose.USE]))
