"""A cycle, seen from the server that has the desktop: find out what changed, offer it, send what is wanted.

The other server says first what its copy's newest point is. If the hypervisor
can count from there, what it counted is offered; if not, all that the overlay
holds. Each grain is offered with its hash, and only what the copy has otherwise
travels: a broken cycle, a lost bitmap and a server that comes back all cost
reading, and no more bytes than necessary.

The name of the point is kept by the hypervisor (or lies in the overlay) and by the
copy, never here: this server may forget everything at any moment.
"""

import asyncio
import errno
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.entropy import new_id
from kmgr.errors import KmgrError, Refused, Unavailable
from kmgr.grid.port import Requests, Stream
from kmgr.ids import DesktopId, ServerId, VersionId
from kmgr.replica import mirror_wire as wire
from kmgr.replica.grains import GRAIN, grains_in
from kmgr.replica.images import Images, Measure, disk_error, room
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.mirror_port import Backups, CountLost, Moment
from kmgr.replica.mirror_state import Identity
from kmgr.replica.mirror_wire import Kind, Offer
from kmgr.replica.nbd import Lent
from kmgr.replica.overlay_file import OverlayFile, stamp

logger = logging.getLogger(__name__)

POINT = "kmgr"
# Read at once from a running desktop: fewer questions, and a bounded piece of memory.
_RUN = 16
# So many offers may wait for their answers, 2 MiB each.
_AHEAD = 3
_ZEROS = bytes(GRAIN)

Slow = Callable[[int], Awaitable[None]]


async def unlimited(_bytes: int) -> None:
    """Let everything pass at once."""


@dataclass(slots=True)
class _Read:
    """One batch: the offers, and the bytes of those that are not zeros."""

    offers: list[Offer] = field(default_factory=list)
    data: list[bytes | memoryview] = field(default_factory=list)


@dataclass(slots=True)
class _Source:
    """What one cycle reads, and what its point will be called."""

    batches: Iterator[_Read]
    everything: bool
    as_of: int
    frozen: bool = False
    cycle: str = ""
    still: str = ""
    # Where what a guest writes over meanwhile is kept, if its disk is held.
    kept_in: Path | None = None


