"""The disk of a test guest as a version's file is: raw."""

import subprocess
from pathlib import Path


def raw_disk(image: Path, into: Path) -> Path:
    """Write what is in `image` to the file `into`, raw, and return that."""
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(into)], check=True, timeout=120)
    return into
