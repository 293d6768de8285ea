"""Imports with the real qemu-img: good disks become versions, bad ones are named and leave nothing behind."""

import asyncio
import os
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import ManualClock, SystemClock
from kmgr.errors import Conflict, KmgrError, NotFound, Refused, Unavailable
from kmgr.grid.envelope import Applied
from kmgr.grid.local import LocalGrid
from kmgr.ids import ServerId
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.replica import queries
from kmgr.replica.images import Images, Room, room
from kmgr.templates.absorb import copy_raw
from kmgr.templates.arrivals import Arrivals
from kmgr.templates.importer import Importer, clean_tmp
from kmgr.templates.install_queries import kind_of
from kmgr.templates.jobs import ImportProgress
from kmgr.templates.model import ImageKind
from kmgr.templates.publishing import ImportResult
from kmgr.templates.reception import Reception
from kmgr.templates.signatures import recognise
from tests.lab import boot_iso

A = ServerId("srv-a")
MIB = 1 << 20

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


class Bench:
    """One server with an importer, and a folder for what is offered to it."""

    def __init__(self, folder: Path) -> None:
        self.offers = folder / "offers"
        self.offers.mkdir()
        self.data = folder / "data"
        self.data.mkdir()
        self.room: Room | None = None
        clock = SystemClock()
        self.grid = LocalGrid(A, path=folder / "s.sqlite", appliers=APPLIERS, schemas=SCHEMAS, clock=clock)
        self.images = Images(self.data, measure=lambda path: self.room or room(path))
        self.importer = Importer(self.grid, self.images, clock)
        self.heard: list[ImportProgress] = []

    async def bring(self, path: Path, name: str = "Debian") -> ImportResult:
        return await self.importer.import_file(path, image_name=name, by="anna", on_progress=self.heard.append)

    async def send(self, data: bytes, *, announced: int | None = None, name: str = "Debian") -> ImportResult:
        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 100_000):
                yield data[start : start + 100_000]

        return await self.importer.import_stream(
            chunks(), size_bytes=len(data) if announced is None else announced, image_name=name, by="anna"
        )

    def left_over(self) -> list[str]:
        """Name every file of images and imports."""
        return sorted(file.name for file in (self.data / "images").rglob("*") if file.is_file())

    def raw(self, name: str = "disk.raw", *, size: int = 4 * MIB) -> Path:
        """Write a small raw disk: a boot sector, some data, a hole."""
        path = self.offers / name
        with path.open("wb") as file:
            file.write(bytes(510) + b"\x55\xaa")
            file.seek(MIB)
            file.write(name.encode() * 20_000)
            file.truncate(size)
        return path

    def qcow2(self, name: str = "disk.qcow2", *options: str) -> Path:
        path = self.offers / name
        qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, self.raw(), path)
        return path

    def patch(self, path: Path, offset: int, data: bytes) -> Path:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
        return path


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *(str(word) for word in arguments)], check=True, capture_output=True)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    body = {"server": A, "name": "a", "grid_address": "a:1", "web_address": "a:2", "version": "0", "fingerprint": ""}
    assert isinstance(asyncio.run(bench.grid.propose("server.add", body, by="test")), Applied)
    yield bench
    bench.grid.close()


@pytest.mark.parametrize("kind", ["raw", "qcow2", "compressed"])
async def test_a_good_disk_becomes_a_version_held_by_this_server(bench: Bench, kind: str) -> None:
    original = bench.raw()
    offered = {"raw": original, "qcow2": bench.qcow2(), "compressed": bench.qcow2("c.qcow2", "-c")}[kind]
    result = await bench.bring(offered)
    assert (result.number, result.size_bytes) == (1, 4 * MIB)
    assert bench.images.path(result.version).read_bytes() == original.read_bytes()
    assert bench.left_over() == [f"{result.version}.manifest", f"{result.version}.raw"]
    with bench.grid.view() as db:
        version = queries.version(db, result.version)
        assert version is not None
        assert queries.holders(db, result.version) == (A,)
        assert bench.images.intact(version)
        assert version.used_bytes == result.used_bytes < 2 * MIB
    percents = [progress.percent for progress in bench.heard]
    assert percents == sorted(percents)
    assert (bench.heard[-1].step, percents[-1]) == ("done", 100)
    assert bench.importer.running() == ()


async def test_the_next_import_of_a_name_is_its_next_version(bench: Bench) -> None:
    first = await bench.bring(bench.raw())
    second = await bench.bring(bench.raw("other.raw"))
    assert (second.image, second.number) == (first.image, 2)


