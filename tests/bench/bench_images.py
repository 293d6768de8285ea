"""`python -m tests.bench.bench_images [PART …] [--short]`: images on their way, each figure beside the link's floor.

Network namespaces with links of a known rate; kmgr's own engine, a process for each server; files in memory, so that
no disk is measured. The floor is a bare TCP stream through the same link in the same run. rsync and scp copy to one
receiver after the other, libtorrent to all at once.

What was promised of a figure is said behind the table (`verdicts`); whoever misses it ends with status 1.

Parts: `slow` (200 Mbit/s), `fast` (1 Gbit/s), `delta`, `kill`, `squeezed`, `steps` (what takes processors), `codec`.
"""

import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from kmgr.ids import VersionId
from tests.bench import image_parts, image_peers, image_steps
from tests.bench.__main__ import machine
from tests.bench.harness import ROOT, Figure, report
from tests.bench.image_grid import MIB, Taken, distributing, picture
from tests.lab.links import Links

GB = 1e9
Peer = Callable[[image_peers.Room, Sequence[int]], Taken]
PEERS: Mapping[str, Peer] = {
    "rsync": image_peers.rsync,
    "scp": image_peers.scp,
    "libtorrent": image_peers.torrent,
    "libtorrent, encrypted": partial(image_peers.torrent, encrypted=True),
}


def spread(
    folder: Path, *, mbit: int, mib: int, counts: Sequence[int], runs: int, peers: Sequence[str]
) -> list[Figure]:
    """One server to so many others, beside everybody else."""
    found = []
    mib = image_parts.memory_for(mib, max(counts))
    for count in counts:
        receivers = range(1, count + 1)
        with Links(count + 1, mbit=mbit) as links:
            file = folder / "disk"
            picture(file, mib * MIB)
            room = image_peers.Room(links, folder, file)
            taken: dict[str, list[Taken]] = {"floor": [], "kmgr": []}
            for _ in range(runs):
                taken["floor"].append(image_peers.floor(room))
                taken["kmgr"].append(ours(links, folder, file, receivers))
            for name in peers:
                taken[name] = [PEERS[name](room, receivers)]
        found += rows(f"1 → {count}, {mbit} Mbit/s, {mib} MiB", taken, gb=count * mib * MIB / GB, size=mib * MIB)
    return found


def ours(links: Links, folder: Path, file: Path, receivers: Sequence[int]) -> Taken:
    """Let kmgr copy the file."""
    (folder / "publish").hardlink_to(file)
    with distributing(links, folder / "grid", folder / "publish", receivers) as grid:
        taken = grid.copy(receivers)
        assert all(grid.same(place, VersionId("ver-1")) for place in receivers)
    return taken


def rows(name: str, taken: Mapping[str, Sequence[Taken]], *, gb: float, size: int) -> list[Figure]:
    """Return the figures of one distribution: seconds of everybody, then what kmgr needed for it."""
    floor = statistics.median(one.last for one in taken["floor"])
    peer = taken.get("libtorrent", [None])[0]
    found = []
    for who, runs in taken.items():
        seconds = [one.last for one in runs]
        middle = statistics.median(seconds)
        found.append(
            Figure(
                f"{name}: {who}", round(middle, 2), "s", len(runs), floor=round(floor, 2),
                peer=round(peer.last, 2) if peer and who == "kmgr" else None,
                ratio=round(middle / floor, 3), spread=(round(min(seconds), 2), round(max(seconds), 2)),
            )
        )  # fmt: skip
    mine = taken["kmgr"]
    per_gb = {who: statistics.median(one.cpu_s for one in runs) / gb for who, runs in taken.items() if who != "floor"}
    low = statistics.median(one.cpu_s for one in taken["floor"]) / (size / GB)
    found += [
        Figure(
            f"{name}: CPU-s per GB, {who}", round(value, 2), "s", len(taken[who]), floor=round(low, 2),
            ratio=round(value / low, 2),
        )
        for who, value in per_gb.items()
    ]  # fmt: skip
    found += [
        Figure(f"{name}: memory of a server", round(max(max(one.memory) for one in mine) / MIB, 1), "MiB", len(mine)),
        Figure(f"{name}: left the source", round(max(one.sent[0] for one in mine) / size, 3), "images", len(mine)),
        Figure(f"{name}: used by others", round(100 * max(one.busy for one in mine)), "%", len(mine)),
    ]
    return found


def slow(folder: Path, short: bool) -> list[Figure]:
    """200 Mbit/s: the network decides."""
    return spread(
        folder,
        mbit=200,
        mib=256,
        counts=(1, 3, 7),
        runs=1 if short else 3,
        peers=("libtorrent",) if short else [*PEERS],
    )


def fast(folder: Path, short: bool) -> list[Figure]:
    """1 Gbit/s: with more than one receiver this machine's processors decide."""
    return spread(
        folder, mbit=1000, mib=512 if short else 1024, counts=(1, 3, 7), runs=1 if short else 3,
        peers=("libtorrent",) if short else [*PEERS],
    )  # fmt: skip


PARTS: Mapping[str, Callable[[Path, bool], list[Figure]]] = {
    "slow": slow,
    "fast": fast,
    "delta": lambda folder, _: image_parts.delta(folder),
    "kill": lambda folder, _: image_parts.kill(folder),
    "squeezed": image_parts.squeezed,
    "steps": image_steps.steps,
    "codec": lambda folder, _: image_parts.codec(folder),
}


# What was promised: times as multiples of the floor by (Mbit/s, receivers), CPU seconds at 1 Gbit/s, memory.
TIMES: Mapping[tuple[int, int], float] = {(200, 1): 1.05, (200, 3): 1.1, (200, 7): 1.25, (1000, 1): 1.1}
CPU_S_PER_GB = 3.5
MEMORY_MIB = 64.0


def verdicts(figures: Sequence[Figure]) -> list[tuple[bool, str]]:
    """Return of each figure of which something was promised whether it holds, in words."""
    found = []
    for one in figures:
        told = re.fullmatch(r"1 → (\d+), (\d+) Mbit/s, \d+ MiB: (.+)", one.name)
        if told is None:
            continue
        receivers, mbit, what = int(told[1]), int(told[2]), told[3]
        most, value = _promised(receivers, mbit, what), one.value
        if what == "kmgr" and one.ratio is not None:
            value = one.ratio
        if most is not None:
            word = "holds" if value <= most else "MISSED"
            found.append((value <= most, f"{one.name}: {value:g}, promised at most {most:g}: {word}"))
    return found


def _promised(receivers: int, mbit: int, what: str) -> float | None:
    match what:
        case "kmgr":
            return TIMES.get((mbit, receivers))
        case "CPU-s per GB, kmgr":
            return CPU_S_PER_GB if mbit == 1000 else None
        case "memory of a server":
            return MEMORY_MIB
        case _:
            return None


def main() -> int:
    """Measure what was asked for, print and write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_images")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--short", action="store_true", help="one run of each, smaller files, no rsync and scp")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench-images.json")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        print("bench: namespaces and loop devices need root: run it with sudo", file=sys.stderr)
        return 1
    print(machine(), flush=True)
    figures: list[Figure] = []
    for name in options.parts or PARTS:
        print(f"measuring: {name}", flush=True)
        folder = Path(tempfile.mkdtemp(prefix="kmgr-bench-", dir="/dev/shm"))
        try:
            figures += PARTS[name](folder, options.short)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        report(figures, path=options.out)
    judged = verdicts(figures)
    for _, words in judged:
        print(words)
    return 0 if all(holds for holds, _ in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
