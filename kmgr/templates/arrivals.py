"""Arrivals on the disk of this server: `images/tmp/arr-*.part`, each with a record `arr-*.json` beside it.

What was acknowledged is on the disk: a record names an offset only after the bytes
before it were synced, and replaces the older record in one step. Whatever a kill or
a power cut left behind that offset is cut off when somebody goes on. One sender at
a time: a new one takes over from an older, whose connection may be dead already.

Runs in the daemon's loop; files are touched in threads.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import Conflict, KmgrError, NotFound, Refused, Unavailable
from kmgr.replica.background import to_the_end
from kmgr.replica.images import Images, disk_error, sync_folder, write_synced
from kmgr.templates import arriving
from kmgr.templates.arriving import Arrival
from kmgr.templates.sink import Sink

logger = logging.getLogger(__name__)

# After so many bytes at the latest what came is synced and noted: as much is sent again after a power cut.
NOTE_BYTES = 64 << 20
_READ = 4 << 20


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a piece must hash to: the algorithm as hashlib calls it, and the digest."""

    algorithm: str
    digest: bytes


@dataclass(slots=True)
class _Sending:
    task: "asyncio.Task[Arrival]"
    taken_over: bool = False


class Arrivals:
    """The arrivals of this server. `load` first; `on_change` hears of every byte count."""

    def __init__(self, images: Images, clock: Clock, *, keep_hours: Callable[[], int]) -> None:
        self._images = images
        self._folder = images.tmp
        self._clock = clock
        self._keep_hours = keep_hours
        self._known: dict[str, Arrival] = {}
        self._sending: dict[str, _Sending] = {}
        self._sums: dict[str, tuple[Any, int]] = {}
        self.moved: Callable[[str, int], None] = lambda _id, _at: None
        # Who makes an image of one, or fetches it, says so: it does not expire meanwhile.
        self.at_work: Callable[[str], bool] = lambda _id: False

    def load(self) -> None:
        """Read the records that are here; files without one are removed. Blocks."""
        for path in sorted(self._folder.glob("arr-*.json")):
            found = arriving.decode(path.read_bytes())
            part = path.with_suffix(".part")
            if found is not None and found.id == path.stem and part.exists() and part.stat().st_size >= found.offset:
                self._known[found.id] = found
        for path in self._folder.glob("arr-*"):
            if path.name.partition(".")[0] not in self._known or path.suffix not in (".json", ".part"):
                path.unlink(missing_ok=True)

    def all(self) -> tuple[Arrival, ...]:
        """Return what is on its way, oldest first."""
        return tuple(sorted(self._known.values(), key=lambda one: (one.created_at, one.id)))

    def get(self, id: str) -> Arrival:
        """Return one; raise `NotFound` if it ended, expired or never was."""
        found = self._known.get(id)
        if found is None:
            raise NotFound(f"there is no import {id} under way on this server: it ended, was cancelled or expired")
        return found

    def path(self, id: str) -> Path:
        """Return the file that grows."""
        return self._folder / f"{self.get(id).id}.part"

    def sent_now(self, id: str) -> bool:
        """Tell whether somebody is sending right now."""
        return id in self._sending

    def expires_at(self, arrival: Arrival) -> int:
        """Return when (ms) it is given up unless something happens to it."""
        return arriving.expires_at(arrival, keep_hours=self._keep_hours())

    async def create(self, new: Arrival) -> Arrival:
        """Begin an arrival; raise what speaks against it."""
        await self.sweep()
        arriving.check_new(new, self._known.values(), spare_bytes=self._images.room().spare_bytes)
        self._known[new.id] = new
        try:
            await asyncio.to_thread(self._begin, new)
        except OSError as error:
            await self._forget(new.id)
            raise disk_error(error, doing="the import") from error
        return new

    async def append(
        self,
        id: str,
        offset: int,
        chunks: AsyncIterator[bytes],
        *,
        length: int | None = None,
        checksum: Checksum | None = None,
    ) -> Arrival:
        """Add what comes, from `offset` on; returns the arrival as it is then, also if the sender broke off."""
        known = await self.settle(id)
        arriving.check_append(known, offset, length)
        if known.complete:  # its file is being imported: nothing of it is touched any more
            async for chunk in chunks:
                if chunk:
                    raise arriving.too_long(known)
            return known
        task = asyncio.create_task(self._receive(known, chunks, checksum))
        sending = self._sending[id] = _Sending(task)
        try:
            return await task
        except asyncio.CancelledError:
            if not sending.taken_over:
                task.cancel()
                await asyncio.wait({task})
                raise
            raise Conflict("another connection goes on with this upload", code="taken_over") from None
        finally:
            if self._sending.get(id) is sending:
                del self._sending[id]

    async def settle(self, id: str) -> Arrival:
        """Make whoever sends now give way, and return how far it came."""
        # Others may wait for the same one to end: each makes way for the next.
        while (sending := self._sending.get(id)) is not None:
            sending.taken_over = True
            sending.task.cancel()
            await asyncio.wait({sending.task})
            if self._sending.get(id) is sending:
                del self._sending[id]
        return self.get(id)

    async def set_size(self, id: str, size_bytes: int) -> Arrival:
        """Say how long a file is of which that was not known."""
        known = self.get(id)
        if known.size_bytes == size_bytes:
            return known
        if known.size_bytes is not None:
            raise Conflict(f"{known.shown} was announced with {known.size_bytes} bytes, not {size_bytes}")
        arriving.check_size(size_bytes)
        if size_bytes < known.offset:
            raise arriving.too_long(replace(known, size_bytes=size_bytes))
        others = [one for one in self._known.values() if one.id != id]
        arriving.check_room(size_bytes - known.offset, others, spare_bytes=self._images.room().spare_bytes)
        return await self._note(replace(known, size_bytes=size_bytes))

    async def change(self, id: str, **changes: Any) -> Arrival:
        """Note other facts about an arrival."""
        return await self._note(replace(self.get(id), **changes))

    async def check_whole(self, id: str) -> None:
        """Raise `Refused` if a complete file is not the one whose SHA-256 was given."""
        known = self.get(id)
        if not known.sha256:
            return
        running, at = self._sums.pop(id, (None, 0))
        if running is None or at != known.offset:
            try:
                running = await asyncio.to_thread(_hashed, self.path(id))
            except OSError as error:
                raise await self._unusable(known, error) from error
        if running.hexdigest() != known.sha256:
            raise arriving.wrong_sum(known)

    async def drop(self, id: str) -> None:
        """Forget an arrival and its file."""
        self.get(id)
        with suppress(NotFound):
            await self.settle(id)
        await self._forget(id)

    async def sweep(self) -> None:
        """Drop what expired."""
        now = self._clock.now_ms()
        for one in self.all():
            if one.touched_at > now:  # a clock that was wrong once must not keep it for years
                self._known[one.id] = replace(one, touched_at=now)
            if self.expires_at(one) <= now and not self.sent_now(one.id) and not self.at_work(one.id):
                logger.info("an unfinished import expired", extra={"image": one.image_name, "by": one.by})
                await self._forget(one.id)

    async def _receive(self, known: Arrival, chunks: AsyncIterator[bytes], checksum: Checksum | None) -> Arrival:
        try:
            sink = await to_the_end(asyncio.to_thread(Sink, self.path(known.id), known.offset), undo=Sink.close)
        except OSError as error:
            raise await self._unusable(known, error) from error
        piece = hashlib.new(checksum.algorithm) if checksum else None
        whole = self._running_sum(known)
        good = False
        try:
            async for chunk in chunks:
                if known.size_bytes is not None and sink.at + len(chunk) > known.size_bytes:
                    raise arriving.too_long(known)
                await sink.add(chunk)
                for running in (piece, whole):
                    if running is not None:
                        running.update(chunk)
                self.moved(known.id, sink.at)
                if sink.unsynced >= NOTE_BYTES:
                    self._need_room()
                    if piece is None:
                        known = await self._keep(known, sink)
            good = True
        finally:
            # Also for a sender that broke off: what came is kept. Not if it cannot be checked any more.
            try:
                if checksum is None or (good and piece is not None and piece.digest() == checksum.digest):
                    known = await to_the_end(self._keep(known, sink))
                    if whole is not None and known.offset == sink.at:
                        self._sums[known.id] = (whole, known.offset)
            finally:
                await to_the_end(asyncio.to_thread(sink.close))
        if checksum is not None and known.offset != sink.at:
            raise Refused(
                "the piece does not have the checksum that was sent with it: send it again", code="checksum"
            )
        return known

    async def _unusable(self, known: Arrival, error: OSError) -> KmgrError:
        """Return what is told of a file that cannot be opened; one that somebody removed is forgotten."""
        if not isinstance(error, FileNotFoundError):
            return disk_error(error, doing="the import")
        await self._forget(known.id)
        return NotFound(
            f"what had come of {known.shown} was removed from this server's disk: begin the import again",
            code="removed",
        )

    def _running_sum(self, known: Arrival) -> Any:
        if not known.sha256:
            return None
        running, at = self._sums.pop(known.id, (None, -1))
        if known.offset == 0:
            return hashlib.sha256()
        return running if at == known.offset else None

    def _need_room(self) -> None:
        if not self._images.room().spare_bytes:
            raise Unavailable(
                "the disk of this server is nearly full: the import stopped here and can go on when there is room",
                code="disk_full",
            )

    async def _keep(self, known: Arrival, sink: Sink) -> Arrival:
        await sink.sync()
        return await self._note(replace(self._known.get(known.id, known), offset=sink.written, error=""))

    async def _note(self, known: Arrival) -> Arrival:
        touched = replace(known, touched_at=self._clock.now_ms())
        if known.id not in self._known:
            return touched
        self._known[known.id] = touched
        try:
            await asyncio.to_thread(self._save, touched)
        except OSError as error:
            raise disk_error(error, doing="the import") from error
        return touched

    def _begin(self, new: Arrival) -> None:
        part = self._folder / f"{new.id}.part"
        with part.open("xb"):
            part.chmod(0o600)
        self._save(new)

    def _save(self, known: Arrival) -> None:
        path = self._folder / f"{known.id}.json"
        fresh = path.with_suffix(".new")
        write_synced(fresh, arriving.encode(known))
        fresh.replace(path)
        sync_folder(self._folder)

    async def _forget(self, id: str) -> None:
        self._known.pop(id, None)
        self._sums.pop(id, None)
        for kind in ("json", "new", "part"):
            await asyncio.to_thread((self._folder / f"{id}.{kind}").unlink, missing_ok=True)


def _hashed(path: Path) -> Any:
    running = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ):
            running.update(data)
    return running