async def test_the_same_contents_again_are_refused_and_not_kept(bench: Bench) -> None:
    await bench.bring(bench.raw())
    before = bench.left_over()
    with pytest.raises(Conflict, match="version 1 of 'Debian' has exactly the same contents"):
        await bench.bring(bench.qcow2())
    assert bench.left_over() == before


async def test_two_imports_of_a_new_name_at_the_same_time_both_arrive(bench: Bench) -> None:
    results = await asyncio.gather(bench.bring(bench.raw("one.raw")), bench.bring(bench.raw("two.raw")))
    assert sorted(result.number for result in results) == [1, 2]
    assert len({result.image for result in results}) == 1


async def refusal(bench: Bench, path: Path, kind: type[KmgrError] = Refused) -> str:
    """Return why an import was refused, having made sure that nothing is left of it."""
    with pytest.raises(kind) as caught:
        await bench.bring(path)
    assert bench.left_over() == []
    assert bench.importer.running() == ()
    with bench.grid.view() as db:
        assert queries.versions(db) == ()
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (
            "notes.txt",
            "Grüße, this is no disk\n".encode() * 100_000,
            "notes.txt cannot be imported: it is a text file",
        ),
        ("nothing.raw", b"", "it is empty"),
        ("noise.raw", bytes(range(256)) * 8192, "nor a raw disk"),
        ("disk.gz", b"\x1f\x8b" + bytes(MIB), "compressed with gzip"),
        ("half.iso", boot_iso.image()[:40_960], "a CD or DVD (ISO) that is cut off: 40960 of 43008 bytes"),
        ("disk.vmdk", b"KDMV" + bytes(MIB), "VMware"),
        ("disk.vhd", b"conectix" + bytes(MIB), "old Hyper-V disk"),
        ("tiny.raw", bytes(510) + b"\x55\xaa", "too small"),
        ("cut.raw", bytes(510) + b"\x55\xaa" + bytes(MIB + 7), "cut off"),
        ("head.qcow2", b"QFI\xfb\0\0\0\3", "truncated qcow2"),
    ],
)
async def test_what_is_no_disk_is_called_by_its_name(bench: Bench, name: str, data: bytes, words: str) -> None:
    path = bench.offers / name
    path.write_bytes(data)
    assert words in await refusal(bench, path)


async def test_an_installer_is_taken_as_it_is_and_keeps_its_name_for_itself(bench: Bench) -> None:
    path = bench.offers / "setup.iso"
    path.write_bytes(boot_iso.image())
    made = await bench.bring(path, "setup")
    assert bench.images.path(made.version).read_bytes() == boot_iso.image()
    with bench.grid.view() as db:
        assert kind_of(db, made.image) is ImageKind.ISO
    with pytest.raises(Conflict, match=r"is of installers \(ISO\), this is one of disks: choose another name"):
        await bench.bring(bench.raw(), "setup")
    disk = await bench.bring(bench.raw())
    with pytest.raises(Conflict, match="is of disks, this is one of installers"):
        await bench.bring(path)
    with bench.grid.view() as db:
        assert kind_of(db, disk.image) is ImageKind.DISK
        assert len(queries.versions(db)) == 2


async def test_a_cd_from_which_nothing_boots_is_one_with_drivers(bench: Bench) -> None:
    path = bench.offers / "virtio-win.iso"
    path.write_bytes(boot_iso.image(bootable=False))
    made = await bench.bring(path, "virtio-win")
    assert bench.images.path(made.version).read_bytes() == boot_iso.image(bootable=False)
    with bench.grid.view() as db:
        assert kind_of(db, made.image) is ImageKind.DRIVERS


async def test_an_installer_for_which_there_is_no_room_is_refused_and_nothing_is_left(bench: Bench) -> None:
    path = bench.offers / "setup.iso"
    path.write_bytes(boot_iso.image())
    bench.room = Room(free_bytes=8192, total_bytes=8 * MIB)
    assert "too small" in await refusal(bench, path, Unavailable)


async def test_an_empty_disk_takes_no_room_but_is_not_larger_than_the_servers(bench: Bench) -> None:
    size = 2 << 30
    made = await bench.importer.import_blank(size, image_name="empty", by="anna")
    raw = bench.images.path(made.version)
    assert (raw.stat().st_size, raw.stat().st_blocks, made.used_bytes) == (size, 0, 0)
    with bench.grid.view() as db:
        assert kind_of(db, made.image) is ImageKind.BLANK
    with pytest.raises(Refused, match="this server's own disk only"):
        await bench.importer.import_blank(1 << 43, image_name="huge", by="anna")


