"""A small file system in a file, mounted by a loop device: one that shares blocks, or one that fills up."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.links import run


@contextmanager
def loop_disk(folder: Path, *, mib: int, kind: str = "xfs") -> Iterator[Path]:
    """Mount an empty file system of a kind (`xfs` and `btrfs` share blocks) and return where. Needs root."""
    file, place = folder / "loop.img", folder / "loop"
    with file.open("wb") as made:
        made.truncate(mib << 20)
    place.mkdir()
    try:
        run(f"mkfs.{kind}", "-q", str(file))
        run("mount", "-o", "loop", str(file), str(place))
        try:
            yield place
        finally:
            run("umount", str(place))
    finally:
        place.rmdir()
        file.unlink()


def used_bytes(place: Path) -> int:
    """Return what is used of the file system at a place, once all of it is written."""
    opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        subprocess.run(["sync", "-f", str(place)], check=True)
        told = os.fstatvfs(opened)
    finally:
        os.close(opened)
    return (told.f_blocks - told.f_bfree) * told.f_frsize
