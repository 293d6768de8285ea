"""Where the file system can share blocks a new version costs what changed; where it cannot, it is right as well."""

import asyncio
import filecmp
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmgr.ids import VersionId
from kmgr.replica import manifest as m
from kmgr.replica.images import Images, scan
from kmgr.replica.part import Part
from kmgr.replica.reuse import reuse

MIB = 1 << 20
SIZE = 64 * MIB
OLD, NEW = VersionId("ver-1"), VersionId("ver-2")


def mount(folder: Path, kind: str) -> Path:
    """Mount a new file system of this kind from a file; skip where that cannot be done."""
    maker = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"], "ext4": ["mkfs.ext4", "-q"]}
    if os.geteuid() or shutil.which(maker[kind][0]) is None:
        pytest.skip(f"needs root and {maker[kind][0]}")
    disk, place = folder / "disk.img", folder / kind
    with disk.open("wb") as file:
        file.truncate(512 * MIB)
    place.mkdir()
    subprocess.run([*maker[kind], str(disk)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=False, capture_output=True).returncode:
        pytest.skip(f"this kernel mounts no {kind} from a file")
    return place


@pytest.fixture(params=["xfs", "btrfs", "ext4"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    mounted = mount(tmp_path, request.param)
    yield request.param, mounted
    subprocess.run(["umount", str(mounted)], check=True)


def used(place: Path) -> int:
    subprocess.run(["sync", "-f", str(place)], check=True)
    told = os.statvfs(place)
    return (told.f_blocks - told.f_bfree) * told.f_frsize


def version(images: Images, name: VersionId, file: Path) -> m.Manifest:
    manifest = scan(file, on_bytes=lambda _: None, stop=lambda: False)
    images.adopt(name, file, m.encode(manifest))
    return manifest


def changed(old: Path, new: Path, *, share: float) -> int:
    """Copy a disk with scattered 64 KiB places changed and one block moved; return how many blocks differ."""
    chance = random.Random(5)  # noqa: S311 - the same places each time
    shutil.copyfile(old, new)
    blocks = SIZE // m.BLOCK_BYTES
    places = sorted(chance.sample(range(1, blocks), int(blocks * share)))
    with new.open("r+b") as file:
        moved = os.pread(file.fileno(), m.BLOCK_BYTES, 0)
        for at in places:
            os.pwrite(file.fileno(), chance.randbytes(m.BLOCK_BYTES), at * m.BLOCK_BYTES)
        os.pwrite(file.fileno(), moved, places[0] * m.BLOCK_BYTES)
    return len(places) - 1


async def test_unchanged_blocks_are_shared_and_only_the_others_are_missing(
    place: tuple[str, Path], tmp_path: Path
) -> None:
    kind, folder = place
    images = Images(folder)
    first = images.tmp / "first"
    first.write_bytes(random.Random(4).randbytes(SIZE))  # noqa: S311 - a picture, not a secret
    version(images, OLD, first)
    second = tmp_path / "second"
    differ = changed(images.path(OLD), second, share=0.05)
    manifest = scan(second, on_bytes=lambda _: None, stop=lambda: False)
    before = used(folder)
    part = Part(images, NEW, manifest)
    taken = await reuse(images, part, OLD)
    assert taken == SIZE - differ * m.BLOCK_BYTES
    assert part.missing_bytes() == differ * m.BLOCK_BYTES
    with second.open("rb") as source:
        for piece in range(manifest.pieces):
            wanted = part.missing(piece)
            data = b"".join(os.pread(source.fileno(), b.length, b.offset) for b in manifest.some(piece, wanted))
            if wanted:
                part.write(piece, wanted, data)
                part.here(piece, wanted)
    await asyncio.to_thread(part.flush)
    part.finish()
    part.close()
    assert filecmp.cmp(images.path(NEW), second, shallow=False)
    if kind != "ext4":
        assert used(folder) - before <= SIZE * 6 // 100


async def test_rot_in_the_older_version_is_not_taken_over(place: tuple[str, Path], tmp_path: Path) -> None:
    images = Images(place[1])
    first = images.tmp / "first"
    first.write_bytes(random.Random(4).randbytes(4 * MIB))  # noqa: S311 - a picture, not a secret
    manifest = version(images, OLD, first)
    images.path(OLD).chmod(0o600)
    with images.path(OLD).open("r+b") as file:
        file.seek(MIB + 5)
        file.write(b"rot")
    part = Part(images, NEW, manifest)
    assert await reuse(images, part, OLD) == 4 * MIB - m.BLOCK_BYTES
    assert [piece for piece in range(4) if part.missing(piece)] == [1]
    assert part.missing(1) == 1
    part.close()
