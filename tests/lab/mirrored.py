"""A desktop that runs on server a and is mirrored to server b: real QEMU, libvirt, guest and agent."""

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import libvirt
import libvirt_qemu

from appliance.lab.node import PrivateLibvirt
from kmgr.clock import SystemClock
from kmgr.grid.local import LocalNetwork
from kmgr.provision.hypervisor import DomainSpec
from kmgr.provision.libvirt_backup import LibvirtBackups, backups
from kmgr.provision.libvirt_driver import LibvirtDriver, connect
from kmgr.replica.mirror import CopyPoint
from tests.lab.mirrors import D1, A, B, MirrorServer, file_system

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
        held = backups(driver, data_dir=folder / "a", clock=self.clock)
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

    async def still_cycle(self, last: CopyPoint | None = None) -> CopyPoint:
        """Copy until the guest held still for it: on a busy machine its agent may need more than its second."""
        for _ in range(5):
            point = await self.cycle(last)
            if point.frozen:
                return point
            last = point
        raise AssertionError("the guest never held still")

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
        return file_system(disk, self.folder)

    def expected(self, as_of: int) -> set[str]:
        """The records that were on the disk before a moment."""
        return {str(number) for number, at in self.written if at < as_of}
