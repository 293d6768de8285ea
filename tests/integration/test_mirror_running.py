"""A desktop is mirrored while it runs and writes: real QEMU, libvirt, guest and agent, real deaths."""

import asyncio
import base64
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.lab.node import PrivateLibvirt
from kmgr.clock import SystemClock
from kmgr.errors import Unavailable
from kmgr.grid.local import LocalNetwork
from kmgr.provision.hypervisor import DomainSpec, DomainState
from kmgr.provision.libvirt_backup import LibvirtBackups, backups
from kmgr.provision.libvirt_driver import LibvirtDriver, connect
from kmgr.replica.grains import GRAIN
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.overlay_file import OverlayFile
from tests.lab.mirrors import D1, A, B, MirrorServer, content, is_clean

libvirt = pytest.importorskip("libvirt")
libvirt_qemu = pytest.importorskip("libvirt_qemu")

pytestmark = pytest.mark.libvirt

BOOT_S = 120.0
DATA = "/mnt/records"


class Site:
    """Server a, whose desktop runs, and server b; one libvirt plays both."""

    def __init__(self, folder: Path, server: PrivateLibvirt, raw: Path) -> None:
        self.folder, self.server = folder, server
        self.clock = SystemClock()
        driver = connect(server.uri, grid="grid-1", deadline_s=20)
        assert isinstance(driver, LibvirtDriver)
        self.driver = driver
        held = backups(driver, data_dir=folder / "a")
        assert isinstance(held, LibvirtBackups)
        self.backups = held
        network = LocalNetwork()
        self.a = MirrorServer(folder / "a", network.port(A), self.clock, backups=self.backups)
        self.b = MirrorServer(folder / "b", network.port(B), self.clock)
        for each in (self.a, self.b):
            shutil.copyfile(raw, each.images.tmp / "new.raw")
            each.take_image(each.images.tmp / "new.raw")
        self.a.make_disk()
        self.written: list[tuple[int, int]] = []

    def spec(self, at: MirrorServer, generation: int) -> DomainSpec:
        return DomainSpec(
            desktop=D1,
            generation=generation,
            name="office-1",
            grid="grid-1",
            template="office",
            vcpus=1,
            memory_mib=128,
            disk=str(at.disk),
            display=str(at.folder / "run" / "1.vnc"),
            log=str(at.folder / "desktops" / "1.log"),
            accelerator="tcg",
            network="user",
        )

    async def boot(self, at: MirrorServer, generation: int = 1) -> None:
        """Start the desktop from a server's disk and wait for its agent."""
        await self.driver.define(self.spec(at, generation))
        await self.driver.start(D1)
        await self.until_agent(True, BOOT_S)

    async def until_agent(self, there: bool, limit_s: float) -> None:
        """Wait until the agent answers, or does not any more."""
        for _ in range(int(limit_s / 0.2)):
            if await self.driver.answers(D1) is there:
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"the agent is not {there}")

    async def agent(self, command: str, **arguments: object) -> object:
        """Ask the guest agent."""
        text = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        told = await self.driver.with_domain(D1, lambda domain: libvirt_qemu.qemuAgentCommand(domain, text, 5, 0))
        return json.loads(told)["return"]

    async def sh(self, script: str) -> str:
        """Run a script in the guest and return what it says."""
        begun = await self.agent("guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": True})
        assert isinstance(begun, dict)
        async with asyncio.timeout(60):
            while True:
                told = await self.agent("guest-exec-status", pid=begun["pid"])
                assert isinstance(told, dict)
                if told["exited"]:
                    assert told.get("exitcode") == 0, told
                    return base64.b64decode(told.get("out-data", "")).decode()
                await asyncio.sleep(0.02)

    async def write(self, number: int) -> None:
        """Have the guest write a numbered record and sync it; note when that was over."""
        await self.sh(f"echo {number} >>{DATA} && sync {DATA}")
        self.written.append((number, self.clock.now_ms()))

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """A guest that writes records, and scribbles besides, as fast as it can."""

        async def go_on() -> None:
            number = len(self.written)
            while True:
                number += 1
                try:
                    await self.write(number)
                except Exception:  # noqa: BLE001 - frozen for a moment, or dead: the record is not counted
                    await asyncio.sleep(0.05)

        await self.sh(
            "(while :; do dd if=/dev/urandom of=/mnt/noise bs=64k count=20 conv=fsync; done) >/dev/null 2>&1 &"
        )
        task = asyncio.create_task(go_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def cycle(self, last: CopyPoint | None = None) -> CopyPoint:
        return await self.a.mirror.cycle(D1, 1, self.a.disk, to=B, last=last)

    async def checkpoints(self) -> list[str]:
        return list(await self.backups.points(D1))

    async def off(self) -> None:
        """Shut the guest down in order."""
        await self.driver.with_domain(D1, lambda domain: domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL))

    def kill(self) -> None:
        """Kill QEMU as a power cut does, and libvirt with it; libvirt comes back."""
        self.server.power_cut()
        self.server.start()

    def file_system(self, disk: Path) -> str:
        """Check the file system in a disk as the next boot would, and return the records in it."""
        raw, part = disk.with_suffix(".flat"), disk.with_suffix(".ext4")
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(raw))
        told = json.loads(run("sfdisk", "--json", str(raw)))["partitiontable"]["partitions"][1]
        with raw.open("rb") as file:
            file.seek(told["start"] * 512)
            part.write_bytes(file.read(told["size"] * 512))
        replayed = subprocess.run(
            ["e2fsck", "-p", str(part)], capture_output=True, text=True, check=False, timeout=60
        )
        assert replayed.returncode in (0, 1), replayed.stdout
        run("e2fsck", "-f", "-n", str(part))  # and nothing else was wrong
        records = run("debugfs", "-R", "cat /records", str(part))
        raw.unlink()
        part.unlink()
        return records

    def expected(self, as_of: int) -> set[str]:
        """The records that were on the disk before a moment."""
        return {str(number) for number, at in self.written if at < as_of}


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    server = PrivateLibvirt(tmp_path_factory.mktemp("l") / "s", "mirrored")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def raw(tiny_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "ver-1.raw"
    run("qemu-img", "convert", "-O", "raw", str(tiny_image), str(path))
    return path


@pytest.fixture
async def site(libvirtd: PrivateLibvirt, raw: Path, tmp_path: Path) -> AsyncIterator[Site]:
    libvirtd.start()
    made = Site(tmp_path, libvirtd, raw)
    yield made
    libvirtd.start()
    for status in await made.driver.domains():
        await made.driver.remove(status.desktop)
    await made.driver.close()


async def test_all_that_was_synced_before_the_point_survives_the_death_of_the_server(site: Site) -> None:
    await site.boot(site.a)
    point: CopyPoint | None = None
    async with site.writing():
        points = []
        for _ in range(4):
            await asyncio.sleep(1)
            point = await site.cycle(point)
            points.append(point)
            assert len(await site.checkpoints()) == 1
        await asyncio.sleep(1)
        await asyncio.to_thread(site.kill)
    assert point is not None
    assert [p.full for p in points] == [True, False, False, False]
    assert all(p.frozen for p in points)
    assert all(p.sent_bytes < 6 << 20 for p in points[1:])
    assert not list((site.folder / "a" / "run").glob("*.frozen"))

    assert await site.b.copies.promote(D1, 1, site.b.disk) == point
    assert is_clean(site.b.disk)
    expected = site.expected(point.as_of)
    assert len(expected) > 3
    assert expected <= set(site.file_system(site.b.disk).split())
    await site.boot(site.b, generation=2)
    assert expected <= set((await site.sh(f"cat {DATA}")).split())


async def test_after_a_power_cut_everything_is_compared_and_only_differences_travel(site: Site) -> None:
    await site.boot(site.a)
    await site.sh("dd if=/dev/urandom of=/mnt/large bs=1M count=8 conv=fsync")
    first = await site.cycle()
    await site.write(1)
    await asyncio.to_thread(site.kill)
    await site.boot(site.a)
    second = await site.cycle(first)
    assert second.full
    assert second.sent_bytes < 4 << 20
    with OverlayFile(site.a.disk) as overlay:
        assert [bitmap.name for bitmap in overlay.bitmaps() if bitmap.name.startswith("kmgr-")] == []
    third = await site.cycle(second)
    assert not third.full
    assert len(await site.checkpoints()) == 1
    await site.off()
    await site.b.copies.promote(D1, 1, site.b.disk)
    assert "1" in site.file_system(site.b.disk).split()


async def test_off_and_on_again_goes_on_from_the_bitmap(site: Site) -> None:
    await site.boot(site.a)
    await site.sh("dd if=/dev/urandom of=/mnt/large bs=1M count=8 conv=fsync")
    running = await site.cycle()
    await site.write(1)
    await site.off()
    off = await site.cycle(running)
    assert not off.full
    assert off.sent_bytes < 4 << 20
    again = await site.cycle(off)
    assert again.sent_bytes < 100
    await site.boot(site.a)
    on = await site.cycle(again)
    assert not on.full
    await site.write(2)
    await site.cycle(on)
    await site.off()
    last = await site.cycle(on)
    assert not last.full
    await site.b.copies.promote(D1, 1, site.b.disk)
    assert content(site.b.disk) == content(site.a.disk)


async def test_a_guest_without_an_agent_is_copied_as_a_power_cut_would_leave_it(site: Site) -> None:
    await site.boot(site.a)
    await site.write(1)
    await site.sh("(sleep 1; kill $(cat /run/qemu-ga.pid)) >/dev/null 2>&1 &")
    await site.until_agent(False, 30)
    first = await site.cycle()
    second = await site.cycle(first)
    assert (first.full, first.frozen, second.full, second.frozen) == (True, False, False, False)
    assert [status.state for status in await site.driver.domains()] == [DomainState.RUNNING]
    await site.b.copies.promote(D1, 1, site.b.disk)
    assert "1" in site.file_system(site.b.disk).split()


async def test_what_a_killed_daemon_left_is_ended_at_the_next_start(site: Site) -> None:
    await site.boot(site.a)
    first = await site.cycle()
    await site.backups.begin(D1, since="", point="kmgr-orphan")
    mark = site.folder / "a" / "run" / f"{D1}.frozen"
    mark.touch()
    assert await site.agent("guest-fsfreeze-freeze")
    assert await site.agent("guest-fsfreeze-status") == "frozen"

    later = backups(site.driver, data_dir=site.folder / "a")
    await later.recover()
    assert await site.agent("guest-fsfreeze-status") == "thawed"
    assert not await site.driver.with_domain(D1, lambda domain: domain.jobInfo()[0])
    assert list((site.folder / "a" / "run").glob("*.frozen")) == []
    assert list((site.folder / "a" / "desktops").glob("*.scratch")) == []
    await site.write(1)
    second = await site.cycle(first)
    assert not second.full
    assert len(await site.checkpoints()) == 1


async def test_libvirt_restarted_in_the_middle_costs_one_cycle(site: Site, libvirtd: PrivateLibvirt) -> None:
    await site.boot(site.a)
    first = await site.cycle()
    await site.sh("dd if=/dev/urandom of=/mnt/large bs=1M count=8 conv=fsync")
    reached = asyncio.Event()

    async def wait(_: int) -> None:
        if not reached.is_set():
            reached.set()
            await asyncio.to_thread(libvirtd.restart_libvirtd)
            raise Unavailable("the wire broke as well")

    site.a.mirror._slow = wait
    with pytest.raises(Unavailable):
        await site.cycle(first)
    second = await site.cycle(first)
    assert not second.full
    assert second.sent_bytes > 8 << 20
    assert len(await site.checkpoints()) == 1
    await site.off()
    await site.cycle(second)
    await site.b.copies.promote(D1, 1, site.b.disk)
    assert content(site.b.disk) == content(site.a.disk)


async def test_what_the_guest_gave_back_is_zero_in_the_copy_too(site: Site) -> None:
    await site.boot(site.a)
    await site.sh("dd if=/dev/urandom of=/mnt/large bs=1M count=8 conv=fsync")
    first = await site.cycle()
    await site.sh("rm /mnt/large; sync; fstrim /mnt || true; dd if=/dev/zero of=/mnt/zeros bs=1M count=8 conv=fsync")
    second = await site.cycle(first)
    assert second.sent_bytes < 3 << 20
    await site.off()
    await site.cycle(second)
    await site.b.copies.promote(D1, 1, site.b.disk)
    assert content(site.b.disk) == content(site.a.disk)


async def test_stopping_forgets_the_points_and_the_domain_can_go(site: Site) -> None:
    await site.boot(site.a)
    await site.cycle()
    await site.a.mirror.stop(D1)
    assert await site.checkpoints() == []
    await site.cycle()
    await site.driver.remove(D1)
    assert await site.driver.domains() == ()
    with OverlayFile(site.a.disk) as overlay:
        assert sum(1 for grain in overlay.allocated()) * GRAIN > 0
