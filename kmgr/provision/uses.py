"""Who needs which version of a golden image: templates that publish it, desktops that were made from it."""

from sqlite_utils import Database

from kmgr.grid.rows import rows
from kmgr.ids import ServerId, VersionId
from kmgr.replica.model import Uses
from kmgr.templates.queries import templates


def uses(db: Database) -> Uses:
    """Return who needs which version. Retired desktops count until their server has removed them."""
    published: dict[VersionId, list[str]] = {}
    for template in templates(db):
        published.setdefault(template.version, []).append(template.name)
    desktops: dict[VersionId, dict[ServerId, int]] = {}
    for row in rows(db, "select version, server, count(*) as n from desktops group by version, server order by 1, 2"):
        desktops.setdefault(VersionId(row["version"]), {})[ServerId(row["server"])] = int(row["n"])
    return Uses({version: tuple(names) for version, names in published.items()}, desktops)
