"""What keeping many safe copies costs a server at rest: `python -m tests.bench.bench_copies 20 5`.

Makes so many GiB of sparse copies (20) of so many desktops (5), each with a first
cycle and three hundred that changed a little. Prints processor time: asking which
points are held (every few seconds), the same when one copy had a cycle since, reading
a stretch of 16 MiB again (so many bytes are hashed at any rate), and opening a copy
(once for each cycle).
"""

import asyncio
import hashlib
import random
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kmgr.clock import SystemClock
from kmgr.grid.local import LocalNetwork
from kmgr.ids import DesktopId, ServerId, VersionId
from kmgr.replica import mirror_index
from kmgr.replica.copies_again import STRETCH
from kmgr.replica.grains import GRAIN
from kmgr.replica.images import Images
from kmgr.replica.mirror_copy import Copy
from kmgr.replica.mirror_receive import Copies
from kmgr.replica.mirror_state import Identity

CYCLES = 300
CHANGED = 200


def main() -> None:
    """Run it with GiB and desktops."""
    gib, count = (int(word) for word in (*sys.argv[1:], "20", "5")[:2])
    with tempfile.TemporaryDirectory(prefix="copies-") as folder:
        asyncio.run(bench(Path(folder), gib, count))


async def bench(folder: Path, gib: int, count: int) -> None:
    """Measure on copies of zeros."""
    store = Copies(LocalNetwork().port(ServerId("srv-b")), Images(folder), clock=SystemClock())
    desktops = [DesktopId(f"dsk-{number}") for number in range(count)]
    for desktop in desktops:
        make(folder / "copies" / desktop / "1", desktop, gib * (1 << 30) // GRAIN)
    await measured(f"points of {count} copies, first", store.held)
    await measured(f"points of {count} copies, again", store.held)
    with (folder / "copies" / desktops[0] / "1" / "index").open("ab") as file:
        file.write(frame(array("I", [0, 1])))
    await measured("the same, one had a cycle", store.held)
    grains = gib * (1 << 30) // GRAIN
    for where, first in (("first", 0), ("second", STRETCH), ("last", grains - STRETCH)):
        stretch = partial(store.verify_some, desktops[1], 1, first, STRETCH)
        await measured(f"reading the {where} stretch again", stretch)
    await measured("opening a copy", lambda: asyncio.to_thread(opened, folder / "copies" / desktops[2] / "1"))


def opened(folder: Path) -> None:
    """Open and close a copy."""
    Copy.opened(folder).close()


def make(folder: Path, desktop: DesktopId, grains: int) -> None:
    """Write a copy of zeros, every grain of it in a slot."""
    folder.mkdir(parents=True)
    order = list(range(1, grains + 1))
    random.Random(1).shuffle(order)  # noqa: S311 - as slots are after some weeks
    first: array[int] = array("I", (n for grain, slot in enumerate(order) for n in (grain, slot)))
    own = Identity(desktop, 1, VersionId("ver-1"), "hash", grains * GRAIN)
    with (folder / "index").open("wb") as file:
        file.write(mirror_index.spell(asdict(own), array("I")))
        file.write(frame(first, desktop))
        for cycle in range(CYCLES):
            at = cycle * CHANGED % (grains - CHANGED)
            file.write(frame(first[2 * at : 2 * (at + CHANGED)], desktop))
    digest = hashlib.sha256(bytes(GRAIN)).digest()
    (folder / "sums").write_bytes(bytes(32) + digest * grains)
    with (folder / "disk").open("wb") as file:
        file.truncate((grains + 1) * GRAIN)


def frame(pairs: "array[int]", desktop: str = "dsk-0") -> bytes:
    """Return a frame of an index."""
    point = {"desktop": desktop, "generation": 1, "as_of": 1, "sent_bytes": 1, "full": False, "frozen": True}
    return mirror_index.spell({"point": point, "cycle": "kmgr-1", "still": ""}, pairs)


async def measured(what: str, work: Callable[[], Any]) -> None:
    """Do it, and print what it took."""
    cpu, began = time.process_time(), time.perf_counter()
    await work()
    print(f"{what:36} {time.perf_counter() - began:8.4f} s {time.process_time() - cpu:8.4f} CPU-s", flush=True)


if __name__ == "__main__":
    main()
