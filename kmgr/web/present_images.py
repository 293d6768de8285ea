"""Golden images as plain values: versions, where they are and how they fare there, as this server knows it.

From the log: which server holds what, and what is damaged. From the last
heartbeats: how far and how fast copies are, what a version takes on each disk, when it was last read again.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import kmgr.grid.queries as grid_queries
import kmgr.replica.queries as replica_queries
from kmgr.errors import NotFound
from kmgr.grid.model import Vitals
from kmgr.ids import ImageId, ServerId, VersionId
from kmgr.provision.uses import uses
from kmgr.replica.collect import needed, reasons
from kmgr.replica.model import Holding, Version
from kmgr.templates.install_queries import kinds
from kmgr.templates.model import ImageKind
from kmgr.web import records
from kmgr.web.records import Item
from kmgr.web.services import Services

_KEPT = ("taken_bytes", "shared_bytes", "percent", "done_at", "bad", "found")


def images(services: Services) -> list[Item]:
    """Return the golden images by name, each with its versions and where they are."""
    with services.grid.view() as db:
        found = replica_queries.images(db)
        versions = replica_queries.versions(db)
        holders: dict[VersionId, list[Holding]] = {}
        for holding in replica_queries.holdings(db):
            holders.setdefault(holding.version, []).append(holding)
        known = [one.id for one in grid_queries.servers(db)]
        rules, used, of = grid_queries.settings(db), uses(db), kinds(db)
    stays = reasons(
        versions,
        used,
        keep_versions=rules["keep_versions"],
        keep_days=rules["keep_days"],
        now_ms=services.clock.now_ms(),
    )
    heard = {one: vitals for one, vitals in services.board.all().items() if one in known}

    def shown(record: Version) -> Item:
        here = holders.get(record.id, [])
        names = [one.server for one in here]
        return {
            **records.version(record, holders=names, progress=_progress(record.id, names, heard)),
            "copying": _copying(record.id, names, heard),
            "kept": _kept(record.id, names, heard),
            "damaged": {one.server: one.damaged for one in here if one.damaged},
            "used_by": needed(record.id, used),
            "stays": stays.get(record.id, ""),
        }

    by_image: dict[ImageId, list[Version]] = {}
    for one in versions:
        by_image.setdefault(one.image, []).append(one)
    return [
        {
            **records.image(one, map(shown, sorted(by_image.get(one.id, ()), key=lambda v: v.number))),
            "copies": one.copies,
            "kind": str(of.get(one.id, ImageKind.DISK)),
        }
        for one in found
    ]


def image_of(services: Services, image_id: str) -> Item:
    """Return one golden image."""
    for one in images(services):
        if one["id"] == image_id:
            return one
    raise NotFound(f"there is no golden image {image_id}")


def version_of(services: Services, image_id: str, number: str) -> tuple[Item, Item]:
    """Return a golden image and one of its versions, by number."""
    image = image_of(services, image_id)
    for one in image["versions"]:
        if str(one["number"]) == number:
            return image, one
    raise NotFound(f"golden image {image['name']} has no version {number}")


def _progress(
    version: VersionId, holders: Iterable[ServerId], heard: Mapping[ServerId, Vitals]
) -> dict[ServerId, int]:
    done = set(holders)
    told = dict.fromkeys(sorted(done), 100)
    for one in sorted(heard):
        here, whole = heard[one].images.get(version, (0, 0))
        if one not in done and whole:
            # The last percent is said by the log: the server has verified and synced everything.
            told[one] = min(99, 100 * here // whole)
    return told


def _copying(version: VersionId, holders: Iterable[ServerId], heard: Mapping[ServerId, Vitals]) -> Item:
    """Return the copies under way: bytes per second lately, seconds left (None: not known), where it comes from."""
    found: Item = {}
    for server in sorted(heard.keys() - set(holders)):
        told = _part(heard[server], "copying", version)
        if told:
            remaining = told.get("remaining_s")
            found[server] = {
                "rate": _whole(told.get("rate")),
                "remaining_s": None if remaining is None else _whole(remaining),
                "sources": [str(one) for one in _listed(told.get("sources"))],
            }
    return found


def _kept(version: VersionId, holders: Iterable[ServerId], heard: Mapping[ServerId, Vitals]) -> Item:
    found: Item = {}
    for server in sorted(holders):
        told = _part(heard[server], "kept", version) if server in heard else {}
        if told:
            found[server] = {name: _whole(told.get(name)) for name in _KEPT}
    return found


def _part(vitals: Vitals, name: str, version: VersionId) -> Mapping[str, Any]:
    """Return what another server's heartbeat says; it may be of another version of kmgr."""
    every = vitals.extra.get(name)
    told = every.get(version) if isinstance(every, Mapping) else None
    return told if isinstance(told, Mapping) else {}


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | float) and value >= 0 else 0


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
