"""Reads of the replica package: rows of the state → records. Any thread, on a connection lent by `Grid.view()`."""

from sqlite_utils import Database

from kmgr.grid.rows import Row, one, rows
from kmgr.ids import ImageId, ServerId, VersionId
from kmgr.replica.model import ALL_SERVERS, Holding, Image, Version, VersionState

# A removed server's disks are nobody's: its holdings don't count, whatever the table remembers.
_HOLDINGS = (
    "select h.version, h.server, h.at, coalesce(d.blocks, 0) as damaged from holdings h join servers s on s.id ="
    " h.server left join damages d on d.version = h.version and d.server = h.server where s.state <> 'removed'"
)
_IMAGES = "select i.*, coalesce(c.copies, 0) as copies from images i left join image_copies c on c.image = i.id"


def images(db: Database) -> tuple[Image, ...]:
    """Return all images by name."""
    return tuple(Image(**row) for row in rows(db, f"{_IMAGES} order by i.name"))


def image(db: Database, image: ImageId) -> Image | None:
    """Return one image, or None."""
    row = one(db, f"{_IMAGES} where i.id = ?", [image])
    return None if row is None else Image(**row)


def image_by_name(db: Database, name: str) -> Image | None:
    """Return the image of that name, or None."""
    row = one(db, f"{_IMAGES} where i.name = ?", [name])
    return None if row is None else Image(**row)


def versions(db: Database, image: ImageId | None = None) -> tuple[Version, ...]:
    """Return the versions of one image, or of all, oldest first."""
    if image is None:
        found = rows(db, "select * from versions order by created_at, image, number")
    else:
        found = rows(db, "select * from versions where image = ? order by number", [image])
    return tuple(_version(row) for row in found)


def version(db: Database, version: VersionId) -> Version | None:
    """Return one version, or None."""
    row = one(db, "select * from versions where id = ?", [version])
    return None if row is None else _version(row)


def ready_mib(db: Database) -> int:
    """Return how much room a new server needs for the versions that all servers keep."""
    everywhere = {one.id for one in images(db) if one.copies == ALL_SERVERS}
    found = [one for one in versions(db) if one.state is VersionState.READY and one.image in everywhere]
    return sum(-(-one.used_bytes >> 20) for one in found)


def holdings(db: Database, server: ServerId | None = None) -> tuple[Holding, ...]:
    """Return which server holds which version, for one server or for all."""
    if server is None:
        found = rows(db, f"{_HOLDINGS} order by h.version, h.server")
    else:
        found = rows(db, f"{_HOLDINGS} and h.server = ? order by h.version", [server])
    return tuple(Holding(**row) for row in found)


def holders(db: Database, version: VersionId) -> tuple[ServerId, ...]:
    """Return the servers that hold all of a version, in id order."""
    found = rows(db, f"{_HOLDINGS} and h.version = ? order by h.server", [version])
    return tuple(ServerId(row["server"]) for row in found)


def _version(row: Row) -> Version:
    return Version(**{**row, "state": VersionState(row["state"])})
