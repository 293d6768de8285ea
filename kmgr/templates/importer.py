"""Bring a disk image into the grid: look at it, make a raw file of it, hash it on the way, tell the log.

The steps, and what a kill at any moment leaves behind:

1. an upload or a download grows in `images/tmp/` as an arrival, which survives (`arrivals`); the raw file grows in
   `import-*` beside it: `clean_tmp` removes that later;
2. the finished file is renamed into `images/`: unknown to the log, the replica agent removes it after a while;
3. `image.create` (if the name is new) and `version.add`: from here on the grid has it, and the other servers copy it.
   A bad file never gets here, so it costs no other server anything.

An existing image of the name gets a new version. Whatever is refused is told by
what was found in the file. Runs in the daemon's loop; files are touched in threads.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from kmgr.clock import Clock
from kmgr.entropy import new_id
from kmgr.errors import KmgrError, NotFound, Refused, Unavailable
from kmgr.grid.port import Grid
from kmgr.ids import VersionId
from kmgr.replica import manifest as m
from kmgr.replica.images import Images, growing, scan
from kmgr.replica.model import name_problem
from kmgr.templates import qemu_img
from kmgr.templates.absorb import fresh
from kmgr.templates.jobs import ImportProgress, Imports, Job, OnProgress
from kmgr.templates.model import ImageKind
from kmgr.templates.publishing import ImportResult, Publisher
from kmgr.templates.signatures import AGAIN, DRIVERS, HEAD_BYTES, ISO, recognise
from kmgr.templates.sink import Sink
from kmgr.templates.unpack import Make, Unpacker

# Imports that check and copy at the same time; further ones wait. Uploads cost little, they don't count.
AT_ONCE = 2
_SMALLER = "Make it smaller inside the machine it comes from, then export it again"
_KINDS = {ISO: ImageKind.ISO, DRIVERS: ImageKind.DRIVERS}


class Importer:
    """Imports disk images on this server, a few at a time; `running()` and `failed()` list them for the console."""

    def __init__(self, grid: Grid, images: Images, clock: Clock) -> None:
        self._grid = grid
        self._images = images
        self._clock = clock
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._imports = Imports(clock)
        self._publisher = Publisher(grid, images, clock)

    def running(self) -> tuple[ImportProgress, ...]:
        """Return the imports and uploads under way, oldest first."""
        return tuple(self._imports.under_way.values())

    def failed(self) -> tuple[ImportProgress, ...]:
        """Return the imports that failed within the last hour and were not tried again, oldest first."""
        return self._imports.failed()

    def dismiss(self, id: str) -> None:
        """Tell of a failed import no more."""
        self._imports.dismiss(id)

    def note_failure(self, progress: ImportProgress, error: str) -> None:
        """Remember an import that failed before or while it was worked on."""
        self._imports.forget(progress.image_name)
        self._imports.note_failure(replace(progress, error=error))

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
        """Import a disk file that lies on this server; it is copied, never changed."""
        if not path.is_absolute():
            raise Refused(f"{path} is not a whole path: begin it with /")
        with self._job(image_name, by, on_progress, source=path.name) as job:
            return await self._import(path, job, notes=notes, shown=path.name)

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
        """Import a disk file that somebody sends in one go, of which exactly `size_bytes` were announced."""
        with self._job(image_name, by, on_progress) as job:
            upload = self._images.tmp / f"upload-{job.progress.id}.part"
            try:
                await self._receive(chunks, upload, job, size_bytes=size_bytes)
                return await self._import(upload, job, notes=notes, shown="the upload", ours=True)
            finally:
                await asyncio.to_thread(upload.unlink, missing_ok=True)

    async def import_arrived(
        self, path: Path, *, id: str, image_name: str, notes: str, by: str, shown: str
    ) -> ImportResult:
        """Import a file of ours that arrived whole; its job has the arrival's id. The file stays for the caller."""
        with self._job(image_name, by, None, id=id, source=shown) as job:
            return await self._import(path, job, notes=notes, shown=shown, ours=True)

    async def import_blank(self, size_bytes: int, *, image_name: str, by: str) -> ImportResult:
        """Make an empty disk of that size; it takes no room."""
        _need_sense(size_bytes, whole=self._images.room().total_bytes)

        def make(raw: Path, on_bytes: Callable[[int], None], stop: Callable[[], bool]) -> m.Manifest:
            fresh(raw, size_bytes)
            return scan(raw, on_bytes=on_bytes, stop=stop)

        made = partial(self.import_made, VersionId(new_id("ver")), make, size_bytes=size_bytes, kind=ImageKind.BLANK)
        return await made(image_name=image_name, notes="", by=by, source="an empty disk")

    async def import_made(
        self,
        version: VersionId,
        make: Make,
        *,
        size_bytes: int,
        image_name: str,
        notes: str,
        by: str,
        source: str,
        kind: ImageKind = ImageKind.DISK,
    ) -> ImportResult:
        """Import what `make` fills a raw file of ours with; the version has an id that was chosen beforehand."""
        with self._job(image_name, by, None, source=source) as job:
            async with self._turn:
                raw = self._images.tmp / f"import-{version}.raw"
                if kind is not ImageKind.BLANK:
                    self._need(size_bytes, "the image")
                try:
                    manifest = await Unpacker(self._images, job).made(make, raw, size=size_bytes)
                    job.tell("publishing", 98)
                    self._images.claimed.add(version)
                    publish = partial(self._publisher.publish, job=job.progress, notes=notes, kind=kind)
                    return await publish(version, raw, manifest)
                finally:
                    self._images.claimed.discard(version)
                    await asyncio.to_thread(raw.unlink, missing_ok=True)

    def _job(
        self, image_name: str, by: str, on_progress: OnProgress | None, *, id: str = "", source: str = ""
    ) -> Job:
        if problem := name_problem(image_name):
            raise Refused(problem)
        if not self._grid.status().majority:
            raise Unavailable("this server cannot reach a majority of the grid: import when it can")
        started = ImportProgress(id or new_id("imp"), image_name, by, self._clock.now_ms(), source=source)
        return Job(started, self._imports, on_progress, clock=self._clock)

    async def _receive(self, chunks: AsyncIterator[bytes], upload: Path, job: Job, *, size_bytes: int) -> None:
        self._need(size_bytes, "the upload")
        sink = await asyncio.to_thread(Sink.fresh, upload)
        try:
            async for chunk in chunks:
                if sink.at + len(chunk) > size_bytes:
                    raise Refused(
                        f"the upload is longer than the {size_bytes} bytes that were announced: send the file again "
                        "when nothing writes to it any more"
                    )
                await sink.add(chunk)
                job.tell("uploading", 40 * sink.at // size_bytes, done=sink.at, total=size_bytes)
            if sink.at < size_bytes:
                raise Refused(f"the upload broke off after {sink.at} of {size_bytes} bytes: send it again")
            await sink.sync()
        finally:
            await asyncio.to_thread(sink.close)

    async def _import(self, path: Path, job: Job, *, notes: str, shown: str, ours: bool = False) -> ImportResult:
        async with self._turn:
            return await self._import_now(path, job, notes=notes, shown=shown, ours=ours)

    async def _import_now(self, path: Path, job: Job, *, notes: str, shown: str, ours: bool) -> ImportResult:
        version = VersionId(new_id("ver"))
        raw = self._images.tmp / f"import-{version}.raw"
        try:
            async with _unchanged(path):
                job.tell("checking", job.progress.percent)
                disk = await self._inspect(path, ours=ours)
                kind = _KINDS.get(disk.format, ImageKind.DISK)
                as_it_is = disk.format == "raw" or disk.format in _KINDS
                if not as_it_is:
                    self._need(disk.data_bytes, "the image")
                unpacker = Unpacker(self._images, job)
                if as_it_is:
                    manifest = await unpacker.absorbed(path, raw, size=disk.virtual_bytes, ours=ours)
                else:
                    manifest = await unpacker.converted(path, raw, disk=disk)
            job.tell("publishing", 98)
            self._images.claimed.add(version)
            return await self._publisher.publish(version, raw, manifest, job=job.progress, notes=notes, kind=kind)
        except Refused as error:
            if type(error) is Refused:
                raise Refused(f"{shown} cannot be imported: {error.message}", code=error.code) from error
            raise
        finally:
            self._images.claimed.discard(version)
            await asyncio.to_thread(raw.unlink, missing_ok=True)

    async def _inspect(self, path: Path, *, ours: bool) -> qemu_img.Disk:
        head, size, used = await asyncio.to_thread(_head, path)
        finding = recognise(head, size)
        if not finding.format:
            raise Refused(finding.text)

        def judge(virtual_bytes: int) -> None:
            _need_sense(virtual_bytes, whole=self._images.room().total_bytes)

        if finding.format != "raw" and finding.format not in _KINDS:
            return await qemu_img.inspect(path, format=finding.format, size=size, judge=judge)
        disk = qemu_img.Disk(finding.format, size, min(size, used))
        if not ours:
            self._need(disk.data_bytes, "the image")
        if finding.format not in _KINDS:
            judge(size)
        return disk

    def _need(self, size_bytes: int, what: str) -> None:
        spare = self._images.room().spare_bytes
        if size_bytes > spare:
            raise Unavailable(
                f"the disk of this server is too small: {what} needs {size_bytes >> 20} MiB, {spare >> 20} MiB may be"
                " used. Make room, or import on another server",
                code="disk_full",
            )


@asynccontextmanager
async def _unchanged(path: Path) -> AsyncIterator[None]:
    """Refuse what was read of a file that somebody wrote to, or removed, meanwhile: it is of no moment of it."""
    before = await asyncio.to_thread(_stamp, path)
    failed: KmgrError | OSError | None = None
    try:
        yield
    except (KmgrError, OSError) as error:  # that may be why
        failed = error
    if await asyncio.to_thread(_stamp, path) != before:
        raise Refused(
            "it was changed or removed while it was read: import it when nothing writes to it any more",
            code="changed",
        ) from failed
    if failed is not None:
        raise failed


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


def _need_sense(virtual_bytes: int, *, whole: int) -> None:
    """Raise `Refused` unless a disk of that size can be, on a server whose own disk has `whole` bytes."""
    if not 0 < virtual_bytes <= m.LARGEST_BYTES:
        raise Refused(
            f"the disk in it has {virtual_bytes} bytes; at most {m.LARGEST_BYTES >> 40} TiB can be taken. {_SMALLER}"
        )
    if virtual_bytes % m.SECTOR:
        raise Refused(
            f"the disk in it has {virtual_bytes} bytes, which is no multiple of {m.SECTOR}: no disk is. {AGAIN}"
        )
    if virtual_bytes > whole:
        raise Refused(
            f"the disk in it is {virtual_bytes >> 20} MiB large, this server's own disk only {whole >> 20} MiB:"
            f" desktops would fill it. {_SMALLER}",
            code="too_large",
        )


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    """Return what changes when somebody writes to a file or puts another in its place; None if there is none."""
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns


def _head(path: Path) -> tuple[bytes, int, int]:
    """Return the beginning of a file, its length, and how much of it is on the disk."""
    try:
        if not path.is_file():
            raise NotFound(
                f"{path} is not a file: choose a disk image in it"
                if path.exists()
                else f"there is no file {path} on this server: copy it there, or upload it"
            )
        with path.open("rb") as file:
            told = path.stat()
            return file.read(HEAD_BYTES), told.st_size, told.st_blocks * 512
    except OSError as error:
        raise Refused(
            f"it cannot be read: {error.strerror or error}. Let the daemon's user read it, or copy it to the folder"
            " of imports"
        ) from error
