"""One builder of an image at a time: two would share its packages and its tree, and spoil each other's."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(folder: Path, image: str) -> Iterator[None]:
    """Wait until nobody else, in whichever process, builds that image in `folder`; it is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{image}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