class DiskMirror:
    """The `Mirror` of this server; `slow` is awaited with the bytes that are about to be sent."""

    def __init__(
        self,
        requests: Requests,
        images: Images,
        backups: Backups,
        *,
        clock: Clock,
        slow: Slow = unlimited,
        measure: Measure = room,
    ) -> None:
        self._requests = requests
        self._images = images
        self._backups = backups
        self._clock = clock
        self._slow = slow
        self._measure = measure
        self._tasks: dict[DesktopId, asyncio.Task[CopyPoint]] = {}

    async def recover(self) -> None:
        """End what an earlier life of this daemon left half-done."""
        await self._backups.recover()

    async def run(self) -> None:
        """Go on thawing guests that have not said that they go on."""
        await self._backups.run()

    def still(self) -> Mapping[DesktopId, int]:
        """Return whose guests a person must look after."""
        return self._backups.still()

    async def cycle(
        self, desktop: DesktopId, generation: int, disk: Path, *, to: ServerId, last: CopyPoint | None
    ) -> CopyPoint:
        """Bring the copy on another server up to now."""
        if desktop in self._tasks:
            raise Unavailable(f"the disk of desktop {desktop} is being copied already")
        task = self._tasks[desktop] = asyncio.create_task(self._cycle(desktop, generation, disk, to, last))
        try:
            return await task
        except OSError as error:
            raise disk_error(error, doing=f"copying the disk of desktop {desktop}") from error
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, KmgrError, OSError):
                await task
            self._tasks.pop(desktop, None)

    async def stop(self, desktop: DesktopId) -> None:
        """End a cycle under way, and what the hypervisor keeps for the next one."""
        task = self._tasks.get(desktop)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if await self._backups.running(desktop):
            await self._backups.end(desktop)
            await self._backups.keep(desktop, "")

    async def _cycle(
        self, desktop: DesktopId, generation: int, disk: Path, to: ServerId, last: CopyPoint | None
    ) -> CopyPoint:
        identity = await asyncio.to_thread(self._identity, desktop, generation, disk)
        stream = await self._requests.open(to, wire.STREAM, {"disk": asdict(identity)}, timeout_s=30.0)
        try:
            hello = wire.parsed(await wire.expect(stream, Kind.HELLO))
            if last is not None and hello.get("as_of") != last.as_of:
                logger.info(
                    "the copy of a desktop is at another point than was believed",
                    extra={"desktop": desktop, "to": to, "found": hello.get("as_of"), "believed": last.as_of},
                )
            if await self._backups.running(desktop):
                return await self._from_running(stream, identity, disk, hello)
            return await self._from_file(stream, identity, disk, hello)
        finally:
            stream.writer.close()

    def _identity(self, desktop: DesktopId, generation: int, disk: Path) -> Identity:
        with OverlayFile(disk) as overlay:
            header = overlay.header
        version = VersionId(Path(header.backing).name.removesuffix(".raw"))
        if not header.backing or Path(header.backing) != self._images.path(version).absolute():
            raise Refused(
                f"the disk of desktop {desktop} lies on {header.backing or 'nothing'}: it cannot be copied, "
                "because that is no image of this server"
            )
        return Identity(desktop, generation, version, self._images.manifest_name(version), header.size_bytes)

    # -- a desktop that runs ---------------------------------------------------------------------------------------

    async def _from_running(self, stream: Stream, identity: Identity, disk: Path, hello: dict[str, Any]) -> CopyPoint:
        desktop = identity.desktop
        point = new_id(POINT)
        since = str(hello.get("cycle") or "")
        known = await self._backups.points(desktop)
        # What a broken cycle left: one point is enough, that which the copy has.
        since = since if since in known else ""
        if list(known) != ([since] if since else []):
            await self._backups.keep(desktop, since)
        try:
            as_of, moment = await self._begin(desktop, since, point)
            with ExitStack() as stack:
                lent = stack.enter_context(
                    await asyncio.to_thread(Lent, moment.socket, moment.export, bitmap=moment.bitmap)
                )
                # Held at most a moment: what the overlay holds is all that can have changed, also what came since.
                extents = lent.dirty() if moment.bitmap else await asyncio.to_thread(_held, disk)
                batches = _lent_batches(lent, extents)
                source = _Source(batches, not moment.bitmap, as_of, moment.frozen, cycle=point, kept_in=disk.parent)
                done = await self._send(stream, identity, source)
        finally:
            # Also when this is cancelled: a disk that is held makes QEMU write everything twice.
            await asyncio.shield(self._let_go(desktop))
        try:
            await self._backups.keep(desktop, point)
        except KmgrError as error:  # the next cycle finds the older point and forgets it
            logger.info("an older point is kept", extra={"desktop": desktop, "cause": error.message})
        return done

    async def _let_go(self, desktop: DesktopId) -> None:
        try:
            await self._backups.end(desktop)
        except KmgrError as error:  # the next one to begin ends it
            logger.warning("a disk is still held", extra={"desktop": desktop, "cause": error.message})

    async def _begin(self, desktop: DesktopId, since: str, point: str) -> tuple[int, Moment]:
        as_of = self._clock.now_ms()
        try:
            return as_of, await self._backups.begin(desktop, since=since, point=point)
        except CountLost as error:
            logger.warning(
                "what changed on a desktop's disk is not known: its copy is compared with all of it",
                extra={"desktop": desktop, "cause": error.message},
            )
        await self._backups.keep(desktop, "")
        as_of = self._clock.now_ms()
        return as_of, await self._backups.begin(desktop, since="", point=point)

    # -- a desktop that is powered off -----------------------------------------------------------------------------

    async def _from_file(self, stream: Stream, identity: Identity, disk: Path, hello: dict[str, Any]) -> CopyPoint:
        as_of = self._clock.now_ms()
        still = await asyncio.to_thread(stamp, disk)
        cycle = str(hello.get("cycle") or "")
        if hello.get("still") == still:
            source = _Source(iter(()), False, as_of, cycle=cycle, still=still)
            return await self._send(stream, identity, source)
        with ExitStack() as stack:
            overlay = stack.enter_context(await asyncio.to_thread(OverlayFile, disk))
            counted = [bitmap for bitmap in overlay.bitmaps() if bitmap.name.startswith(f"{POINT}-")]
            # A second bitmap would hold a part of the changes.
            whole = len(counted) == 1 and counted[0].whole and counted[0].name == cycle
            size = identity.size_bytes
            grains = grains_in(overlay.dirty(counted[0]), size_bytes=size) if whole else overlay.allocated()
            source = _Source(
                _file_batches(overlay, grains), not whole, as_of, cycle=cycle if whole else "", still=still
            )

            async def unchanged() -> None:
                if await self._backups.running(identity.desktop) or await asyncio.to_thread(stamp, disk) != still:
                    raise Unavailable(f"desktop {identity.desktop} was started while its disk was copied: again soon")

            return await self._send(stream, identity, source, before_commit=unchanged)

    # -- both ------------------------------------------------------------------------------------------------------

    async def _send(
        self,
        stream: Stream,
        identity: Identity,
        source: _Source,
        *,
        before_commit: Callable[[], Awaitable[None]] | None = None,
    ) -> CopyPoint:
        sent = await wire.tell(stream, Kind.BEGIN, {"everything": source.everything})
        ahead: deque[_Read] = deque()
        while (batch := await asyncio.to_thread(self._next, source)) is not None:
            sent += await wire.send(stream, Kind.OFFER, wire.spell_offers(batch.offers))
            ahead.append(batch)
            if len(ahead) > _AHEAD:
                sent += await self._answer(stream, ahead.popleft())
        while ahead:
            sent += await self._answer(stream, ahead.popleft())
        if before_commit is not None:
            await before_commit()
        point = CopyPoint(identity.desktop, identity.generation, source.as_of, sent, source.everything, source.frozen)
        told = {"as_of": point.as_of, "full": point.full, "frozen": point.frozen, "sent_bytes": sent}
        await wire.tell(stream, Kind.COMMIT, told | {"cycle": source.cycle, "still": source.still})
        await wire.expect(stream, Kind.DONE)
        return point

    def _next(self, source: _Source) -> _Read | None:
        # While a disk is held, what the guest writes over is kept as well: that must not fill the desktops' disk.
        if source.kept_in is not None and not self._measure(source.kept_in).spare_bytes:
            raise disk_error(OSError(errno.ENOSPC, "full"), doing="copying a running desktop's disk")
        return next(source.batches, None)

    async def _answer(self, stream: Stream, batch: _Read) -> int:
        """Wait for what is wanted of a batch, and send it."""
        wanted = wire.parse_wants(await wire.expect(stream, Kind.WANT), len(batch.offers))
        data = [bytes(batch.data[n]) for n, want in enumerate(wanted) if want and batch.offers[n].digest]
        if not data:
            return 0
        await self._slow(sum(map(len, data)))
        return await wire.send(stream, Kind.DATA, *data)


