"""A desktop's disk made into a raw file: the same bytes that qemu-img makes of it, whatever the guest wrote."""

import random
import subprocess
from pathlib import Path

import pytest

from kmgr.errors import NotFound, Unavailable
from kmgr.provision.disks import make_overlay
from kmgr.provision.flatten import flatten
from kmgr.replica.images import scan

SIZE = (3 << 20) + 512 * 5


def base_of(folder: Path, seed: int) -> Path:
    """Return a raw disk with data and holes that ends within a block."""
    chance, file = random.Random(seed), folder / "base.raw"  # noqa: S311 - the same bytes each time
    with file.open("wb") as raw:
        for _ in range(3):
            raw.seek(chance.randrange(0, SIZE - 4096, 512))
            raw.write(chance.randbytes(4096))
        raw.truncate(SIZE)
    return file


def write(overlay: Path, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *words, str(overlay)], check=True, capture_output=True)


def quiet(_: int) -> None:
    """Tell nobody."""


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_qemu_img_makes_of_it(tmp_path: Path, seed: int) -> None:
    chance = random.Random(100 + seed)  # noqa: S311
    base, overlay, target = base_of(tmp_path, seed), tmp_path / "own.qcow2", tmp_path / "new.raw"
    make_overlay(overlay, base)
    offsets = [chance.randrange(0, SIZE - 8192, 512) for _ in range(6)]
    write(
        overlay,
        *(f"write -P {n + 1} {at} 8192" for n, at in enumerate(offsets)),
        f"write -z {65536 * chance.randrange(8)} 65536",
        f"write -P 9 {SIZE - 512} 512",
    )
    manifest = flatten(overlay, base, target, on_bytes=quiet, stop=lambda: False)
    expected = tmp_path / "expected.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", overlay, expected], check=True)
    assert target.read_bytes() == expected.read_bytes()
    assert manifest == scan(expected, on_bytes=quiet, stop=lambda: False)


def test_an_unchanged_desktop_gives_its_golden_image(tmp_path: Path) -> None:
    base, overlay, target = base_of(tmp_path, 1), tmp_path / "own.qcow2", tmp_path / "new.raw"
    make_overlay(overlay, base)
    assert flatten(overlay, base, target, on_bytes=quiet, stop=lambda: False) == scan(
        base, on_bytes=quiet, stop=lambda: False
    )
    assert target.stat().st_blocks <= base.stat().st_blocks + 8, "holes stay holes"
    assert oct(target.stat().st_mode)[-3:] == "600"


def test_it_stops_when_it_is_told_to_and_needs_a_disk(tmp_path: Path) -> None:
    base, overlay = base_of(tmp_path, 1), tmp_path / "own.qcow2"
    make_overlay(overlay, base)
    write(overlay, "write -P 7 0 65536")
    with pytest.raises(Unavailable):
        flatten(overlay, base, tmp_path / "a.raw", on_bytes=quiet, stop=lambda: True)
    with pytest.raises(NotFound):
        flatten(tmp_path / "none.qcow2", base, tmp_path / "b.raw", on_bytes=quiet, stop=lambda: False)
