"""The loop that brings every version of every image to this server, and keeps the record of what is here true.

Each round compares the state with the files: a held version whose file is missing
is reported gone, a whole file that the state doesn't know to be here is reported
here, files of deleted versions are removed, and what is lacking is copied, one
version after the other, oldest first. A failure is a sentence in `problems()` and
is tried again in a later round.

A file whose version the state has never known is kept for a while: an import may
just be bringing it into the log, or this server may not have caught up yet.

Runs in the daemon's loop; files are touched in threads.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import KmgrError
from kmgr.grid import queries as grid_queries
from kmgr.grid.envelope import Rejected
from kmgr.grid.port import Grid, Requests
from kmgr.ids import ServerId, VersionId
from kmgr.replica import queries
from kmgr.replica.images import Images
from kmgr.replica.model import Version, VersionState
from kmgr.replica.pace import PACE, Pace
from kmgr.replica.part import Part
from kmgr.replica.pull import Deleted, Pull
from kmgr.replica.transfer import Source

logger = logging.getLogger(__name__)

PERIOD_S = 5.0
ORPHAN_S = 600.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """One reading of the state."""

    applied: int
    versions: Mapping[VersionId, Version]
    names: Mapping[VersionId, str]
    held: frozenset[VersionId]
    majority: bool


class ReplicaAgent:
    """This server's keeper of images. `run()` is the loop, `run_once()` one round of it."""

    def __init__(self, grid: Grid, requests: Requests, clock: Clock, images: Images, *, pace: Pace = PACE) -> None:
        self._grid = grid
        self._requests = requests
        self._clock = clock
        self._images = images
        self._pace = pace
        self._pull: Pull | None = None
        self._problems: dict[VersionId, str] = {}
        self._round_problem = ""
        self._checked: set[VersionId] = set()
        self._ever_known: set[VersionId] = set()
        self._orphans: dict[VersionId, float] = {}
        self._here: set[VersionId] = set()
        Source(requests, images, part_of=self._part_of)

    def progress(self) -> Mapping[VersionId, tuple[int, int]]:
        """Return (blocks here, blocks in all) of every version, for the console's lights."""
        with self._grid.view() as db:
            versions = queries.versions(db)
        return {version.id: self._progress(version) for version in versions}

    def problems(self) -> tuple[str, ...]:
        """Return what keeps versions from this server, one sentence each."""
        found = [self._problems[version] for version in sorted(self._problems)]
        return tuple([self._round_problem, *found] if self._round_problem else found)

    def vitals(self) -> Mapping[str, Any]:
        """Return both for this server's heartbeat."""
        return {"images": self.progress(), "problems": self.problems()}

    async def run(self) -> None:
        """Do rounds until cancelled, at each change of the state and every few seconds."""
        while True:
            applied = self._grid.status().applied
            try:
                said = await self.run_once()
                if said:
                    logger.info("images", extra={"round": said})
                self._round_problem = ""
            except KmgrError as error:
                self._round_problem = f"images: {error.message}"
                logger.warning("a round over the images failed", extra={"cause": error.message})
                await self._clock.sleep(PERIOD_S)
            except Exception as error:
                self._round_problem = f"images: {error!r}"
                logger.exception("a round over the images met a bug: please report it")
                await self._clock.sleep(PERIOD_S)
            await self._grid.changed(applied, timeout_s=PERIOD_S)

    async def run_once(self) -> str:
        """Do one round and return what it changed, in words; nothing is an empty text."""
        done: list[str] = []
        seen = self._look()
        done += await self._tell_gone(seen)
        done += await self._tell_here(seen)
        done += await self._remove_strangers(seen)
        self._problems = {v: text for v, text in self._problems.items() if v in seen.versions}
        for version in seen.versions.values():
            if version.id not in self._here and version.state is VersionState.READY:
                done += await self._copy(version, seen)
        return "; ".join(done)

    def _look(self) -> _Seen:
        status = self._grid.status()
        with self._grid.view() as db:
            versions = {version.id: version for version in queries.versions(db)}
            images = {image.id: image.name for image in queries.images(db)}
            held = frozenset(holding.version for holding in queries.holdings(db, self._grid.server))
        names = {v.id: f"version {v.number} of {images.get(v.image, v.image)!r}" for v in versions.values()}
        self._ever_known |= versions.keys()
        return _Seen(status.applied, versions, names, held, status.majority)

    async def _tell_gone(self, seen: _Seen) -> list[str]:
        """Report held versions whose files are no longer here or no longer right."""
        here, said = set(), []
        for version in seen.versions.values():
            if await self._is_here(version):
                here.add(version.id)
            elif version.id in seen.held and version.id not in self._images.claimed:
                await asyncio.to_thread(self._images.set_aside, version.id)
                if await self._propose("version.gone", version.id):
                    said.append(f"{seen.names[version.id]} is missing here and is copied again")
        self._here = here
        return said

    async def _is_here(self, version: Version) -> bool:
        """Tell whether a version is whole here; its manifest is compared once per start, the rest at every round."""
        if version.id in self._checked and await asyncio.to_thread(self._images.present, version):
            return True
        self._checked.discard(version.id)
        if await asyncio.to_thread(self._images.intact, version) or await asyncio.to_thread(
            self._images.mend, version
        ):
            self._checked.add(version.id)
            return True
        return False

    async def _tell_here(self, seen: _Seen) -> list[str]:
        unsaid = sorted(self._here - seen.held)
        return [f"{seen.names[v]} is here" for v in unsaid if await self._propose("version.here", v)]

    async def _remove_strangers(self, seen: _Seen) -> list[str]:
        """Delete files of versions that were deleted, and of unknown ones after a time of grace."""
        now = self._clock.monotonic()
        strangers = set(await asyncio.to_thread(self._images.known)) - seen.versions.keys() - self._images.claimed
        self._orphans = {v: self._orphans.get(v, now) for v in strangers} if seen.majority else {}
        removed = []
        for version in sorted(strangers):
            orphaned_s = now - self._orphans.get(version, now)
            if version in self._ever_known or orphaned_s >= ORPHAN_S:
                await asyncio.to_thread(self._images.remove, version)
                self._checked.discard(version)
                removed.append(f"{version} removed")
        return removed

    async def _copy(self, version: Version, seen: _Seen) -> list[str]:
        name = seen.names[version.id]
        relatives = [v.id for v in seen.versions.values() if v.image == version.image and v.id in self._here]
        pull = Pull(
            version,
            images=self._images,
            requests=self._requests,
            clock=self._clock,
            sources=lambda: self._sources(version.id),
            relatives=relatives,
            place=self._place(),
            pace=self._pace,
        )
        began = self._clock.monotonic()
        self._pull = pull
        try:
            await pull.run()
        except Deleted:
            return []
        except KmgrError as error:
            return self._not_copied(version.id, name, error)
        finally:
            self._pull = None
        self._note_liars(pull, name)
        self._here.add(version.id)
        self._checked.add(version.id)
        await self._propose("version.here", version.id)
        return [f"{name} copied in {self._clock.monotonic() - began:.1f} s"]

    def _not_copied(self, version: VersionId, name: str, error: KmgrError) -> list[str]:
        if version not in self._problems:  # once is enough for the log; it is tried again every few seconds
            logger.warning("an image could not be copied", extra={"version": version, "cause": error.message})
        self._problems[version] = f"{name} cannot be copied to this server: {error.message}"
        return []

    def _note_liars(self, pull: Pull, name: str) -> None:
        if pull.liars:
            servers = ", ".join(sorted(pull.liars))
            self._problems[pull.version.id] = f"{name}: wrong bytes came from {servers}; its disk may be failing"
        else:
            self._problems.pop(pull.version.id, None)

    def _sources(self, version: VersionId) -> Sequence[ServerId] | None:
        """Return the other servers, holders first; None once the version is deleted."""
        with self._grid.view() as db:
            if queries.version(db, version) is None:
                return None
            holders = queries.holders(db, version)
            others = [s.id for s in grid_queries.servers(db) if s.id not in holders and not s.is_witness]
        return [server for server in (*holders, *others) if server != self._grid.server]

    def _place(self) -> float:
        """Return where on the disk this server begins, so that servers copying at the same time differ."""
        with self._grid.view() as db:
            servers = sorted(server.id for server in grid_queries.servers(db) if not server.is_witness)
        if self._grid.server not in servers:
            return 0.0
        return servers.index(self._grid.server) / len(servers)

    def _part_of(self, version: VersionId) -> Part | None:
        pull = self._pull
        return pull.part if pull is not None and pull.version.id == version else None

    def _progress(self, version: Version) -> tuple[int, int]:
        blocks = -(-version.used_bytes // version.block_bytes)
        if version.id in self._here:
            return blocks, blocks
        if self._pull is not None and self._pull.version.id == version.id:
            return self._pull.progress()
        return 0, blocks

    async def _propose(self, type: str, version: VersionId) -> bool:
        body = {"version": version, "server": self._grid.server}
        match await self._grid.propose(type, body, by=self._grid.server):
            case Rejected(_, detail):
                logger.info("the grid refused a report about an image", extra={"type": type, "cause": detail})
                return False
            case _:
                return True
