"""Every format with the real qemu-img in its cell, and every file that should have been refused."""

import asyncio
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmgr.clock import SystemClock
from kmgr.errors import KmgrError, Refused, Unavailable
from kmgr.grid.envelope import Applied
from kmgr.grid.local import LocalGrid
from kmgr.ids import ServerId
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.replica import manifest as m
from kmgr.replica import queries
from kmgr.replica.images import Images, Room, room, scan
from kmgr.templates import absorb, sandbox
from kmgr.templates.importer import Importer
from kmgr.templates.publishing import ImportResult

A = ServerId("srv-a")
MIB = 1 << 20
GIB = 1 << 30

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("bwrap") is None, reason="needs qemu-img and bubblewrap"
)


class Desk:
    """One server, and a folder of what people bring."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.room: Room | None = None
        clock = SystemClock()
        self.grid = LocalGrid(A, path=folder / "s.sqlite", appliers=APPLIERS, schemas=SCHEMAS, clock=clock)
        self.images = Images(folder / "data", measure=lambda path: self.room or room(path))
        self.importer = Importer(self.grid, self.images, clock)
        self.raw = folder / "disk.raw"
        with self.raw.open("wb") as file:
            file.write(bytes(510) + b"\x55\xaa" + os.urandom(100_000))
            file.seek(20 * MIB)
            file.write(os.urandom(3 * MIB))
            file.truncate(40 * MIB)

    async def bring(self, path: Path) -> ImportResult:
        return await self.importer.import_file(path, image_name="Office", by="anna")

    async def refusal(self, path: Path, kind: type[KmgrError] = Refused) -> str:
        with pytest.raises(kind) as caught:
            await self.bring(path)
        assert not [file.name for file in self.images.folder.rglob("*") if file.is_file()]
        with self.grid.view() as db:
            assert queries.versions(db) == ()
        return caught.value.message

    def made(self, name: str, format: str, *options: str) -> Path:
        path = self.folder / name
        qemu_img("convert", "-f", "raw", "-O", format, *options, self.raw, path)
        return path


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *(str(word) for word in words)], check=True, capture_output=True)


def told_of(path: Path, format: str) -> str:
    told = subprocess.run(["qemu-img", "info", "-f", format, path], check=False, capture_output=True, text=True)
    return told.stdout + told.stderr


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    body = {"server": A, "name": "a", "grid_address": "a:1", "web_address": "a:2", "version": "0", "fingerprint": ""}
    assert isinstance(asyncio.run(desk.grid.propose("server.add", body, by="test")), Applied)
    yield desk
    desk.grid.close()


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("qcow2", ()),
        ("qcow2", ("-c",)),
        ("qcow2", ("-o", "cluster_size=2M")),
        ("vmdk", ()),
        ("vmdk", ("-o", "subformat=streamOptimized")),
        ("vdi", ()),
        ("vdi", ("-o", "static=on")),
        ("vhdx", ()),
        ("vhdx", ("-o", "subformat=fixed")),
    ],
)
async def test_every_format_becomes_the_same_disk(desk: Desk, format: str, options: tuple[str, ...]) -> None:
    result = await desk.bring(desk.made(f"disk.{format}", format, *options))
    assert result.size_bytes >= 40 * MIB
    kept = desk.images.path(result.version)
    data = kept.read_bytes()
    assert data[: 40 * MIB] == desk.raw.read_bytes()
    assert not any(data[40 * MIB :])
    # Hashed while it was written, and nothing was missed.
    made = scan(kept, on_bytes=lambda _: None, stop=lambda: False)
    assert m.encode(desk.images.manifest(result.version)) == m.encode(made)
    assert kept.stat().st_blocks * 512 < 8 * MIB


async def test_a_disk_that_lies_in_several_files_is_refused(desk: Desk) -> None:
    flat = desk.made("flat.vmdk", "vmdk", "-o", "subformat=monolithicFlat")
    assert "data lie in other files" in await desk.refusal(flat)
    split = desk.made("split.vmdk", "vmdk", "-o", "subformat=twoGbMaxExtentSparse")
    assert "data lie in other files" in await desk.refusal(split)
    assert "one part of a VMware disk" in await desk.refusal(desk.folder / "split-s001.vmdk")
    delta = desk.folder / "delta.vmdk"
    qemu_img("create", "-f", "vmdk", "-b", desk.made("base.vmdk", "vmdk"), "-F", "vmdk", delta)
    assert "needs its parent" in await desk.refusal(delta)


async def test_a_descriptor_inside_a_vmdk_that_points_elsewhere_is_refused(desk: Desk) -> None:
    secret = desk.folder / "secret"
    secret.write_bytes(os.urandom(MIB))
    for extent in (f'RW 2048 FLAT "{secret}" 0', f'RW 2048 SPARSE "a"\nRW 2048 FLAT "{secret}" 0'):
        path = desk.made("evil.vmdk", "vmdk")
        text = (
            f'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicSparse"\n{extent}\n'
        )
        with path.open("r+b") as file:
            file.seek(512)
            file.write(text.encode().ljust(10 * 512, b"\0"))
        assert "data lie in other files" in await desk.refusal(path)


async def test_a_parent_that_a_vmdk_names_where_its_header_does_not_say_is_found(desk: Desk) -> None:
    path = desk.made("child.vmdk", "vmdk")
    with path.open("r+b") as file:
        file.seek(512)
        text = (
            file.read(512).rstrip(b"\0") + b"#" * 600 + b'\nparentFileNameHint="/usr/share/common-licenses/GPL-3"\n'
        )
        file.seek(36)
        file.write(struct.pack("<Q", 1))  # so many sectors are its description
        file.seek(512)
        file.write(text)
    assert "GPL-3" in told_of(path, "vmdk"), "QEMU would read it"
    assert "needs its parent" in await desk.refusal(path)


async def test_a_differencing_vhdx_is_refused(desk: Desk) -> None:
    path = desk.made("child.vhdx", "vhdx")
    data = path.read_bytes()
    entry = data.index(bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b"), MIB)
    table = data.rindex(b"metadata", 0, entry)
    with path.open("r+b") as file:
        file.seek(table + struct.unpack_from("<I", data, entry + 16)[0] + 4)
        file.write(struct.pack("<I", 2))
    await desk.refusal(path)


@pytest.mark.parametrize("version", ["0.10", "1.1"])
@pytest.mark.parametrize("length", [0, 71, 72, 103, 105, 112, 70_000, (1 << 32) - 1])
async def test_a_qcow2_whose_header_says_oddly_how_long_it_is_is_the_same_disk_or_refused(
    desk: Desk, version: str, length: int
) -> None:
    path = desk.made("odd.qcow2", "qcow2", "-o", f"compat={version}")
    with path.open("r+b") as file:
        file.seek(100)
        file.write(struct.pack(">I", length))
    try:
        result = await desk.bring(path)
    except Refused:
        return
    assert desk.images.path(result.version).read_bytes() == desk.raw.read_bytes()


async def test_one_cluster_that_a_qcow2_calls_a_whole_disk_takes_no_more_than_is_free(desk: Desk) -> None:
    path = desk.folder / "bomb.qcow2"
    qemu_img("create", "-f", "qcow2", path, "8G")
    with path.open("r+b") as file:
        (l1_at,) = struct.unpack(">Q", file.read(48)[40:])
        end = path.stat().st_size
        file.seek(end)
        # All tables are the same table, and all of its places the same cluster.
        file.write(struct.pack(">Q", end + 65_536) * 8192 + b"x" * 65_536)
        file.seek(l1_at)
        file.write(struct.pack(">Q", end) * 16)
    desk.room = Room(free_bytes=2 * GIB, total_bytes=100 * GIB)
    await desk.refusal(path, KmgrError)


async def test_a_differencing_vdi_is_refused(desk: Desk) -> None:
    path = desk.made("diff.vdi", "vdi")
    with path.open("r+b") as file:
        file.seek(0x4C)
        file.write(struct.pack("<I", 4))
    assert "needs its parent" in await desk.refusal(path)


@pytest.mark.parametrize("method", [1, 2])
async def test_encrypted_images_are_refused(desk: Desk, method: int) -> None:
    path = desk.made("secret.qcow2", "qcow2")
    # As in an image that qemu-img encrypts; that takes it seconds, or fails where a clock is too coarse for it.
    with path.open("r+b") as file:
        file.seek(32)
        file.write(struct.pack(">I", method))
    assert "encrypted" in await desk.refusal(path)


@pytest.mark.parametrize("format", ["qcow2", "vmdk", "vdi", "vhdx"])
async def test_a_file_that_was_cut_off_is_refused(desk: Desk, format: str) -> None:
    path = desk.made(f"disk.{format}", format)
    os.truncate(path, path.stat().st_size // 2 - 7)
    message = await desk.refusal(path)
    assert any(word in message for word in ("truncated", "damaged", "qemu-img cannot read it")), message


@pytest.mark.parametrize("format", ["qcow2", "vmdk", "vhdx"])
async def test_ten_tib_in_a_small_file_are_refused_by_what_fits_here(desk: Desk, format: str) -> None:
    path = desk.folder / f"huge.{format}"
    qemu_img("create", "-f", format, path, "10T")
    desk.room = Room(free_bytes=500 * GIB, total_bytes=1000 * GIB)
    message = await desk.refusal(path)
    assert "desktops would fill it" in message or "too large" in message, message


async def test_an_image_that_does_not_fit_is_refused_before_it_is_unpacked(desk: Desk) -> None:
    desk.room = Room(free_bytes=2 * MIB, total_bytes=GIB)
    for kind in ("raw", "qcow2", "vmdk"):
        assert "too small" in await desk.refusal(desk.made(f"x.{kind}", kind), Unavailable)


async def test_a_disk_that_fills_up_meanwhile_stops_the_import_and_leaves_nothing(desk: Desk) -> None:
    path = desk.made("x.qcow2", "qcow2")
    asked = []

    def shrinking(_: Path) -> Room:
        asked.append(1)
        return Room(free_bytes=GIB if len(asked) < 3 else 0, total_bytes=GIB)

    desk.importer._images._measure = shrinking
    gate = asyncio.Event()
    qemu = sandbox.run

    # As if the disk were slow: the conversion begins when the room was looked at.
    async def slow(*words: object, **more: object) -> sandbox.Ended:
        if len(asked) >= 2:
            await gate.wait()
        return await qemu(*words, **more)  # type: ignore[arg-type]

    sandbox.run = slow
    try:
        assert "nearly full" in await desk.refusal(path, Unavailable)
    finally:
        sandbox.run = qemu


async def test_the_cell_shows_one_file_and_no_network(desk: Desk, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not for you")
    job = sandbox.Job(desk.raw, 20)
    seen = await sandbox.run(("ls", "/", "/etc"), job)
    assert set(seen.out.decode().split()) <= {
        "/:", "bin", "dev", "etc", "input", "lib", "lib64", "usr", "/etc:", "alternatives", "ld.so.cache",
    }  # fmt: skip
    assert (await sandbox.run(("cat", str(secret)), job)).code == 1
    assert (await sandbox.run(("cat", "/proc/self/status"), job)).code == 1
    writing = await sandbox.run(("sh", "-c", "echo x >> /input"), job)
    assert writing.code != 0
    assert desk.raw.stat().st_size == 40 * MIB
    network = await sandbox.run(("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/22"), job)
    assert network.code != 0
    assert "unreachable" in network.errors or "refused" in network.errors


async def test_the_cell_limits_what_is_written_and_how_long(desk: Desk, tmp_path: Path) -> None:
    target = tmp_path / "out"
    absorb.fresh(target, 0)
    job = sandbox.Job(desk.raw, 20, target=target, write_bytes=MIB)
    told = await sandbox.run(("sh", "-c", "cat /input > /output"), job)
    assert told.code != 0
    assert target.stat().st_size <= MIB
    with pytest.raises(Refused, match="longer than 1 s"):
        await sandbox.run(("sleep", "100"), sandbox.Job(desk.raw, 1))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_daemon_without_rights_but_those_of_its_ports_has_a_cell_too(desk: Desk) -> None:
    words = sandbox.command(("ls", "/input"), sandbox.Job(Path("/usr/bin/env"), 20))
    given = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+net_admin",
             "--ambient-caps=+net_admin", "--no-new-privs")  # fmt: skip
    told = subprocess.run([*given, *words], capture_output=True, check=False, text=True)
    assert (told.returncode, told.stdout) == (0, "/input\n"), told.stderr


def test_what_is_hashed_behind_a_slow_writer_is_what_he_wrote(tmp_path: Path) -> None:
    path, finished = tmp_path / "raw", threading.Event()
    size = 30 * MIB + 512
    absorb.fresh(path, size)
    assert absorb.knows_holes(path)
    heard: list[int] = []

    def write() -> None:
        with path.open("r+b", buffering=0) as file:
            for start in (0, 300_000, 5 * MIB, 20 * MIB, size - 100_000):
                file.seek(start)
                file.write(os.urandom(99_999))
                finished.wait(0.05)
        finished.set()

    writer = threading.Thread(target=write)
    writer.start()
    found = absorb.follow(path, size, finished=finished, on_bytes=heard.append, stop=lambda: False)
    writer.join()
    assert found == scan(path, on_bytes=lambda _: None, stop=lambda: False)
    assert heard == sorted(heard)
