"""Copy one version to this server from all servers that have something of it.

What an older version on this server has in common with it is taken from there; the rest comes by wire.
One lane per source: it asks ahead, verifies and writes in a thread, asks again.
`fetch` decides what; a lane whose source breaks or lies ends, and the others do
its work. A source that broke is tried again after a pause, one that lied is not.
What is here is synced and flagged about every 64 MiB, so a kill costs that much.

Runs in the daemon's loop.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from kmgr.clock import Clock
from kmgr.errors import KmgrError, NotFound, Refused, Unavailable
from kmgr.grid.port import Requests, Stream
from kmgr.ids import ServerId, VersionId
from kmgr.replica import manifest as m
from kmgr.replica import transfer
from kmgr.replica.fetch import Fetch
from kmgr.replica.images import Images
from kmgr.replica.model import Version
from kmgr.replica.pace import PACE, Pace
from kmgr.replica.part import Part, WrongBytes
from kmgr.replica.progress import CopyStatus
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
    ) -> None:
        self.version = version
        self.part: Part | None = None
        self.liars: dict[ServerId, str] = {}
        self._images = images
        self._requests = requests
        self._clock = clock
        self._sources = sources
        self._relatives = relatives
        self._place = place
        self._pace = pace
        self._fetch = Fetch(0)
        self._lanes: dict[ServerId, asyncio.Task[None]] = {}
        self._paused: dict[ServerId, float] = {}
        self._moved = asyncio.Event()
        self._unsynced = 0

    def progress(self) -> tuple[int, int]:
        """Return (blocks here, blocks in all)."""
        if self.part is None:
            return 0, -(-self.version.used_bytes // self.version.block_bytes)
        blocks = self.part.manifest.blocks
        return min(self.part.have.bit_count() * m.PIECE_BLOCKS, blocks), blocks

    def status(self) -> CopyStatus:
        """Return how far it is, for people."""
        here, whole = self.progress()
        size = self.version.block_bytes
        return CopyStatus(self.version.id, here * size, whole * size, 0, None, self._fetch.sources, 0, 0, 0)

    async def run(self) -> None:
        """Return once the version's file is whole and in place; raise what prevented it."""
        manifest = await self._manifest()
        part = await asyncio.to_thread(Part, self._images, self.version.id, manifest)
        try:
            await asyncio.to_thread(part.resume)
            self._check_room(part)
            self.part = part
            await self._reuse(part)
            self._fetch = Fetch(manifest.pieces, have=part.have, start=int(self._place * manifest.pieces))
            try:
                await self._fill()
            finally:
                await self._end_lanes()
            await self._flush(part)
            await asyncio.to_thread(part.finish)
        except BaseException as error:
            if isinstance(error, Unavailable) and error.code == "disk_full":
                # Desktops need the room more than an unfinished copy does.
                await asyncio.to_thread(part.discard)
            else:
                await self._keep(part)
            raise
        finally:
            self.part = None
            part.close()

    async def _reuse(self, part: Part) -> None:
        """Take what an older version on this server has already."""
        for relative in reversed(self._relatives):
            taken = await reuse(self._images, part, relative)
            self._unsynced += taken
            if taken:
                logger.info("an older version was reused", extra={"version": self.version.id, "pieces": taken})

    async def _keep(self, part: Part) -> None:
        """Flag what came since the last sync, as well as may be: the cause of the end is told anyway."""
        if self._unsynced:
            try:
                await self._flush(part)
            except KmgrError as error:
                logger.info("an unfinished copy could not be flagged", extra={"cause": error.message})

    async def _manifest(self) -> m.Manifest:
        here = self._images.side(self.version.id, "manifest")
        if here.exists():
            data = await asyncio.to_thread(here.read_bytes)
            if m.manifest_hash(data) == self.version.manifest_hash:
                return await asyncio.to_thread(self._parsed, data)
        causes = []
        for server in self._wanted_sources():
            try:
                data = await transfer.fetch_manifest(self._requests, server, self.version)
                manifest = await asyncio.to_thread(self._parsed, data)
            except NotFound:
                continue
            except Unavailable as error:
                causes.append(error.message)
                continue
            except Refused as error:
                self._accuse(server, error.message)
                continue
            await asyncio.to_thread(self._images.save_manifest, self.version.id, data)
            return manifest
        raise Unavailable("; ".join(causes) or "no server that has it can be reached")

    def _parsed(self, data: bytes) -> m.Manifest:
        manifest = m.parse(data)
        told = (manifest.size_bytes, manifest.block_bytes, manifest.used_bytes)
        if told != (self.version.size_bytes, self.version.block_bytes, self.version.used_bytes):
            raise Refused(f"the manifest of version {self.version.id} contradicts the log")
        return manifest

    def _check_room(self, part: Part) -> None:
        needed = self.version.used_bytes - part.allocated_bytes()
        spare = self._images.room().spare_bytes
        if needed > spare:
            raise Unavailable(
                f"the disk is too small: {needed >> 20} MiB are needed, {spare >> 20} MiB may be used."
                " Make room on this server",
                code="disk_full",
            )

    async def _fill(self) -> None:
        seen = self._clock.monotonic()
        looking = asyncio.create_task(self._keep_looking())
        try:
            while not self._fetch.done:
                if self._fetch.reachable:
                    seen = self._clock.monotonic()
                elif self._clock.monotonic() - seen > self._pace.patience_s:
                    raise Unavailable("no server that has the rest of it can be reached")
                await self._moves(self._pace.look_s)
                self._collect()
                if looking.done():
                    looking.result()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _keep_looking(self) -> None:
        """Ask all possible sources again and again what they have, and give each that has something a lane."""
        while True:
            now = self._clock.monotonic()
            self._paused = {server: until for server, until in self._paused.items() if until > now}
            able = [server for server in self._wanted_sources() if server not in self._paused]
            await asyncio.gather(*(self._ask_pieces(server) for server in able))
            await self._clock.sleep(self._pace.look_s)

    async def _ask_pieces(self, server: ServerId) -> None:
        try:
            has = await transfer.fetch_pieces(self._requests, server, self.version.id, count=self._fetch_count())
        except NotFound:
            return
        except KmgrError as error:
            self._pause(server, error.message)
            return
        self._fetch.offer(server, has)
        self._wake()
        if server not in self._lanes:
            self._lanes[server] = asyncio.create_task(self._lane(server))

    def _fetch_count(self) -> int:
        assert self.part is not None  # noqa: S101 - set before the first look
        return self.part.manifest.pieces

    def _wanted_sources(self) -> list[ServerId]:
        servers = self._sources()
        if servers is None:
            raise Deleted
        return [server for server in servers if server not in self.liars]

    async def _lane(self, server: ServerId) -> None:
        """Draw pieces from one source until nothing is missing or the source fails."""
        try:
            stream = await transfer.open_blocks(self._requests, server, self.version)
            try:
                await self._draw(server, stream)
            finally:
                stream.writer.close()
        except WrongBytes as error:
            self._accuse(server, str(error))
        except (Unavailable, Refused, OSError) as error:
            if getattr(error, "code", "").startswith("disk"):
                raise
            self._pause(server, str(error))
        finally:
            self._fetch.drop(server)
            self._wake()

    async def _draw(self, server: ServerId, stream: Stream) -> None:
        part = self.part
        assert part is not None  # noqa: S101 - lanes live within run()
        owed: deque[int] = deque()
        while not self._fetch.done:
            while (piece := self._fetch.next(server, now=self._clock.monotonic())) is not None:
                transfer.ask(stream, piece)
                owed.append(piece)
            if not owed:
                await self._moves(self._pace.look_s)
                if server not in self._fetch.sources:
                    return
                continue
            piece = owed.popleft()
            data = await transfer.answered(stream)
            if not data:
                self._fetch.lacking(server, piece)
                continue
            await asyncio.to_thread(part.write, piece, data)
            part.have |= 1 << piece
            self._fetch.arrived(server, piece)
            self._wake()
            await self._flush_sometimes(part)

    async def _flush_sometimes(self, part: Part) -> None:
        self._unsynced += 1
        if self._unsynced >= self._pace.flush_pieces:
            await self._flush(part)

    async def _flush(self, part: Part) -> None:
        count = self._unsynced
        await asyncio.to_thread(part.flush, part.have)
        self._unsynced -= count

    def _collect(self) -> None:
        """Forget lanes that ended; raise what only they could know (our own disk failed)."""
        for server, lane in list(self._lanes.items()):
            if lane.done():
                del self._lanes[server]
                lane.result()

    async def _end_lanes(self) -> None:
        for lane in self._lanes.values():
            lane.cancel()
        await asyncio.gather(*self._lanes.values(), return_exceptions=True)
        self._lanes.clear()

    async def _moves(self, timeout_s: float) -> None:
        """Wait until something arrived or a source appeared, at most `timeout_s`."""
        moved = self._moved
        try:
            async with asyncio.timeout(timeout_s):
                await moved.wait()
        except TimeoutError:
            pass

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def _pause(self, server: ServerId, cause: str) -> None:
        self._paused[server] = self._clock.monotonic() + self._pace.pause_s
        self._fetch.drop(server)
        logger.info(
            "a source of an image broke off",
            extra={"server": server, "version": self.version.id, "cause": cause},
        )

    def _accuse(self, server: ServerId, cause: str) -> None:
        self.liars[server] = cause
        logger.warning(
            "a server sent wrong bytes of an image",
            extra={"server": server, "version": self.version.id, "cause": cause},
        )
