"""What people send or have fetched: arrivals from their first byte to their import, across restarts.

An arrival that is complete is imported by itself. A bad file is dropped with its
reason; where the server or the grid was in the way the file is kept, and `retry`
(or the next start) tries again. A download goes on by itself after a restart.

Runs in the daemon's loop.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol

from kmgr.clock import Clock
from kmgr.entropy import new_id
from kmgr.errors import KmgrError, NotFound, OutcomeUnknown, Refused, Unavailable
from kmgr.templates.arrivals import Arrivals, Checksum
from kmgr.templates.arriving import Arrival, Way, same_file
from kmgr.templates.importer import Importer
from kmgr.templates.jobs import ImportProgress, Rate

logger = logging.getLogger(__name__)

_SWEEP_S = 60.0
# So many finished ones are told of to whoever asks for them by their id.
_REMEMBERED = 50


class Download(Protocol):
    """Fetches the rest of an arrival that has an address (`download.fetch`)."""

    async def __call__(self, arrivals: Arrivals, id: str) -> None:
        """Return when all of it is here; raise what stands against it."""
        ...


class Reception:
    """The arrivals of one server and what becomes of them."""

    def __init__(self, importer: Importer, arrivals: Arrivals, clock: Clock, *, download: Download) -> None:
        self.arrivals = arrivals
        self._importer = importer
        self._clock = clock
        self._download = download
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._rates: dict[str, Rate] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._done: dict[str, ImportProgress] = {}
        arrivals.moved = self._moved
        arrivals.at_work = self._tasks.__contains__

    async def run(self) -> None:
        """Go on with what a former run left, then drop what expires, until cancelled."""
        await asyncio.to_thread(self.arrivals.load)
        for one in self.arrivals.all():
            if one.complete:
                self._begin(one.id, self._import(one.id))
            elif one.way is Way.URL:
                self._begin(one.id, self._fetch(one.id))
        try:
            while True:
                await self._clock.sleep(_SWEEP_S)
                await self.arrivals.sweep()
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def progress(self) -> tuple[ImportProgress, ...]:
        """Return the arrivals that are not being imported yet, oldest first."""
        working = {one.id for one in self._importer.running()}
        return tuple(self._progress(one) for one in self.arrivals.all() if one.id not in working)

    def find(self, id: str) -> ImportProgress:
        """Return one import, also if it ended of late; raise `NotFound` if it was cancelled, expired or never was."""
        jobs = (*self._importer.running(), *self.progress(), *self._importer.failed(), *self._done.values())
        for one in jobs:
            if one.id == id:
                return one
        raise NotFound(f"there is no import {id} on this server: it was cancelled or expired, or ended long ago")

    async def upload(
        self,
        *,
        by: str,
        image_name: str,
        size_bytes: int | None,
        notes: str = "",
        file_name: str = "",
        fingerprint: str = "",
        sha256: str = "",
    ) -> Arrival:
        """Begin an upload, or return the one that this is the file of."""
        for one in self.arrivals.all():
            if same_file(one, by=by, image_name=image_name, fingerprint=fingerprint, size_bytes=size_bytes):
                return await self.arrivals.settle(one.id)
        new = self._new(Way.UPLOAD, by, image_name, notes, file_name, sha256, size_bytes, fingerprint=fingerprint)
        made = await self.arrivals.create(new)
        self._importer.forget(image_name)
        return made

    async def fetch(self, *, by: str, image_name: str, url: str, notes: str = "", sha256: str = "") -> Arrival:
        """Begin a download, which goes on by itself."""
        name = url.partition("?")[0].rstrip("/").rpartition("/")[2]
        new = self._new(Way.URL, by, image_name, notes, name, sha256, None, url=url)
        made = await self.arrivals.create(new)
        self._importer.forget(image_name)
        self._begin(made.id, self._fetch(made.id))
        return made

    async def append(
        self,
        id: str,
        offset: int,
        chunks: AsyncIterator[bytes],
        *,
        length: int | None = None,
        checksum: Checksum | None = None,
    ) -> Arrival:
        """Add to an upload; once it is complete its import begins by itself."""
        known = await self.arrivals.append(id, offset, chunks, length=length, checksum=checksum)
        if known.complete:
            self._begin(id, self._import(id))
        return known

    async def end(self, id: str, size_bytes: int) -> Arrival:
        """Say where an upload ends whose length was not known; its import begins if all of it is here."""
        known = await self.arrivals.set_size(id, size_bytes)
        if known.complete:
            self._begin(id, self._import(id))
        return known

    async def retry(self, id: str) -> None:
        """Try again what stopped for want of room, of a majority, of an answer."""
        known = self.arrivals.get(id)
        if known.error and (former := self._tasks.get(id)) is not None:
            await asyncio.wait({former})  # it has said why it ends, and is about to
        if known.complete:
            self._begin(id, self._import(id))
        elif known.way is Way.URL:
            self._begin(id, self._fetch(id))
        else:
            raise Refused(
                f"{known.shown} is not complete: choose the same file again, and it goes on at {known.offset}"
            )

    async def cancel(self, id: str) -> None:
        """Stop it and forget it."""
        self.arrivals.get(id)
        if (task := self._tasks.get(id)) is not None:
            task.cancel()
            await asyncio.wait({task})
        if id in {one.id for one in self.arrivals.all()}:
            await self.arrivals.drop(id)

    def _new(
        self,
        way: Way,
        by: str,
        image_name: str,
        notes: str,
        file_name: str,
        sha256: str,
        size_bytes: int | None,
        fingerprint: str = "",
        url: str = "",
    ) -> Arrival:
        now = self._clock.now_ms()
        return Arrival(
            id=new_id("arr"), way=way, image_name=image_name, by=by, created_at=now, touched_at=now, notes=notes,
            file_name=file_name[:300], size_bytes=size_bytes, sha256=sha256.strip().lower(),
            fingerprint=fingerprint, url=url,
        )  # fmt: skip

    def _begin(self, id: str, work: Coroutine[Any, Any, None]) -> None:
        if id in self._tasks:
            work.close()
            return
        task = self._tasks[id] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(id, None))

    async def _fetch(self, id: str) -> None:
        if await self._kept(id, lambda: self._download(self.arrivals, id)):
            await self._import(id)

    async def _import(self, id: str) -> None:
        async def work() -> None:
            await self.arrivals.check_whole(id)
            known = self.arrivals.get(id)
            await self._importer.import_arrived(
                self.arrivals.path(id),
                id=id,
                image_name=known.image_name,
                notes=known.notes,
                by=known.by,
                shown=known.shown,
            )

        known = self.arrivals.get(id)
        if await self._kept(id, work):
            while len(self._done) >= _REMEMBERED:
                del self._done[next(iter(self._done))]
            self._done[id] = replace(self._progress(known), step="done", percent=100)
            await self.arrivals.drop(id)

    async def _kept(self, id: str, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Do it; a bad file is dropped with its reason, another trouble noted with the file. True if it is done."""
        known = await self.arrivals.change(id, error="")
        try:
            await work()
        except (Unavailable, OutcomeUnknown) as error:
            self._importer.forget(known.image_name)
            await self.arrivals.change(id, error=error.message)
            logger.warning("an import waits", extra={"image": known.image_name, "cause": error.message})
        except KmgrError as error:
            self._importer.note_failure(self._progress(known), error.message)
            if id in {one.id for one in self.arrivals.all()}:
                await self.arrivals.drop(id)
            logger.warning("an import failed", extra={"image": known.image_name, "cause": error.message})
        except Exception:
            self._importer.note_failure(self._progress(known), "a mistake of this server, whose log has the details")
            await self.arrivals.drop(id)
            logger.exception("an import failed by a bug", extra={"image": known.image_name})
        else:
            return True
        return False

    def _moved(self, id: str, at: int) -> None:
        rate = self._rates.setdefault(id, Rate(self._clock))
        while len(self._rates) > 64:
            del self._rates[next(iter(self._rates))]
        self._seen[id] = (at, rate.note(at))

    def _progress(self, one: Arrival) -> ImportProgress:
        moving = self.arrivals.sent_now(one.id)
        at, rate = self._seen.get(one.id, (one.offset, 0)) if moving else (one.offset, 0)
        if not moving:
            self._seen.pop(one.id, None)
            self._rates.pop(one.id, None)
        if one.error:
            step = "stopped"
        elif one.way is Way.URL:
            step = "downloading"
        else:
            step = "uploading" if moving else "waiting for the rest of the upload"
        return ImportProgress(
            one.id, one.image_name, one.by, one.created_at, step=step, percent=40 * one.percent // 100,
            error=one.error, source=one.shown, done_bytes=at, total_bytes=one.size_bytes or 0, rate_bytes_s=rate,
        )  # fmt: skip
