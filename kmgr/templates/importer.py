"""Bring a disk image into the grid: look at it, copy it to a raw file, hash it, tell the log.

The steps, and what a kill at any moment leaves behind:

1. an upload grows in `images/tmp/upload-*`, the raw copy in `import-*` beside it: `clean_tmp` removes both later;
2. the finished file is renamed into `images/`: unknown to the log, the replica agent removes it after a while;
3. `image.create` (if the name is new) and `version.add`: from here on the grid has it, and the other servers copy it.

An existing image of the name gets a new version. Whatever is refused is told by
what was found in the file. Runs in the daemon's loop; files are touched in threads.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.entropy import new_id
from kmgr.errors import Conflict, NotFound, OutcomeUnknown, Refused, Unavailable
from kmgr.grid.outcomes import applied
from kmgr.grid.port import Grid
from kmgr.ids import CommandId, ImageId, VersionId
from kmgr.replica import manifest as m
from kmgr.replica import queries
from kmgr.replica.images import Images, disk_error, growing, scan
from kmgr.replica.model import name_problem
from kmgr.templates import qemu_img
from kmgr.templates.jobs import ImportProgress, Imports, Job, OnProgress
from kmgr.templates.signatures import HEAD_BYTES, recognise

logger = logging.getLogger(__name__)

# Imports that check and copy at the same time; further ones wait. Uploads cost little, they don't count.
AT_ONCE = 2
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


class Importer:
    """Imports disk images on this server, a few at a time; `running()` and `failed()` list them for the console."""

    def __init__(self, grid: Grid, images: Images, clock: Clock) -> None:
        self._grid = grid
        self._images = images
        self._clock = clock
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._imports = Imports(clock)

    def running(self) -> tuple[ImportProgress, ...]:
        """Return the imports and uploads under way, oldest first."""
        return tuple(self._imports.under_way.values())

    def failed(self) -> tuple[ImportProgress, ...]:
        """Return the imports that failed within the last hour and were not tried again, oldest first."""
        return self._imports.failed()

    def dismiss(self, id: str) -> None:
        """Tell of a failed import no more."""
        self._imports.dismiss(id)

    def forget(self, image_name: str) -> None:
        """Tell no more of failed imports of an image, because somebody was told."""
        self._imports.forget(image_name)

    async def import_file(
        self,
        path: Path,
        *,
        image_name: str,
        notes: str = "",
        by: str,
        on_progress: OnProgress | None = None,
    ) -> ImportResult:
        """Import a qcow2 or raw file that lies on this server."""
        if not path.is_absolute():
            raise Refused(f"{path} is not a whole path: begin it with /")
        with self._job(image_name, by, on_progress) as job:
            return await self._import(path, job, notes=notes, begin=0, shown=path.name)

    async def import_stream(
        self,
        chunks: AsyncIterator[bytes],
        *,
        size_bytes: int,
        image_name: str,
        notes: str = "",
        by: str,
        on_progress: OnProgress | None = None,
    ) -> ImportResult:
        """Import a qcow2 or raw file that somebody sends, of which exactly `size_bytes` were announced."""
        with self._job(image_name, by, on_progress) as job:
            upload = self._images.tmp / f"upload-{job.progress.id}.part"
            try:
                await self._receive(chunks, upload, job, size_bytes=size_bytes)
                return await self._import(upload, job, notes=notes, begin=40, shown="the upload")
            finally:
                await asyncio.to_thread(upload.unlink, missing_ok=True)

    def _job(self, image_name: str, by: str, on_progress: OnProgress | None) -> Job:
        if problem := name_problem(image_name):
            raise Refused(problem)
        if not self._grid.status().majority:
            raise Unavailable("this server cannot reach a majority of the grid: import when it can")
        started = ImportProgress(new_id("imp"), image_name, by, self._clock.now_ms())
        return Job(started, self._imports, on_progress)

    async def _receive(self, chunks: AsyncIterator[bytes], upload: Path, job: Job, *, size_bytes: int) -> None:
        self._need(size_bytes, "the upload")
        got = 0
        with upload.open("wb", buffering=0) as file:
            async for chunk in chunks:
                got += len(chunk)
                if got > size_bytes:
                    raise Refused(f"the upload is longer than the {size_bytes} bytes that were announced")
                await asyncio.to_thread(_write_all, file, chunk)
                job.tell("uploading", 40 * got // size_bytes)
        if got < size_bytes:
            raise Refused(f"the upload broke off after {got} of {size_bytes} bytes: send it again")

    async def _import(self, path: Path, job: Job, *, notes: str, begin: int, shown: str) -> ImportResult:
        async with self._turn:
            return await self._import_now(path, job, notes=notes, begin=begin, shown=shown)

    async def _import_now(self, path: Path, job: Job, *, notes: str, begin: int, shown: str) -> ImportResult:
        version = VersionId(new_id("ver"))
        raw = self._images.tmp / f"import-{version}.raw"
        try:
            job.tell("checking", begin)
            disk = await self._inspect(path)
            self._need(disk.data_bytes, "the image")
            await qemu_img.convert(
                path,
                raw,
                format=disk.format,
                on_percent=lambda done: job.tell("copying", begin + done * (80 - begin) // 100),
            )
            manifest = await self._hash(raw, job, size=disk.virtual_bytes)
            job.tell("publishing", 98)
            self._images.claimed.add(version)
            return await self._publish(version, raw, manifest, job=job, notes=notes)
        except Refused as error:
            if type(error) is Refused:
                raise Refused(f"{shown} cannot be imported: {error.message}", code=error.code) from error
            raise
        finally:
            self._images.claimed.discard(version)
            await asyncio.to_thread(raw.unlink, missing_ok=True)

    async def _inspect(self, path: Path) -> qemu_img.Disk:
        head, size = await asyncio.to_thread(_head, path)
        finding = recognise(head, size)
        if not finding.format:
            raise Refused(finding.text)
        disk = await qemu_img.inspect(path, format=finding.format, size=size)
        if not 0 < disk.virtual_bytes <= m.LARGEST_BYTES:
            raise Refused(
                f"the disk in it has {disk.virtual_bytes} bytes; at most {m.LARGEST_BYTES >> 40} TiB can be taken"
            )
        return disk

    def _need(self, size_bytes: int, what: str) -> None:
        spare = self._images.room().spare_bytes
        if size_bytes > spare:
            raise Unavailable(
                f"the disk of this server is too small: {what} needs {size_bytes >> 20} MiB, {spare >> 20} MiB may be"
                " used. Make room, or import on another server",
                code="disk_full",
            )

    async def _hash(self, raw: Path, job: Job, *, size: int) -> m.Manifest:
        loop = asyncio.get_running_loop()
        stopped = threading.Event()

        def hashed(offset: int) -> None:
            if offset % (64 << 20) < m.BLOCK_BYTES:
                loop.call_soon_threadsafe(job.tell, "hashing", 80 + 18 * offset // size)

        try:
            return await asyncio.to_thread(scan, raw, on_bytes=hashed, stop=stopped.is_set)
        except OSError as error:
            raise disk_error(error, doing="the import") from error
        finally:
            stopped.set()

    async def _publish(
        self, version: VersionId, raw: Path, manifest: m.Manifest, *, job: Job, notes: str
    ) -> ImportResult:
        data = m.encode(manifest)
        await asyncio.to_thread(self._images.adopt, version, raw, data)
        by = job.progress.by
        keep = False
        try:
            image = await self._image(job.progress.image_name, by=by)
            body = {
                "version": version,
                "image": image,
                "size_bytes": manifest.size_bytes,
                "used_bytes": manifest.used_bytes,
                "block_bytes": manifest.block_bytes,
                "manifest_hash": m.manifest_hash(data),
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
        logger.info("image imported", extra={"image": job.progress.image_name, "number": number, "version": version})
        return ImportResult(image, version, number, manifest.size_bytes, manifest.used_bytes)

    async def _image(self, name: str, *, by: str) -> ImageId:
        """Return the image of that name, made now if there is none."""
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
        command, until = CommandId(new_id("cmd")), self._clock.monotonic() + INSIST_S
        while True:
            try:
                return applied(await self._grid.propose(type, body, by=by, id=command))
            except (Unavailable, OutcomeUnknown):
                if self._clock.monotonic() >= until:
                    raise
            await self._clock.sleep(1.0)


def clean_tmp(data_dir: Path) -> tuple[str, ...]:
    """Remove what imports left behind when the daemon was killed; call it before any import. Returns the names."""
    folder = growing(data_dir)
    names = []
    for pattern in ("import-*.raw", "upload-*.part"):
        for file in sorted(folder.glob(pattern)):
            with suppress(FileNotFoundError):
                file.unlink()
                names.append(file.name)
    return tuple(names)


def _head(path: Path) -> tuple[bytes, int]:
    try:
        if not path.is_file():
            raise NotFound(
                f"there is no file {path} on this server" if not path.exists() else f"{path} is not a file"
            )
        with path.open("rb") as file:
            return file.read(HEAD_BYTES), path.stat().st_size
    except OSError as error:
        raise Refused(f"it cannot be read: {error.strerror or error}") from error


def _write_all(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        raise disk_error(error, doing="the upload") from error
