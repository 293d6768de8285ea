"""The loop that brings the versions this server should have to it, and keeps the record of what is here true.

Each round compares the state with the files: a held version whose file is missing
or not what it was is reported gone with the reason, a whole file that the state
doesn't know to be here is reported here, files of deleted versions and copies too
many (`copies`) are removed, and what is lacking is copied, one version after the
other, the most urgent first. A failure is a sentence in `problems()` and is tried
again in a later round.

A file whose version the state has never known is kept for a while: an import may
just be bringing it into the log, or this server may not have caught up yet. While
the disk of images is not mounted (`disk`), nothing is concluded and nothing copied.

Runs in the daemon's loop; files are touched in threads.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from sqlite_utils import Database

from kmgr.clock import Clock
from kmgr.errors import KmgrError, Unavailable
from kmgr.grid import queries as grid_queries
from kmgr.grid.model import RUNNING, Vitals
from kmgr.grid.port import Grid, Requests
from kmgr.ids import ServerId, VersionId
from kmgr.replica import disk, queries
from kmgr.replica.budget import Budget
from kmgr.replica.copies import urgency
from kmgr.replica.footprint import Footprint
from kmgr.replica.images import Images, disk_error
from kmgr.replica.mend import warn
from kmgr.replica.model import Uses, Version
from kmgr.replica.pace import PACE, Pace
from kmgr.replica.part import Part
from kmgr.replica.pull import Deleted, Pull
from kmgr.replica.report import Report
from kmgr.replica.scrub import Rules, Scrub
from kmgr.replica.seen import Seen, limit, look
from kmgr.replica.transfer import Source

logger = logging.getLogger(__name__)

PERIOD_S = 5.0
ORPHAN_S = 600.0
# A server that was lost for so long is not counted on any more: others copy what it kept.
AWAY_S = 600.0
# A whole file that the disk cannot read is not read again at once.
SLOW_AGAIN_S = 600.0
# So long a person is told on the first page that wrong bytes came; the grid's history keeps it.
LIED_S = 86_400.0
# While a copy goes on, every server hears of it so often (`grid.vitals`).
HURRY_MS = 400

UsesOf: TypeAlias = Callable[[Database], Uses]
Board: TypeAlias = Callable[[], Mapping[ServerId, Vitals]]


def _no_uses(_db: Database) -> Uses:
    return Uses()


def _nobody() -> Mapping[ServerId, Vitals]:
    return {}


class ReplicaAgent:
    """This server's keeper of images. `run()` is the loop, `run_once()` one round of it; `scrub` has its own loop."""

    def __init__(
        self,
        grid: Grid,
        requests: Requests,
        clock: Clock,
        images: Images,
        *,
        pace: Pace = PACE,
        uses: UsesOf = _no_uses,
        board: Board = _nobody,
        own_mbit_s: int = 0,
    ) -> None:
        self._grid = grid
        self._requests = requests
        self._clock = clock
        self._images = images
        self._pace = pace
        self._uses = uses
        self._board = board
        self._own_mbit_s = own_mbit_s
        self._report = Report(grid, images)
        self._footprint = Footprint(images, clock)
        self._pull: Pull | None = None
        self._problems: dict[VersionId, str] = {}
        self._lied_at: dict[VersionId, float] = {}
        self._slow: dict[VersionId, tuple[float, disk.Fault | None]] = {}
        self._round_problem = ""
        images.absent = disk.absence(images.data_dir)
        self._checked: set[VersionId] = set()
        self._ever_known: set[VersionId] = set()
        self._orphans: dict[VersionId, float] = {}
        self._lost: dict[ServerId, float] = {}
        self._here: set[VersionId] = set()
        self._seen: Seen | None = None
        self._accused: set[tuple[VersionId, ServerId]] = set()
        self._sending, self._receiving = Budget(), Budget()
        self._source = Source(requests, images, part_of=self._part_of, clock=clock, budget=self._sending)
        self.scrub = Scrub(
            images,
            requests,
            clock,
            here=self.here,
            sources=self._sources,
            told=self._report,
            rules=lambda: self._seen.rules if self._seen else Rules(days=0, mib_s=1),
            busy=lambda: self._pull is not None or bool(images.absent),
        )

    def here(self) -> Sequence[Version]:
        """Return the versions that were whole here at the last look."""
        known: Mapping[VersionId, Version] = self._seen.versions if self._seen else {}
        return [known[version] for version in sorted(self._here) if version in known]

    def progress(self) -> Mapping[VersionId, tuple[int, int]]:
        """Return (blocks here, blocks in all) of every version, for the console's lights."""
        with self._grid.view() as db:
            versions = queries.versions(db)
        return {version.id: self._progress(version) for version in versions}

    def problems(self) -> tuple[str, ...]:
        """Return what keeps versions from this server, or has spoilt them, one sentence each."""
        found = [self._problems[version] for version in sorted(self._problems)]
        if self._seen is not None:
            servers = {one.id: one.name for one in self._seen.servers.values()}
            found += self.scrub.problems(self._seen.names, servers)
        return tuple([self._round_problem, *found] if self._round_problem else found)

    @property
    def bytes_per_s(self) -> int:
        """How many bytes per second may go out, and come in, now; 0: as many as the link takes."""
        return self._sending.rate

    async def slow(self, count: int) -> None:
        """Wait so long that this many bytes more may be sent: copies of personal disks share the images' limit."""
        wait_s = self._sending.spend(count, now=self._clock.monotonic())
        if wait_s:
            await self._clock.sleep(wait_s)

    def vitals(self) -> Mapping[str, Any]:
        """Return it for this server's heartbeat: progress, problems, room, and how each version stands here."""
        told: dict[str, Any] = {"images": self.progress(), "problems": self.problems()}
        told["extra"] = {"kept": self._kept(), "copying": self._copying()}
        if self._pull is not None:
            told["extra"]["hurry_ms"] = HURRY_MS
        if self._images.absent:
            told["can_run_desktops"] = False
            return told
        try:
            told["extra"]["images_spare_bytes"] = self._images.room().spare_bytes
        except (OSError, KmgrError) as error:
            told["problems"] = (*told["problems"], f"the disk of golden images cannot be measured: {error}")
        return told

    async def run(self) -> None:
        """Do rounds until cancelled, at each change of the state and every few seconds."""
        while True:
            applied = self._grid.status().applied
            try:
                said = await self.run_once()
                if said:
                    logger.info("images", extra={"round": said})
                self._round_problem = ""
            except (KmgrError, OSError) as error:
                told = error if isinstance(error, KmgrError) else disk_error(error, doing="looking after them")
                self._round_problem = f"images: {told.message}"
                logger.warning("a round over the images failed", extra={"cause": told.message})
                await self._clock.sleep(PERIOD_S)
            except Exception as error:
                self._round_problem = f"images: {error!r}"
                logger.exception("a round over the images met a bug: please report it")
                await self._clock.sleep(PERIOD_S)
            await self._grid.changed(applied, timeout_s=PERIOD_S)

    async def run_once(self) -> str:
        """Do one round and return what it changed, in words; nothing is an empty text."""
        done: list[str] = []
        seen = self._seen = self._look()
        self._images.absent = await asyncio.to_thread(disk.absence, self._images.data_dir)
        if self._images.absent:
            self._here = set()
            raise Unavailable(self._images.absent)
        await asyncio.to_thread(self._images.make_folders)
        done += await self._tell_gone(seen)
        done += await self._tell_here(seen)
        done += await self._remove_strangers(seen)
        done += await self._drop_superfluous(seen)
        self._forget_problems(seen.versions)
        await self._footprint.measure(self._here)
        tried: set[VersionId] = set()
        while version := next((v for v in seen.lacking(self._here) if v.id not in tried), None):
            tried.add(version.id)
            done += await self._copy(version, seen)
            seen = self._seen = self._look()  # what is most urgent may have changed meanwhile
        return "; ".join(done)

    def _look(self) -> Seen:
        status = self._grid.status()
        with self._grid.view() as db:
            lost = [s.id for s in grid_queries.servers(db) if s.state not in RUNNING and s.id != self._grid.server]
            seen = look(
                db,
                server=self._grid.server,
                applied=status.applied,
                majority=status.majority,
                uses=self._uses(db),
                away=self._away(lost),
                board=self._board(),
                own_mbit_s=self._own_mbit_s,
            )
        self._ever_known |= seen.versions.keys()
        self._heed(seen.bytes_per_s)
        return seen

    def _heed(self, bytes_per_s: int) -> None:
        for budget in (self._sending, self._receiving):
            budget.set_rate(bytes_per_s)

    def _heed_limits(self) -> None:
        """Slow down, or stop doing so, in the middle of a copy: people come and go, and settings change."""
        with self._grid.view() as db:
            rules, uses = grid_queries.settings(db), self._uses(db)
        self._heed(limit(rules, uses, self._grid.server, own_mbit_s=self._own_mbit_s))

    def _away(self, lost: Collection[ServerId]) -> frozenset[ServerId]:
        """Return who was lost for long; a restart of a server must not set copies in motion."""
        now = self._clock.monotonic()
        self._lost = {server: self._lost.get(server, now) for server in lost}
        return frozenset(server for server, since in self._lost.items() if now - since >= AWAY_S)

    async def _tell_gone(self, seen: Seen) -> list[str]:
        """Report held versions whose files are no longer here or no longer right, and say what is wrong with them."""
        here, said = set(), []
        for version in seen.versions.values():
            found = await self._fault(version)
            if found is None:
                here.add(version.id)
            elif version.id in seen.held and version.id not in self._images.claimed:
                logger.error("an image is not what it was", extra={"version": version.id, "cause": found.why})
                if found.useless:
                    await asyncio.to_thread(self._images.set_aside, version.id)
                if await self._report.gone(version.id, found.why):
                    said.append(f"{seen.name(version.id)} is missing here and is copied again: {found.why}")
        self._here = here
        return said

    async def _fault(self, version: Version) -> disk.Fault | None:
        """Return what a version lacks here, None if nothing; its manifest is compared once per start."""
        found = await asyncio.to_thread(disk.fault, self._images, version)
        if version.id in self._checked and found is None:
            return None
        self._checked.discard(version.id)
        if found is None or found.curable:
            now = self._clock.monotonic()
            since, known = self._slow.get(version.id, (now - SLOW_AGAIN_S, found))
            if now - since < SLOW_AGAIN_S:
                return known
            found = await asyncio.to_thread(disk.cured, self._images, version, found)
            if found is not None and found.slow:
                self._slow[version.id] = now, found
        if found is None:
            self._checked.add(version.id)
        return found

    async def _tell_here(self, seen: Seen) -> list[str]:
        unsaid = sorted(self._here - seen.held)
        return [f"{seen.name(v)} is here" for v in unsaid if await self._report.here(v)]

    async def _drop_superfluous(self, seen: Seen) -> list[str]:
        """Give up copies of which enough other servers have one, if the log agrees."""
        done = []
        for version in seen.superfluous(self._here & seen.held):
            if await self._report.drop(version.id):
                self._here.discard(version.id)
                self._checked.discard(version.id)
                await asyncio.to_thread(self._images.remove, version.id)
                done.append(f"{seen.name(version.id)} removed: enough other servers have it")
        return done

    async def _remove_strangers(self, seen: Seen) -> list[str]:
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

    async def _copy(self, version: Version, seen: Seen) -> list[str]:
        name = seen.name(version.id)
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
            budget=self._receiving,
        )
        began = self._clock.monotonic()
        self._pull = pull
        try:
            finished = await self._unless_overtaken(pull, seen)
        except Deleted:
            return []
        except KmgrError as error:
            return self._not_copied(version.id, name, error)
        except OSError as error:
            return self._not_copied(version.id, name, disk_error(error, doing=f"copying {name}"))
        finally:
            self._pull = None
            await self._note_liars(pull)
        if not finished:
            return [f"{name} waits for a more urgent one"]
        if pull.liars:
            self._problems[version.id] = self._lied(pull, name)
            self._lied_at[version.id] = self._clock.monotonic()
        else:
            self._problems.pop(version.id, None)
        self._here.add(version.id)
        self._checked.add(version.id)
        await self._report.here(version.id)
        return [f"{name} copied in {self._clock.monotonic() - began:.1f} s"]

    async def _unless_overtaken(self, pull: Pull, seen: Seen) -> bool:
        """Copy, but let a version that a desktop here waits for overtake one that none waits for; False if it did.

        Desktops need the room more than an unfinished copy does: when the disk fills up under it, it goes.
        """
        copying = asyncio.ensure_future(pull.run())
        waiting = asyncio.ensure_future(self._something_urgent(pull.version.id, seen))
        try:
            await asyncio.wait({copying, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if copying.done():
                await copying
                return True
            await waiting
            return False
        except Unavailable as error:
            if error.code == "disk_full":
                copying.cancel()
                await asyncio.gather(copying, return_exceptions=True)
                await asyncio.to_thread(self._images.give_up, pull.version.id)
            raise
        finally:
            for task in (copying, waiting):
                task.cancel()
            await asyncio.gather(copying, waiting, return_exceptions=True)

    async def _something_urgent(self, current: VersionId, seen: Seen) -> None:
        """Return when something more urgent than `current` is lacking; raise `Unavailable` if the disk fills up."""
        while True:
            applied = await self._grid.changed(seen.applied, timeout_s=self._pace.look_s)
            left = await asyncio.to_thread(self._images.room)
            if not left.spare_bytes:
                raise Unavailable(
                    f"the disk fills up: only {left.free_bytes >> 20} MiB are free, which are left to the desktops."
                    " Make room on this server",
                    code="disk_full",
                )
            if applied != seen.applied:
                self._heed_limits()
            if applied == seen.applied or urgency(current, seen.uses, seen.server) == 0:
                seen = replace(seen, applied=applied)
                continue
            seen = self._look()
            first = next(iter(seen.lacking(self._here)), None)
            if first is not None and first.id != current and urgency(first.id, seen.uses, seen.server) == 0:
                return

    def _not_copied(self, version: VersionId, name: str, error: KmgrError) -> list[str]:
        if version not in self._problems:  # once is enough for the log; it is tried again every few seconds
            logger.warning("an image could not be copied", extra={"version": version, "cause": error.message})
        self._problems[version] = f"{name} cannot be copied to this server: {error.message}"
        return []

    def _forget_problems(self, known: Collection[VersionId]) -> None:
        now = self._clock.monotonic()
        over = {version for version, at in self._lied_at.items() if now - at >= LIED_S}
        self._problems = {v: text for v, text in self._problems.items() if v in known and v not in over}
        self._lied_at = {v: at for v, at in self._lied_at.items() if v in self._problems}

    def _lied(self, pull: Pull, name: str) -> str:
        servers = ", ".join(sorted(self._server_name(one) for one in pull.liars))
        return f"{name}: wrong bytes came from {servers}; its disk may be failing"

    async def _note_liars(self, pull: Pull) -> None:
        """Name who sent wrong bytes: in the grid's history, and to itself, so that it looks at its disk."""
        version = pull.version
        for liar in sorted(pull.liars):
            if (version.id, liar) not in self._accused:
                self._accused.add((version.id, liar))
                await warn(self._requests, liar, version.id)
                try:
                    await self._report.lied(version, liar)
                except KmgrError as error:
                    logger.info("the grid was not told of a liar", extra={"cause": error.message})

    def _server_name(self, server: ServerId) -> str:
        known = self._seen.servers.get(server) if self._seen else None
        return known.name if known else server

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

    def _kept(self) -> Mapping[str, Any]:
        return {
            version.id: {
                **self._footprint.of(version.id),
                **self.scrub.state(version.id, -(-version.used_bytes // version.block_bytes)),
            }
            for version in self.here()
        }

    def _copying(self) -> Mapping[str, Any]:
        if self._pull is None:
            return {}
        now = self._pull.status()
        return {
            now.version: {"rate": now.rate, "remaining_s": now.remaining_s, "sources": list(now.sources)},
        }
