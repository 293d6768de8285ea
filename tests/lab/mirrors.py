"""Two servers with the same golden image, and desktops' disks to mirror between them, written and read by QEMU."""

import hashlib
import json
import random
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from kmgr.clock import Clock, ManualClock
from kmgr.grid.local import LocalNetwork
from kmgr.grid.port import Requests
from kmgr.ids import DesktopId, ServerId, VersionId
from kmgr.provision import disks
from kmgr.replica import manifest as m
from kmgr.replica.grains import GRAIN
from kmgr.replica.images import Images, scan
from kmgr.replica.mirror_port import Backups, Moment
from kmgr.replica.mirror_receive import Copies
from kmgr.replica.mirror_send import DiskMirror

A, B = ServerId("srv-a"), ServerId("srv-b")
D1 = DesktopId("dsk-1")
V1 = VersionId("ver-1")
# Ends within a grain, and (as a disk of a raw file may) within a sector.
SIZE = 200 * GRAIN + 5 * 512 - 100


class PoweredOff:
    """Backups of a hypervisor whose desktops are all off (or `on`, which is found out only when looked at again)."""

    def __init__(self) -> None:
        self.on = [False]

    async def running(self, desktop: DesktopId) -> bool:
        return self.on.pop(0) if len(self.on) > 1 else self.on[0]

    async def points(self, desktop: DesktopId) -> Sequence[str]:
        return ()

    async def begin(self, desktop: DesktopId, *, since: str, point: str) -> Moment:
        raise NotImplementedError

    async def end(self, desktop: DesktopId) -> None:
        pass

    async def keep(self, desktop: DesktopId, point: str) -> None:
        pass

    async def recover(self) -> None:
        pass

    async def run(self) -> None:
        pass

    def still(self) -> Mapping[DesktopId, int]:
        return {}


class MirrorServer:
    """One server's folder, images, mirror and copies."""

    def __init__(self, folder: Path, requests: Requests, clock: Clock, *, backups: Backups | None = None) -> None:
        self.folder = folder
        for part in ("desktops", "run"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        self.images = Images(folder)
        self.off = PoweredOff()
        self.seed: dict[DesktopId, Path] = {}
        self.copies = Copies(requests, self.images, clock=clock, seed=self.seed.get)
        self.mirror = DiskMirror(requests, self.images, backups or self.off, clock=clock)

    @property
    def disk(self) -> Path:
        """Where the desktop's own disk lies here."""
        return disks.overlay_path(self.folder, D1)

    @property
    def copy(self) -> Path:
        """Where the copy of its first generation lies here."""
        return self.folder / "copies" / D1 / "1"

    def give_image(self, *, seed: int = 1, size: int = SIZE) -> None:
        """Bring version 1 here: the same bytes for the same seed."""
        raw = self.images.tmp / "new.raw"
        # Every second grain of the base is a hole.
        noise = random.Random(seed)  # noqa: S311 - a picture, not a secret
        with raw.open("wb") as file:
            for grain in range(0, size // GRAIN, 2):
                file.seek(grain * GRAIN)
                file.write(noise.randbytes(GRAIN))
            file.truncate(size)
        self.take_image(raw)

    def take_image(self, raw: Path) -> None:
        """Make a raw file in the images' folder version 1."""
        self.images.adopt(V1, raw, m.encode(scan(raw, on_bytes=lambda _: None, stop=lambda: False)))

    def make_disk(self) -> Path:
        """Make an empty disk on the image."""
        disks.make_overlay(self.disk, self.images.path(V1).absolute())
        return self.disk


class Pair:
    """Server a with an image and a disk, server b with the same image."""

    def __init__(self, folder: Path, *, size: int = SIZE) -> None:
        self.clock = ManualClock()
        self.network = LocalNetwork()
        self.a = MirrorServer(folder / "a", self.network.port(A), self.clock)
        self.b = MirrorServer(folder / "b", self.network.port(B), self.clock)
        self.a.give_image(size=size)
        self.b.give_image(size=size)
        self.a.make_disk()


def qemu_io(disk: Path, *commands: str) -> None:
    """Write with QEMU's own qcow2: `write -P 7 0 64k`, `write -z 0 64k`, `discard 0 64k`."""
    asked = [word for command in commands for word in ("-c", command)]
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-d", "unmap", *asked, str(disk)], check=True, capture_output=True, timeout=60
    )


def qemu_img(*arguments: str) -> None:
    """Run qemu-img."""
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, timeout=60)


def content(disk: Path) -> str:
    """Return a hash of what a guest would read, as QEMU sees it, trailing zeros apart."""
    raw = disk.with_suffix(".flat")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", str(disk), str(raw))
    data = raw.read_bytes()
    raw.unlink()
    return hashlib.sha256(data).hexdigest()


def is_clean(disk: Path) -> bool:
    """Tell whether QEMU finds nothing wrong with an overlay."""
    return not subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", str(disk)], capture_output=True, check=False
    ).returncode


def file_system(disk: Path, scratch: Path) -> str:
    """Check the file system in the test guest's disk as the next boot would, and return the records in it."""
    raw, part = scratch / "whole.raw", scratch / "second.ext4"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(raw))
    told = json.loads(run("sfdisk", "--json", str(raw)))["partitiontable"]["partitions"][1]
    with raw.open("rb") as file:
        file.seek(told["start"] * 512)
        part.write_bytes(file.read(told["size"] * 512))
    replayed = subprocess.run(["e2fsck", "-p", str(part)], capture_output=True, text=True, check=False, timeout=60)
    assert replayed.returncode in (0, 1), replayed.stdout
    run("e2fsck", "-f", "-n", str(part))  # and nothing else was wrong
    records = run("debugfs", "-R", "cat /records", str(part))
    raw.unlink()
    part.unlink()
    return records


def run(*command: str) -> str:
    """Return what a command says, which must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
