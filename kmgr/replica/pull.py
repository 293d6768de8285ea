"""Copy one version to this server from all servers that have something of it.

What an older version on this server has in common with it is taken from there; the rest comes by wire (`lanes`).
What is here is synced about every 64 MiB, so a power cut costs that much and a kill nothing.

Runs in the daemon's loop.
"""

import logging
from collections.abc import Callable, Sequence

from kmgr.clock import Clock
from kmgr.errors import KmgrError, NotFound, Refused, Unavailable
from kmgr.grid.port import Requests
from kmgr.ids import ServerId, VersionId
from kmgr.replica import manifest as m
from kmgr.replica import manifest_file, transfer
from kmgr.replica.background import background, to_the_end
from kmgr.replica.budget import Budget
from kmgr.replica.images import Images
from kmgr.replica.lanes import Lanes, Liars
from kmgr.replica.model import Version
from kmgr.replica.pace import PACE, Pace
from kmgr.replica.part import Part
from kmgr.replica.progress import CopyStatus, remaining_s
from kmgr.replica.reuse import reuse

logger = logging.getLogger(__name__)

# Names the servers that may have the version (nearest knowledge first), or None once the version is deleted.
Sources = Callable[[], Sequence[ServerId] | None]


class Deleted(Exception):
    """The version was deleted from the grid while it was copied."""


class Pull:
    """One copy under way. `part` appears once the manifest is known; `liars` sent wrong bytes."""

    def __init__(
        self,
        version: Version,
        *,
        images: Images,
        requests: Requests,
        clock: Clock,
        sources: Sources,
        relatives: Sequence[VersionId] = (),
        place: float = 0.0,
        pace: Pace = PACE,
        budget: Budget | None = None,
    ) -> None:
        self.version = version
        self.part: Part | None = None
        self.liars = Liars()
        self._images = images
        self._requests = requests
        self._clock = clock
        self._sources = sources
        self._relatives = relatives
        self._place = place
        self._pace = pace
        self._budget = budget or Budget()
        self._lanes: Lanes | None = None
        self._reused = 0

    def progress(self) -> tuple[int, int]:
        """Return (blocks here, blocks in all)."""
        size = self.version.block_bytes
        blocks = -(-self.version.used_bytes // size)
        return (0 if self.part is None else blocks - -(-self.part.missing_bytes() // size)), blocks

    def status(self) -> CopyStatus:
        """Return how far this copy is, how fast it goes and where it comes from."""
        total = self.version.used_bytes
        missing = total if self.part is None else self.part.missing_bytes()
        lanes = self._lanes
        rate, sources = (0, ()) if lanes is None else (lanes.rate(), lanes.giving())
        received, twice = (0, 0) if lanes is None else (lanes.received, lanes.twice)
        return CopyStatus(
            self.version.id, total - missing, total, rate, remaining_s(missing, rate), sources,
            received, twice, self._reused,
        )  # fmt: skip

    async def run(self) -> None:
        """Return once the version's file is whole and in place; raise what prevented it."""
        manifest = await self._manifest()
        part = await to_the_end(background(Part, self._images, self.version.id, manifest), undo=Part.close)
        try:
            await background(part.resume)
            self._check_room(part)
            self.part = part
            await self._reuse(part)
            self._lanes = Lanes(
                self.version, part, requests=self._requests, clock=self._clock, sources=self._wanted_sources,
                liars=self.liars, place=self._place, pace=self._pace, budget=self._budget,
            )  # fmt: skip
            await self._lanes.fill(unsynced=self._reused // m.PIECE_BYTES)
            await background(part.finish)
        except BaseException as error:
            if isinstance(error, Unavailable) and error.code == "disk_full":
                # Desktops need the room more than an unfinished copy does.
                await background(part.discard)
            raise
        finally:
            self.part = None
            part.close()

    async def _reuse(self, part: Part) -> None:
        """Take what an older version on this server has already."""
        for relative in reversed(self._relatives):
            taken = await reuse(self._images, part, relative)
            self._reused += taken
            if taken:
                logger.info("an older version was reused", extra={"version": self.version.id, "bytes": taken})

    async def _manifest(self) -> m.Manifest:
        manifest = await background(self._own_manifest)
        if manifest is None:
            manifest = await self._fetched_manifest()
        told = (manifest.size_bytes, manifest.block_bytes, manifest.used_bytes)
        if told != (self.version.size_bytes, self.version.block_bytes, self.version.used_bytes):
            raise Refused(f"the manifest of version {self.version.id} contradicts the log")
        return manifest

    def _own_manifest(self) -> m.Manifest | None:
        """Return what an earlier copy left here, if it is what the log names."""
        here = self._images.side(self.version.id, "manifest")
        try:
            if not here.exists() or manifest_file.name_of(here) != self.version.manifest_hash:
                return None
            return self._images.manifest(self.version.id)
        except (KmgrError, OSError) as error:
            logger.info("a manifest cannot be read and comes anew", extra={"file": str(here), "cause": str(error)})
            return None

    async def _fetched_manifest(self) -> m.Manifest:
        causes = []
        for server in self._wanted_sources():
            try:
                return await transfer.fetch_manifest(self._requests, server, self.version, self._images)
            except NotFound:
                continue
            except Refused as error:
                self.liars.accuse(server, error.message, version=self.version.id)
            except KmgrError as error:  # whatever is wrong with one server, the next may have it
                causes.append(error.message)
        raise Unavailable("; ".join(dict.fromkeys(causes)) or "no server that has it can be reached")

    def _check_room(self, part: Part) -> None:
        needed = self.version.used_bytes - part.allocated_bytes()
        spare = self._images.room().spare_bytes
        if needed > spare:
            raise Unavailable(
                f"the disk is too small: {needed >> 20} MiB are needed, {spare >> 20} MiB may be used."
                " Make room on this server",
                code="disk_full",
            )

    def _wanted_sources(self) -> list[ServerId]:
        servers = self._sources()
        if servers is None:
            raise Deleted
        return [server for server in servers if server not in self.liars]