def _held(disk: Path) -> Iterator[tuple[int, int]]:
    with OverlayFile(disk) as overlay:
        grains = list(overlay.allocated())
    return ((grain * GRAIN, GRAIN) for grain in grains)


def _lent_batches(lent: Lent, extents: Iterator[tuple[int, int]]) -> Iterator[_Read]:
    batch = _Read()
    for first, count in _runs(grains_in(extents, size_bytes=lent.size_bytes)):
        length = min(count * GRAIN, lent.size_bytes - first * GRAIN)
        data = memoryview(lent.read(first * GRAIN, length))
        for index in range(count):
            _add(batch, first + index, data[index * GRAIN : (index + 1) * GRAIN])
        if len(batch.offers) + _RUN > wire.OFFERED:
            yield batch
            batch = _Read()
    if batch.offers:
        yield batch


def _file_batches(overlay: OverlayFile, grains: Iterator[int]) -> Iterator[_Read]:
    batch = _Read()
    for grain in grains:
        data = overlay.read(grain)
        if data is None:  # the bitmap counts it, and the base shows through: it was written and given back
            continue
        _add(batch, grain, data)
        if len(batch.offers) == wire.OFFERED:
            yield batch
            batch = _Read()
    if batch.offers:
        yield batch


def _add(batch: _Read, grain: int, data: bytes | memoryview) -> None:
    empty = data == _ZEROS[: len(data)]
    batch.offers.append(Offer(grain, b"" if empty else hashlib.sha256(data).digest()))
    batch.data.append(b"" if empty else data)


def _runs(grains: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Join neighbours, up to what is read at once."""
    first, count = 0, 0
    for grain in grains:
        if count and grain == first + count and count < _RUN:
            count += 1
            continue
        if count:
            yield first, count
        first, count = grain, 1
    if count:
        yield first, count
