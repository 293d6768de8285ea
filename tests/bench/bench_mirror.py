"""What the second copy of a personal disk costs, over the grid's wires: `python -m tests.bench.bench_mirror`.

Prints: the first cycle, one that compares everything, one at rest, one after
scattered small writes (the worst case for a 64 KiB grain) and one after writes in
one piece; bytes on the wire and written by the holder for each byte the guest
wrote; and making a disk of the copy.
"""

import asyncio
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from kmgr.clock import SystemClock
from kmgr.grid.requests import GridRequests
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.mirror_receive import Copies
from kmgr.replica.mirror_send import DiskMirror
from tests.lab.mirrors import D1, A, B, Pair, qemu_io
from tests.lab.wires import Wires

MIB = 1 << 20


def main() -> None:
    """Run it with so many MiB of own data (512)."""
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    with tempfile.TemporaryDirectory(prefix="mirror-", dir=os.environ.get("TMPDIR")) as folder:
        asyncio.run(bench(Path(folder), mib))


async def bench(folder: Path, mib: int) -> None:
    """Play the cycles, both servers in this process."""
    pair = Pair(folder, size=2 * mib * MIB)
    wires = Wires(folder / "wires")
    ports = [wires.port(server) for server in (A, B)]
    for port in ports:
        await wires.start(port)
    requests = [GridRequests(port, clock=SystemClock()) for port in ports]
    copies = Copies(requests[1], pair.b.images, clock=SystemClock())
    mirror = DiskMirror(requests[0], pair.a.images, pair.a.off, clock=SystemClock())

    async def measured(what: str, guest_bytes: int, last: CopyPoint | None) -> CopyPoint:
        wrote, cpu, began = written(), time.process_time(), time.perf_counter()
        point = await mirror.cycle(D1, 1, pair.a.disk, to=B, last=last)
        took, spent, wrote = time.perf_counter() - began, time.process_time() - cpu, written() - wrote
        times = (
            f"wire {point.sent_bytes / guest_bytes:5.2f} x, disk {wrote / guest_bytes:5.2f} x" if guest_bytes else ""
        )
        print(
            f"{what:28} {took:7.2f} s  {spent:6.2f} CPU-s  wire {point.sent_bytes / MIB:8.2f} MiB  "
            f"disk {wrote / MIB:8.2f} MiB  {times}"
        )
        return point

    noise, chance = random.Random(1).randbytes(MIB), random.Random(2)  # noqa: S311 - a picture, not a secret
    (folder / "noise").write_bytes(noise)
    for at in range(0, mib, 64):
        qemu_io(pair.a.disk, *(f"write -q -s {folder}/noise {n}M 1M" for n in range(at, min(at + 64, mib))))
    point = await measured("first", mib * MIB, None)
    point = await measured("at rest", 0, point)
    qemu_io(pair.a.disk, "write -q -P 1 0 512")
    point = await measured("everything compared", 0, point)
    print("(powered off and without a bitmap every cycle compares everything: times below contain that)")
    places = chance.sample(range(mib * 16), 200)
    qemu_io(pair.a.disk, *(f"write -q -P {1 + n % 250} {place * 64 + 4}k 4k" for n, place in enumerate(places)))
    point = await measured("200 scattered 4 KiB writes", 200 * 4096, point)
    qemu_io(pair.a.disk, "write -q -P 9 1M 32M")
    point = await measured("32 MiB in one piece", 32 * MIB, point)
    began = time.perf_counter()
    wrong = await copies.verify(D1, 1)
    print(f"{'reading all of the copy':28} {time.perf_counter() - began:7.2f} s  {wrong} wrong")
    began = time.perf_counter()
    await copies.promote(D1, 1, pair.b.disk)
    print(f"{'made a disk of it':28} {time.perf_counter() - began:7.2f} s")
    print(f"most memory of the process   {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
    for each in requests:
        each.close()
    await wires.stop()


def written() -> int:
    """Return what this process has had the kernel write."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.partition(": ")[2]) for line in lines if line.startswith("write_bytes"))


if __name__ == "__main__":
    main()
