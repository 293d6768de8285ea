"""Reads about installing from an ISO: what kind images are of, and which templates are being installed."""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr.grid.rows import rows, scalar
from kmgr.ids import ImageId, TemplateId, VersionId
from kmgr.templates.model import ImageKind


def kind_of(db: Database, image: str) -> ImageKind:
    """Return what the versions of an image are."""
    return ImageKind(scalar(db, "select kind from image_kinds where image = ?", [image], default=ImageKind.DISK))


def kinds(db: Database) -> Mapping[ImageId, ImageKind]:
    """Return the images that are not of disks, and what they are of."""
    return {ImageId(row["image"]): ImageKind(row["kind"]) for row in rows(db, "select * from image_kinds")}


def installs(db: Database) -> Mapping[TemplateId, VersionId]:
    """Return the templates that are being installed, and the version of the ISO that each boots from."""
    found = rows(db, "select template, iso from installs order by template")
    return {TemplateId(row["template"]): VersionId(row["iso"]) for row in found}
