"""A disk that fills up in the middle, on a real small file system: named, cleaned up, healed when there is room."""

import asyncio
import filecmp
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import SystemClock
from kmgr.errors import Unavailable
from kmgr.grid.envelope import Applied
from kmgr.grid.local import LocalGrid, LocalLog, LocalNetwork
from kmgr.ids import ServerId
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.replica.agent import ReplicaAgent
from kmgr.replica.images import Images, Room
from kmgr.templates.importer import Importer

A, B = ServerId("srv-a"), ServerId("srv-b")
MIB = 1 << 20
PLENTY = Room(free_bytes=1 << 40, total_bytes=1 << 40)


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """Mount a file system of 8 MiB."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that is a small file system."""
    with mounted(tmp_path / "small") as folder:
        yield folder


@pytest.fixture
def own_disk_for_images(tmp_path: Path) -> Iterator[Path]:
    """Return a data folder whose images are a small file system of their own."""
    with mounted(tmp_path / "data" / "images"):
        yield tmp_path / "data"


@pytest.fixture
def grids(tmp_path: Path) -> Iterator[dict[ServerId, LocalGrid]]:
    log = LocalLog()
    made = {
        server: LocalGrid(
            server, path=tmp_path / server, appliers=APPLIERS, schemas=SCHEMAS, clock=SystemClock(), log=log
        )
        for server in (A, B)
    }
    for server in made:
        body: dict[str, Any] = {"server": server, "name": server, "version": "0", "fingerprint": ""}
        body |= {"grid_address": f"{server}:1", "web_address": f"{server}:2"}
        assert isinstance(asyncio.run(made[server].propose("server.add", body, by="test")), Applied)
    yield made
    for grid in made.values():
        grid.close()


def disk(path: Path) -> Path:
    """Write a raw disk of 12 MiB without a hole: more than the small disk holds."""
    path.write_bytes(bytes(510) + b"\x55\xaa" + b"full" * (3 * MIB - 128))
    return path


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_images_may_lie_on_a_disk_of_their_own(
    grids: dict[ServerId, LocalGrid], own_disk_for_images: Path, tmp_path: Path
) -> None:
    data = own_disk_for_images
    images = Images(data)
    assert images.folder.stat().st_dev != data.stat().st_dev
    assert images.room().total_bytes == 8 * MIB  # what is checked is the room of that disk
    importer = Importer(grids[A], images, SystemClock())
    source = tmp_path / "small.raw"
    source.write_bytes(bytes(510) + b"\x55\xaa" + b"here" * (MIB // 4 - 128))
    made = await importer.import_file(source, image_name="file", by="anna")
    assert filecmp.cmp(source, images.path(made.version), shallow=False)

    async def chunks() -> AsyncIterator[bytes]:
        yield source.read_bytes()

    sent = await importer.import_stream(chunks(), size_bytes=MIB, image_name="upload", by="anna")
    assert filecmp.cmp(source, images.path(sent.version), shallow=False)
    with pytest.raises(Unavailable, match="the disk of this server is too small"):
        await importer.import_file(disk(tmp_path / "disk.raw"), image_name="x", by="anna")
    assert [file.name for file in images.tmp.iterdir()] == []
    assert [file for file in data.rglob("*") if file.is_file() and images.folder not in file.parents] == []

    network, clock = LocalNetwork(), SystemClock()
    ReplicaAgent(grids[A], network.port(A), clock, images)
    other = Images(tmp_path / "other")
    assert "copied" in await ReplicaAgent(grids[B], network.port(B), clock, other).run_once()


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_an_import_that_fills_the_disk_is_named_and_leaves_nothing(
    grids: dict[ServerId, LocalGrid], small_disk: Path, tmp_path: Path
) -> None:
    images = Images(small_disk, measure=lambda _: PLENTY)
    importer = Importer(grids[A], images, SystemClock())
    with pytest.raises(Unavailable, match="the disk is full") as caught:
        await importer.import_file(disk(tmp_path / "disk.raw"), image_name="x", by="anna")
    assert caught.value.code == "disk_full"
    data = (tmp_path / "disk.raw").read_bytes()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), MIB):
            yield data[start : start + MIB]

    with pytest.raises(Unavailable, match="the disk is full"):
        await importer.import_stream(chunks(), size_bytes=len(data), image_name="x", by="anna")
    assert [file for file in images.folder.rglob("*") if file.is_file()] == []


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_a_copy_that_fills_the_disk_is_named_and_goes_on_when_there_is_room(
    grids: dict[ServerId, LocalGrid], small_disk: Path, tmp_path: Path
) -> None:
    network, clock = LocalNetwork(), SystemClock()
    source = Images(tmp_path)
    ReplicaAgent(grids[A], network.port(A), clock, source)
    result = await Importer(grids[A], source, clock).import_file(
        disk(tmp_path / "disk.raw"), image_name="x", by="anna"
    )
    target = Images(small_disk, measure=lambda _: PLENTY)
    agent = ReplicaAgent(grids[B], network.port(B), clock, target)
    assert await agent.run_once() == ""
    (problem,) = agent.problems()
    assert "the disk is full" in problem
    assert not target.path(result.version).exists()

    assert [file.suffix for file in target.folder.glob("*.*")] == [".manifest"]
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    assert "copied" in await agent.run_once()
    assert agent.problems() == ()
    assert filecmp.cmp(source.path(result.version), target.path(result.version), shallow=False)
