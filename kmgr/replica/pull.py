"""Copy one version to this server from all servers that have something of it.

What an older version on this server has in common with it is taken from there; the rest comes by wire.
`choose` decides from which servers, `fetch` what from whom. One lane per source takes
what comes, verifies and writes it in a thread; a lane whose source breaks or lies ends, and
the others do its work. A source that broke is tried again after a pause, one that lied is not.
What is here is synced about every 64 MiB, so a power cut costs that much and a kill nothing.

Runs in the daemon's loop.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kmgr.clock import Clock
from kmgr.errors import NotFound, Refused, Unavailable
from kmgr.grid.port import Requests
from kmgr.ids import ServerId, VersionId
from kmgr.replica import choose, frames, transfer
from kmgr.replica import manifest as m
from kmgr.replica.background import background
from kmgr.replica.budget import Budget
from kmgr.replica.fetch import Ask, Fetch, all_pieces
from kmgr.replica.frames import Frame, Inlet, Kind
from kmgr.replica.images import Images
from kmgr.replica.model import Version
from kmgr.replica.pace import PACE, Pace
from kmgr.replica.part import Part, WrongBytes
from kmgr.replica.progress import CopyStatus, Rate, remaining_s
from kmgr.replica.reuse import reuse

logger = logging.getLogger(__name__)

# Names the servers that may have the version (nearest knowledge first), or None once the version is deleted.
Sources = Callable[[], Sequence[ServerId] | None]


class _Busy(Exception):
    """The source serves as many as it may."""


class Deleted(Exception):
    """The version was deleted from the grid while it was copied."""


@dataclass(slots=True, eq=False)
class _Lane:
    """One source: its stream once it stands, what it owes in the order of asking, and when it was last heard."""

    task: asyncio.Task[None] | None = None
    inlet: Inlet | None = None
    owed: deque[tuple[int, int]] = field(default_factory=deque)
    heard: float = 0.0


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
        self.liars: dict[ServerId, str] = {}
        self._images = images
        self._requests = requests
        self._clock = clock
        self._sources = sources
        self._relatives = relatives
        self._place = place
        self._pace = pace
        self._fetch = Fetch(0)
        self._budget = budget or Budget()
        self._lanes: dict[ServerId, _Lane] = {}
        self._paused: dict[ServerId, float] = {}
        self._tries: dict[ServerId, int] = {}
        self._moved = asyncio.Event()
        self._unsynced = 0
        self._flushing: asyncio.Task[None] | None = None
        self._rate = Rate()
        self._received = self._twice = self._reused = 0

    def progress(self) -> tuple[int, int]:
        """Return (blocks here, blocks in all)."""
        size = self.version.block_bytes
        blocks = -(-self.version.used_bytes // size)
        return (0 if self.part is None else blocks - -(-self.part.missing_bytes() // size)), blocks

    def status(self) -> CopyStatus:
        """Return how far this copy is, how fast it goes and where it comes from."""
        total = self.version.used_bytes
        missing = total if self.part is None else self.part.missing_bytes()
        rate = self._rate.now(self._clock.monotonic())
        sources = tuple(server for server in self._fetch.sources if self._lanes.get(server, _Lane()).owed)
        return CopyStatus(
            self.version.id, total - missing, total, rate, remaining_s(missing, rate), sources,
            self._received, self._twice, self._reused,
        )  # fmt: skip

    async def run(self) -> None:
        """Return once the version's file is whole and in place; raise what prevented it."""
        manifest = await self._manifest()
        part = await background(Part, self._images, self.version.id, manifest)
        try:
            await background(part.resume)
            self._check_room(part)
            self.part = part
            await self._reuse(part)
            self._fetch = Fetch(
                manifest.pieces,
                have=part.have,
                start=int(self._place * manifest.pieces),
                cost=lambda piece: part.missing(piece).bit_count() * manifest.block_bytes,
            )
            try:
                await self._fill()
            finally:
                await self._end_lanes()
            await background(part.finish)
        except BaseException as error:
            if isinstance(error, Unavailable) and error.code == "disk_full":
                # Desktops need the room more than an unfinished copy does.
                await background(part.discard)
            raise
        finally:
            self.part = None
            if self._flushing is not None:
                self._flushing.cancel()
            part.close()

    async def _reuse(self, part: Part) -> None:
        """Take what an older version on this server has already."""
        for relative in reversed(self._relatives):
            taken = await reuse(self._images, part, relative)
            self._reused += taken
            self._unsynced += taken // m.PIECE_BYTES
            if taken:
                logger.info("an older version was reused", extra={"version": self.version.id, "bytes": taken})

    async def _manifest(self) -> m.Manifest:
        here = self._images.side(self.version.id, "manifest")
        if here.exists():
            data = await background(here.read_bytes)
            if m.manifest_hash(data) == self.version.manifest_hash:
                return await background(self._parsed, data)
        causes = []
        for server in self._wanted_sources():
            try:
                data = await transfer.fetch_manifest(self._requests, server, self.version)
                manifest = await background(self._parsed, data)
            except NotFound:
                continue
            except Unavailable as error:
                causes.append(error.message)
                continue
            except Refused as error:
                self._accuse(server, error.message)
                continue
            await background(self._images.save_manifest, self.version.id, data)
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
                now = self._clock.monotonic()
                if self._fetch.reachable:
                    seen = now
                elif now - seen > self._pace.patience_s:
                    raise Unavailable("no server that has the rest of it can be reached")
                await self._moves(min(self._pace.look_s, self._ask_all(now) or self._pace.look_s))
                self._collect()
                if looking.done():
                    looking.result()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def _ask_all(self, now: float) -> float:
        """Ask every source for as much as it may owe; return how long to wait if the budget is spent."""
        for server, lane in self._lanes.items():
            if lane.inlet is None:
                continue
            if lane.owed and now - lane.heard > self._pace.silence_s:
                lane.inlet.close(f"no block came for {self._pace.silence_s:g} s")
                continue
            while not (wait_s := self._budget.wait_s(now=now)):
                ask = self._fetch.next(server, now=now)
                if ask is None:
                    break
                self._send(lane, lane.inlet, ask, now)
            if wait_s:
                return wait_s
        return 0.0

    def _send(self, lane: _Lane, inlet: Inlet, ask: Ask, now: float) -> None:
        assert self.part is not None  # noqa: S101 - lanes live within run()
        wanted = self.part.missing(ask.piece)
        if not lane.owed:
            lane.heard = now
        lane.owed.append((ask.piece, wanted))
        inlet.ask(ask, wanted)
        self._budget.spend(wanted.bit_count() * self.part.manifest.block_bytes, now=now)

    async def _keep_looking(self) -> None:
        """Give sources that may have something a lane, and take it from those that have nothing (left)."""
        while True:
            now = self._clock.monotonic()
            self._paused = {server: until for server, until in self._paused.items() if until > now}
            able = [server for server in self._wanted_sources() if server not in self._paused]
            useless = [server for server in self._lanes if not self._fetch.useful(server)]
            for server in choose.to_leave(able, self._lanes, useless):
                if (inlet := self._lanes[server].inlet) is not None:
                    inlet.close("others may have more")
            for server in choose.to_open(str(self._place), able, self._lanes):
                self._lanes[server] = lane = _Lane()
                lane.task = asyncio.create_task(self._lane(server, lane))
            until = min([now + self._pace.look_s, *self._paused.values()])
            await self._clock.sleep(max(self._pace.look_s / 20, until - now))

    def _wanted_sources(self) -> list[ServerId]:
        servers = self._sources()
        if servers is None:
            raise Deleted
        return [server for server in servers if server not in self.liars]

    async def _lane(self, server: ServerId, lane: _Lane) -> None:
        """Take what one source sends until the copy is done or the source fails."""
        try:
            lane.inlet = await self._open(server)
            while True:
                frame = await lane.inlet.next()
                lane.heard = self._clock.monotonic()
                await self._take(server, lane, frame)
                lane.inlet.done_with(frame)
                self._wake()
        except WrongBytes as error:
            self._accuse(server, str(error))
        except (NotFound, _Busy):
            self._retry_soon(server)
        except (Unavailable, Refused, OSError) as error:
            if getattr(error, "code", "").startswith("disk"):
                raise
            self._pause(server, str(error))
        finally:
            if lane.inlet is not None:
                lane.inlet.close("the copy ended")
            self._fetch.drop(server)
            self._wake()

    async def _open(self, server: ServerId) -> Inlet:
        assert self.part is not None  # noqa: S101 - lanes live within run()
        try:
            return await transfer.open_blocks(self._requests, server, self.version, pieces=self.part.manifest.pieces)
        except Unavailable as error:
            raise (_Busy() if error.code == "busy" else error) from error

    async def _take(self, server: ServerId, lane: _Lane, frame: Frame) -> None:
        """Do what a frame calls for."""
        part, fetch = self.part, self._fetch
        assert part is not None  # noqa: S101 - lanes live within run()
        now = self._clock.monotonic()
        match frame.kind:
            case Kind.HAVE:
                have = int.from_bytes(frame.data, "little") if frame.data else all_pieces(part.manifest.pieces)
                fetch.offer(server, have)
                return
            case Kind.NEWS:
                fetch.gained(server, frames.numbers(frame.data, below=part.manifest.pieces))
                return
            case Kind.GIVEN:
                fetch.given(server, frames.numbers(frame.data, below=part.manifest.pieces), now=now)
                return
        piece, wanted = lane.owed.popleft() if lane.owed else (-1, 0)
        if piece != frame.piece:
            raise Unavailable(f"an answer came that was not asked for (piece {frame.piece})")
        match frame.kind:
            case Kind.LACKING:
                fetch.lacking(server, piece)
            case Kind.DECLINED:
                fetch.declined(server, piece, now=now)
            case _:
                await self._keep_blocks(server, part, piece, wanted, frame)

    async def _keep_blocks(self, server: ServerId, part: Part, piece: int, wanted: int, frame: Frame) -> None:
        self._received += len(frame.data)
        if not part.missing(piece):
            self._twice += len(frame.data)
            self._fetch.arrived(server, piece)
            return
        await background(part.write, piece, wanted, frame.data)
        part.here(piece, wanted)
        self._fetch.arrived(server, piece)
        self._tries.pop(server, None)
        self._rate.note(self._received - self._twice, now=self._clock.monotonic())
        self._unsynced += 1
        if self._unsynced >= self._pace.flush_pieces and self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(part))

    async def _flush(self, part: Part) -> None:
        count = self._unsynced
        await background(part.flush)
        self._unsynced -= count

    def _collect(self) -> None:
        """Forget lanes that ended; raise what only they could know (our own disk failed)."""
        for server, lane in list(self._lanes.items()):
            if lane.task is not None and lane.task.done():
                del self._lanes[server]
                lane.task.result()
        if self._flushing is not None and self._flushing.done():
            flushing, self._flushing = self._flushing, None
            flushing.result()

    async def _end_lanes(self) -> None:
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lanes.clear()

    async def _moves(self, timeout_s: float) -> None:
        """Wait until something arrived or a source appeared, at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._moved.wait()
        except TimeoutError:
            pass
        self._moved.clear()

    def _wake(self) -> None:
        self._moved.set()

    def _retry_soon(self, server: ServerId) -> None:
        """Let a source that has nothing yet, or no hand free, rest a little, each time longer."""
        self._rest(server, self._pace.look_s)

    def _rest(self, server: ServerId, longest_s: float) -> None:
        """Try a source again soon, but later each time it fails in a row."""
        tries = self._tries.get(server, 0)
        self._tries[server] = tries + 1
        rest_s = min(longest_s, self._pace.look_s / 20 * 2.0 ** min(tries, 10))
        self._paused[server] = self._clock.monotonic() + rest_s

    def _pause(self, server: ServerId, cause: str) -> None:
        self._rest(server, self._pace.pause_s)
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
