"""Single questions about copies of images: a new version, a killed server, and which hash and compression."""

import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from kmgr.ids import VersionId
from tests.bench import image_peers
from tests.bench.harness import ROOT, Figure
from tests.bench.image_grid import MIB, Busy, ImageGrid, Taken, distributing, picture
from tests.lab.links import Links, run
from tests.lab.loop_disk import loop_disk, used_bytes

V1, V2 = VersionId("ver-1"), VersionId("ver-2")
DELTA_MIB, KILL_MIB = 256, 256
# Mbit/s and MiB.
SQUEEZED = ((50, 64), (100, 128), (200, 128), (1000, 256))
CHANGED = 0.05
PLACE_BYTES = 64 * 1024
BACK_S = 2.0
CODECS = ("blake3==1.0.11", "zstandard==0.25.0", "cryptography")


def delta(folder: Path) -> list[Figure]:
    """A version of which 5 % changed in scattered 64 KiB places: bytes on the wire, on disk, and rsync beside it."""
    found = []
    with Links(2, mbit=200) as links:
        old, new = folder / "old", folder / "new"
        picture(old, DELTA_MIB * MIB)
        shutil.copyfile(old, new)
        change(new, seed=2)
        took, carried = _rsync_delta(links, folder, old, new)
        for kind in ("xfs", "btrfs"):
            with loop_disk(folder, mib=4 * DELTA_MIB + 512, kind=kind) as disk:
                taken, grown = _kmgr_delta(links, folder / "grid", disk, (old, new))
            share = taken.received[1] / (DELTA_MIB * MIB)
            name = f"5 % changed, 64 KiB each, {DELTA_MIB} MiB, {kind}"
            found += [
                Figure(
                    f"{name}: bytes moved (peer: rsync)", round(100 * share, 2), "%", 1, peer=round(100 * carried, 2)
                ),
                Figure(f"{name}: disk added", round(100 * grown, 2), "%", 1),
                Figure(f"{name}: time", round(taken.last, 2), "s", 1, peer=round(took, 2)),
                Figure(f"{name}: CPU, both ends", round(taken.cpu_s, 2), "s", 1),
            ]
    return found


def change(file: Path, *, seed: int) -> None:
    """Write over a share of the file's 64 KiB places, chosen by chance."""
    chance = random.Random(seed)  # noqa: S311 - the same places each time
    places = file.stat().st_size // PLACE_BYTES
    with file.open("r+b") as disk:
        for place in chance.sample(range(places), int(places * CHANGED)):
            disk.seek(place * PLACE_BYTES)
            disk.write(chance.randbytes(PLACE_BYTES))


def _kmgr_delta(links: Links, folder: Path, disk: Path, files: tuple[Path, Path]) -> tuple[Taken, float]:
    """Copy both versions, one after the other, to a server whose data lies on `disk`."""
    grid = ImageGrid(links, folder)
    mine = folder / grid.servers[1]
    shutil.move(mine, disk / mine.name)
    mine.symlink_to(disk / mine.name)
    try:
        for version, file in zip((V1, V2), files, strict=True):
            shutil.copyfile(file, folder / "publish")
            grid.publish(version, folder / "publish")
            for place in (0, 1):
                grid.begin(place)
            for place in (0, 1):
                grid.ready(place)
            before = used_bytes(disk)
            taken = grid.copy([1])
            grid.stop()
            assert grid.same(1, version)
        return taken, (used_bytes(disk) - before) / files[1].stat().st_size
    finally:
        grid.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _rsync_delta(links: Links, folder: Path, old: Path, new: Path) -> tuple[float, float]:
    """Return rsync's seconds and the share of the file's bytes that came over the wire."""
    room = image_peers.Room(links, folder, new)
    shutil.copyfile(old, room.target(1))
    before = received(links, 1)
    taken = image_peers.rsync(room, [1], whole=False)
    return taken.last, (received(links, 1) - before) / new.stat().st_size


def received(links: Links, place: int) -> int:
    """Return what IP has brought to a place so far."""
    lines = run(*links.inside(place, ["cat", "/proc/net/netstat"])).splitlines()
    names, numbers = (line.split() for line in lines if line.startswith("IpExt:"))
    return int(dict(zip(names, numbers, strict=True))["InOctets"])


def kill(folder: Path) -> list[Figure]:
    """kill -9 of the source, then of a receiver, when the copies are half done; each is back after 2 s."""
    found = []
    with Links(4, mbit=200) as links:
        for what, victim in (("the source", 0), ("one of 3 receivers", 1)):
            picture(folder / "disk", KILL_MIB * MIB)
            with distributing(links, folder / "grid", folder / "disk", (1, 2, 3)) as grid:
                plain = grid.copy([1])
                header = plain.received[1] / (KILL_MIB * MIB)
                _empty(grid, (1,))
                came, seconds = _killed(grid, links, victim)
                twice = came / (3 * KILL_MIB * MIB * header) - 1
            name = f"kill -9 of {what} at 50 %, back after {BACK_S:g} s"
            found += [
                Figure(f"{name}: sent twice", round(100 * twice, 2), "%", 1),
                Figure(f"{name}: all done", round(seconds, 2), "s", 1, floor=round(plain.last + BACK_S, 2)),
            ]
    return found


