"""Replicated changes about installing from an ISO: what kind an image is of, and a template that begins empty.

A template that is being installed begins with an empty disk and is switched off. An administrator's desktop of it
boots from the ISO beside the disk; the first version that is published of it ends the installation (a trigger,
`schema`): the template is switched on, and nothing leads back to the empty disk.
"""

from collections.abc import Mapping
from dataclasses import replace

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.rows import one
from kmgr.templates.commands import create_template
from kmgr.templates.install_queries import kind_of
from kmgr.templates.model import ImageKind

_WORDS = {
    ImageKind.DISK: "disks",
    ImageKind.ISO: "installers (ISO)",
    ImageKind.DRIVERS: "CDs with drivers (ISO)",
    ImageKind.BLANK: "empty disks",
}


def set_kind(db: Database, command: Command) -> Outcome:
    """Say what an image's versions are, before its first one. body: image, kind (disk, iso, drivers or blank)."""
    body = command.body
    image = one(db, "select id, name from images where id = ?", [body["image"]])
    if image is None:
        return Rejected("not_found", f"there is no image {body['image']}: it may have been deleted meanwhile")
    if body["kind"] not in list(ImageKind):
        return Rejected("refused", f"{body['kind']!r} is no kind of image: {', '.join(ImageKind)} are known")
    now, wanted = kind_of(db, image["id"]), ImageKind(body["kind"])
    if now is wanted:
        return Applied()
    if one(db, "select id from versions where image = ? limit 1", [image["id"]]):
        return Rejected(
            "conflict",
            f"image {image['name']!r} is of {_WORDS[now]}, this is one of {_WORDS[wanted]}: choose another name",
        )
    db.execute("delete from image_kinds where image = ?", [image["id"]])
    if wanted is not ImageKind.DISK:
        db.execute("insert into image_kinds (image, kind) values (?, ?)", [image["id"], wanted])
    return Applied()


def install(db: Database, command: Command) -> Outcome:
    """Add a template that is to be installed. body: as `template.create`, of an empty disk; iso: an ISO's version.

    Besides drivers?: the version of another ISO, which lies in a second drive.
    """
    body = dict(command.body)
    iso, drivers = str(body.pop("iso")), str(body.pop("drivers", ""))
    if _kind_of_version(db, iso) is not ImageKind.ISO:
        return Rejected("refused", f"version {iso} is not an installer (ISO), or was deleted: import one first")
    if drivers and _kind_of_version(db, drivers) not in (ImageKind.ISO, ImageKind.DRIVERS):
        return Rejected("refused", f"version {drivers} is not an ISO with drivers, or was deleted: import one first")
    if kind_of(db, str(body["image"])) is not ImageKind.BLANK:
        return Rejected("refused", "what is installed begins with an empty disk")
    outcome = create_template(db, replace(command, body=body))
    if isinstance(outcome, Rejected):
        return outcome
    if one(db, "select id from images where name = ?", [body["name"]]):
        return Rejected(
            "conflict",
            f"there is already a golden image {body['name']!r}, and what is installed becomes one of the template's "
            "name: choose another name, or delete that image",
        )
    db.execute("update templates set enabled = 0 where id = ?", [body["template"]])
    db.execute("insert into installs (template, iso) values (?, ?)", [body["template"], iso])
    if drivers:
        db.execute("insert into install_drivers (template, iso) values (?, ?)", [body["template"], drivers])
    note(db, command, "template", str(body["template"]), f"template {body['name']} is installed from an ISO")
    return outcome


def _kind_of_version(db: Database, version: str) -> ImageKind | None:
    found = one(db, "select image from versions where id = ?", [version])
    return None if found is None else kind_of(db, found["image"])


APPLIERS: Mapping[str, Applier] = {"image.kind": set_kind, "template.install": install}