async def test_a_truncated_qcow2_is_refused(bench: Bench) -> None:
    path = bench.qcow2()
    whole = path.read_bytes()
    for part in (80, 70_000, 200_000, len(whole) - 70_000):
        path.write_bytes(whole[:part])
        assert "truncated qcow2" in await refusal(bench, path)


async def test_a_qcow2_that_names_another_file_is_refused_unopened(bench: Bench) -> None:
    bench.raw()
    overlay = bench.offers / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", bench.offers / "disk.raw", "-F", "raw", overlay)
    assert "backing file" in await refusal(bench, overlay)
    outside = bench.offers / "outside.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={bench.offers}/data", outside, "4M")
    assert "data lies in another file" in await refusal(bench, outside)


async def test_marks_in_the_header_are_taken_seriously(bench: Bench) -> None:
    encrypted = bench.patch(bench.qcow2(), 32, struct.pack(">I", 1))
    assert "encrypted" in await refusal(bench, encrypted)
    dirty = bench.patch(bench.qcow2(), 72, struct.pack(">Q", 1))
    assert "not closed properly" in await refusal(bench, dirty)


async def test_a_damaged_table_is_refused(bench: Bench) -> None:
    path = bench.qcow2()
    (l1_at,) = struct.unpack(">Q", path.read_bytes()[40:48])
    bench.patch(path, l1_at, struct.pack(">Q", 0x8000_0000_0000_0000 | 12345 * 512))
    assert "cannot be imported" in await refusal(bench, path)


async def test_a_disk_larger_than_any_server_is_refused(bench: Bench) -> None:
    path = bench.offers / "huge.qcow2"
    qemu_img("create", "-f", "qcow2", path, "17T")
    assert "at most 16 TiB" in await refusal(bench, path)