def _empty(grid: ImageGrid, places: Sequence[int]) -> None:
    for place in places:
        grid.processes[place].kill()
        grid.forget(place)
        grid.begin(place)
        grid.ready(place)


def _killed(grid: ImageGrid, links: Links, victim: int) -> tuple[int, float]:
    """Kill a server half-way, start it again; return what all receivers received, and the seconds."""
    before = sum(received(links, place) for place in (1, 2, 3))
    began, _ = grid.go((1, 2, 3))
    while _share(grid) < 0.5:
        time.sleep(0.1)
    grid.processes[victim].kill()
    time.sleep(BACK_S)
    grid.begin(victim)
    grid.ready(victim)
    if victim:
        grid.processes[victim].order(go=1)
    ended = [grid.processes[place].done() for place in (1, 2, 3)]
    assert all("copied in" in end["done"] and not end["problems"] for end in ended), (ended, grid.words())
    assert all(grid.same(place, V1) for place in (1, 2, 3))
    came = sum(received(links, place) for place in (1, 2, 3)) - before
    return came, max(end["at"] for end in ended) - began


def _share(grid: ImageGrid) -> float:
    told = [grid.processes[place].order(progress=1)["progress"] for place in (1, 2, 3)]
    return float(sum(here for here, _ in told) / max(1, sum(of for _, of in told)))


def squeezed(folder: Path, short: bool) -> list[Figure]:
    """A disk of programs beside one of random bytes: over slow links, and over one on which nothing is compressed."""
    found = []
    for mbit, mib in SQUEEZED:
        for count in (1,) if short else (1, 3):
            with Links(count + 1, mbit=mbit) as links:
                for what, make in (("random", picture), ("programs", _guest_like)):
                    make(folder / "disk", mib * MIB)
                    floor = image_peers.floor(image_peers.Room(links, folder, folder / "disk")).last
                    receivers = range(1, count + 1)
                    with distributing(links, folder / "grid", folder / "disk", receivers) as grid:
                        taken = grid.copy(receivers)
                        assert all(grid.same(place, V1) for place in receivers)
                    name = f"{what}, 1 → {count}, {mbit} Mbit/s, {mib} MiB"
                    carried = sum(taken.received[1:]) / count / (mib * MIB)
                    ratio = round(taken.last / floor, 3)
                    found += [
                        Figure(name, round(taken.last, 2), "s", 1, floor=round(floor, 2), ratio=ratio),
                        Figure(f"{name}: on the wire", round(carried, 3), "images", 1),
                        Figure(f"{name}: CPU-s per GB", round(taken.cpu_s / (count * mib * MIB / 1e9), 2), "s", 1),
                        Figure(f"{name}: used by others", round(100 * taken.busy), "%", 1),
                    ]
    return found


def codec(folder: Path) -> list[Figure]:
    """Hashes, compression and encryption on this machine, in MB per processor second of one core."""
    sample = folder / "sample"
    _guest_like(sample, 32 * MIB)
    python = image_peers.interpreter(*CODECS)
    script = str(ROOT / "tests" / "bench" / "codec_node.py")
    busy, before = Busy(), _children_s()
    told = subprocess.run([python, script, sample], check=True, capture_output=True, text=True).stdout
    print(f"  meanwhile others used {busy.others(_children_s() - before):.0%} of the machine")
    return [
        Figure(name if ratio == 1 else f"{name} (÷ {ratio:.2f})", round(rate), "MB/s", 1)
        for name, (rate, ratio) in json.loads(told).items()
    ]


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _guest_like(file: Path, size: int) -> None:
    """Put together what fills the disk of a guest: programs and libraries of this machine."""
    found = [
        path
        for folder in ("/usr/bin", "/usr/lib/x86_64-linux-gnu")
        for path in sorted(Path(folder).iterdir())
        if path.is_file() and not path.is_symlink()
    ]
    with file.open("wb") as out:
        for path in found:
            out.write(path.read_bytes()[: 2 * MIB])
            if out.tell() >= size:
                break
        assert out.tell() >= size, "this machine has too few programs"
        out.truncate(size)


def memory_for(wanted_mib: int, copies: int) -> int:
    """Return the size of the file, in MiB: halved until so many copies of it fit into memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable"))
    disk = os.statvfs("/dev/shm")
    free = min(free, disk.f_bavail * disk.f_frsize >> 20)
    while wanted_mib > 64 and wanted_mib * (copies + 2) > free:
        wanted_mib //= 2
    return wanted_mib
