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


def install_drivers(db: Database) -> Mapping[TemplateId, VersionId]:
    """Return the version of the ISO with drivers of each template that is being installed with one."""
    found = rows(db, "select template, iso from install_drivers order by template")
    return {TemplateId(row["template"]): VersionId(row["iso"]) for row in found}


def installers(db: Database, template: TemplateId) -> tuple[VersionId, ...]:
    """Return the versions of the ISOs that a template is installed with: what it boots from, then the drivers."""
    found = (installs(db).get(template), install_drivers(db).get(template))
    return tuple(one for one in found if one is not None)
