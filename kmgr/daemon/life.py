"""The frame of a daemon's life, whether it is a server or a witness: its folder for itself, and why it ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kmgr.daemon import folder, last_stop, last_words
from kmgr.daemon.room import wait_for_room


@contextmanager
def lived(data_dir: Path) -> Iterator[None]:
    """Run a daemon's life inside; what ends it is noted for the next start and for this server's own screen."""
    with last_words.left():
        folder.refuse_another_ones(data_dir)
        folder.prepare(data_dir)
        with folder.locked(data_dir):
            wait_for_room(data_dir)
            with last_stop.counted(data_dir):
                yield