async def test_a_disk_that_does_not_fit_here_is_refused_before_it_is_copied(bench: Bench) -> None:
    path = bench.qcow2()
    bench.room = Room(free_bytes=MIB // 8, total_bytes=8 * MIB)
    message = await refusal(bench, path, Unavailable)
    assert "too small" in message
    assert "Make room" in message


async def test_a_path_that_leads_nowhere_is_named(bench: Bench) -> None:
    assert "no file" in await refusal(bench, bench.offers / "missing.raw", NotFound)
    assert "not a file" in await refusal(bench, bench.offers, NotFound)
    assert "not a whole path" in await refusal(bench, Path("nbd:localhost:1"))


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("how", ["grows", "shrinks", "is written to", "is replaced", "is removed"])
async def test_a_file_that_somebody_changes_while_it_is_read_is_refused(bench: Bench, kind: str, how: str) -> None:
    path, other = (bench.raw() if kind == "raw" else bench.qcow2()), bench.raw("other.raw")

    def change(progress: ImportProgress) -> None:
        if progress.step != "checking":
            return
        match how:
            case "grows" | "shrinks":
                os.truncate(path, path.stat().st_size + (MIB if how == "grows" else -MIB // 2))
            case "is written to":
                bench.patch(path, 3 * MIB, b"new")
                os.utime(path, ns=(1, 1))  # another time, however coarse the clock of files is
            case "is replaced":
                other.replace(path)
            case _:
                path.unlink()

    with pytest.raises(Refused, match="changed or removed while it was read"):
        await bench.importer.import_file(path, image_name="Debian", by="anna", on_progress=change)
    assert bench.left_over() == []
    with bench.grid.view() as db:
        assert queries.versions(db) == ()


def test_the_end_of_a_file_that_is_cut_off_while_it_is_copied_is_not_taken_for_a_hole(tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    with source.open("wb") as file:
        file.write(b"x" * 2 * MIB)
        file.truncate(64 * MIB)
        file.seek(60 * MIB)
        file.write(b"x" * 2 * MIB)
    told: list[int] = []

    def cut(at: int) -> None:
        told.append(at)
        os.truncate(source, 4 * MIB)

    with pytest.raises(Refused, match="shorter"):
        copy_raw(source, tmp_path / "copy.raw", on_bytes=cut, stop=lambda: False)
    assert told


async def test_a_name_that_cannot_be_is_refused_before_any_work(bench: Bench) -> None:
    with pytest.raises(Refused, match="not a name"):
        await bench.bring(bench.raw(), name=" ")


async def test_without_a_majority_nothing_is_begun(bench: Bench) -> None:
    bench.grid._log.cut_off.add(A)
    assert "majority" in await refusal(bench, bench.raw(), Unavailable)


async def test_an_upload_is_imported_and_its_file_removed(bench: Bench) -> None:
    result = await bench.send(bench.qcow2().read_bytes())
    assert bench.left_over() == [f"{result.version}.manifest", f"{result.version}.raw"]


@pytest.mark.parametrize(("more", "words"), [(1, "broke off after"), (-1, "longer than")])
async def test_an_upload_of_another_length_than_announced_is_refused(bench: Bench, more: int, words: str) -> None:
    data = bench.raw().read_bytes()
    with pytest.raises(Refused, match=words):
        await bench.send(data, announced=len(data) + more)
    assert bench.left_over() == []


async def test_a_cancelled_import_leaves_nothing(bench: Bench) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield bytes(1000)
        started.set()
        await asyncio.Event().wait()

    started = asyncio.Event()
    job: asyncio.Task[Any] = asyncio.create_task(
        bench.importer.import_stream(slow(), size_bytes=MIB, image_name="x", by="anna")
    )
    await started.wait()
    assert [(p.step, p.image_name) for p in bench.importer.running()] == [("uploading", "x")]
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    assert bench.left_over() == []
    assert bench.importer.running() == bench.importer.failed() == ()


async def test_a_failed_import_is_told_until_dismissed_tried_again_or_an_hour_old(
    bench: Bench, tmp_path: Path
) -> None:
    clock = ManualClock()
    importer = Importer(bench.grid, bench.images, clock)
    text = tmp_path / "letter.txt"
    text.write_text("Dear administrator")

    async def fail(name: str) -> ImportProgress:
        with pytest.raises(Refused) as caught:
            await importer.import_file(text, image_name=name, by="anna")
        told = importer.failed()[-1]
        assert (told.image_name, told.by, told.error) == (name, "anna", caught.value.message)
        return told

    first, second = await fail("one"), await fail("two")
    await clock.advance(3599)
    again = await fail("one")
    assert importer.failed() == (second, again)
    importer.dismiss(again.id)
    with pytest.raises(NotFound):
        importer.dismiss(first.id)
    await clock.advance(1)
    assert importer.failed() == ()
    await fail("two")
    await importer.import_file(bench.raw(), image_name="two", by="ben")
    assert importer.failed() == importer.running() == ()
    for n in range(60):
        await fail(f"image {n}")
    assert len(importer.failed()) == 50
    importer.forget("image 59")
    assert importer.failed()[-1].image_name == "image 58"


async def test_an_upload_that_breaks_off_is_told(bench: Bench) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(1000)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await bench.importer.import_stream(broken(), size_bytes=MIB, image_name="x", by="anna")
    assert "broke off" in bench.importer.failed()[0].error


async def test_what_is_worked_on_for_longer_than_it_is_kept_does_not_expire(bench: Bench) -> None:
    clock, begun = ManualClock(), asyncio.Event()
    arrivals = Arrivals(bench.images, clock, keep_hours=lambda: 1)

    async def takes_hours(arrivals: Arrivals, id: str) -> None:
        begun.set()
        await asyncio.Event().wait()

    reception = Reception(bench.importer, arrivals, clock, download=takes_hours)
    made = await reception.fetch(by="anna", image_name="Debian", url="http://there.example/debian.raw")
    await begun.wait()
    await clock.advance(2 * 3600)
    await arrivals.sweep()
    assert arrivals.path(made.id).exists()
    await reception.cancel(made.id)
    assert arrivals.all() == ()


def test_what_a_kill_left_behind_is_removed_at_the_next_start(bench: Bench) -> None:
    for name in ("import-ver-1.raw", "upload-imp-1.part", "somebody-elses"):
        (bench.images.tmp / name).write_bytes(b"x")
    assert clean_tmp(bench.data) == ("import-ver-1.raw", "upload-imp-1.part")
    assert bench.left_over() == ["somebody-elses"]


def test_a_file_system_without_a_boot_sector_is_a_disk_too() -> None:
    head = bytearray(8192)
    head[0x438:0x43A] = b"\x53\xef"
    assert recognise(bytes(head), 4 * MIB).text == "a raw disk with an ext file system"
