"""A full disk at the start: under systemd one process waits for room, instead of a new one every two seconds."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from kmgr.daemon import folder, last_words
from kmgr.errors import Unavailable

LOOK_S = 5.0
# systemd gives a start 90 seconds; the next one waits on.
PATIENCE_S = 60.0


def wait_for_room(data_dir: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when the disk has room for a start; `Unavailable` if it has none, under systemd only after a while."""
    left_s = PATIENCE_S if os.environ.get("NOTIFY_SOCKET") else 0.0
    while True:
        try:
            folder.refuse_if_full(data_dir)
        except Unavailable as error:
            if left_s <= 0:
                raise
            last_words.leave(error)
        else:
            return
        sleep(LOOK_S)
        left_s -= LOOK_S
