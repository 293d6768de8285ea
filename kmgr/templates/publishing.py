"""The last step of an import: a finished, hashed raw file becomes a version that the log knows.

The file gets its name first; should the log refuse the version, it is removed again. Should nobody know what the
log said, it stays: the replica agent removes it later if the log never heard of it.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.entropy import new_id
from kmgr.errors import Conflict, OutcomeUnknown, Unavailable
from kmgr.grid.envelope import asked_at
from kmgr.grid.outcomes import applied
from kmgr.grid.port import Grid
from kmgr.ids import ImageId, VersionId
from kmgr.replica import manifest as m
from kmgr.replica import queries
from kmgr.replica.images import Images
from kmgr.templates.install_queries import kind_of
from kmgr.templates.jobs import ImportProgress
from kmgr.templates.model import ImageKind

logger = logging.getLogger(__name__)

# How long a finished import insists on being told to the log.
INSIST_S = 60.0


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What came of an import: version `number` of an image, on this server already."""

    image: ImageId
    version: VersionId
    number: int
    size_bytes: int
    used_bytes: int


class Publisher:
    """Makes versions of finished files."""

    def __init__(self, grid: Grid, images: Images, clock: Clock) -> None:
        self._grid = grid
        self._images = images
        self._clock = clock

    async def publish(
        self,
        version: VersionId,
        raw: Path,
        manifest: m.Manifest,
        *,
        job: ImportProgress,
        notes: str,
        kind: ImageKind = ImageKind.DISK,
    ) -> ImportResult:
        """Give the file its name and tell the log of it: a version of the job's image, which is of that kind."""
        name = await asyncio.to_thread(self._images.adopt_new, version, raw, manifest)
        by = job.by
        keep = False
        try:
            image = await self._image(job.image_name, kind, by=by)
            body = {
                "version": version,
                "image": image,
                "size_bytes": manifest.size_bytes,
                "used_bytes": manifest.used_bytes,
                "block_bytes": manifest.block_bytes,
                "manifest_hash": name,
                "notes": notes,
                "server": self._grid.server,
            }
            values = await self._insist("version.add", body, by=by)
            keep = True
        except OutcomeUnknown:
            keep = True  # the agent removes it later, should the log never have heard of it
            raise
        finally:
            if not keep:
                await asyncio.to_thread(self._images.remove, version)
        number = int(values["number"])
        logger.info("image imported", extra={"image": job.image_name, "number": number, "version": version})
        return ImportResult(image, version, number, manifest.size_bytes, manifest.used_bytes)

    async def _image(self, name: str, kind: ImageKind, *, by: str) -> ImageId:
        """Return the image of that name and kind, made now if there is none."""
        image = await self._named(name, by=by)
        with self._grid.view() as db:
            now = kind_of(db, image)
        if now is not kind:
            await self._insist("image.kind", {"image": image, "kind": kind}, by=by)
        return image

    async def _named(self, name: str, *, by: str) -> ImageId:
        with self._grid.view() as db:
            known = queries.image_by_name(db, name)
        if known is not None:
            return known.id
        image = ImageId(new_id("img"))
        try:
            await self._insist("image.create", {"image": image, "name": name, "notes": ""}, by=by)
        except Conflict:  # two imports of one new name at the same time: the other one made it
            with self._grid.view() as db:
                made = queries.image_by_name(db, name)
            if made is None:
                raise
            return made.id
        return image

    async def _insist(self, type: str, body: Mapping[str, Any], *, by: str) -> Mapping[str, Any]:
        """Propose until the log answers: an hour of copying isn't thrown away for an election."""
        command, until = asked_at(new_id("cmd"), self._grid.status().applied), self._clock.monotonic() + INSIST_S
        while True:
            try:
                return applied(await self._grid.propose(type, body, by=by, id=command))
            except (Unavailable, OutcomeUnknown):
                if self._clock.monotonic() >= until:
                    raise
            await self._clock.sleep(1.0)
