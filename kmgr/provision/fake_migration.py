"""Live moves between fake hypervisors: what is copied is a few bytes, through the same connections.

`fail` maps a step (the name of a method) to the cause that it fails with; `slow` holds a copy at half its way; with
`busy` a guest writes as fast as its disk is copied.
"""

import asyncio
import contextlib
import json
import socket

from kmgr.errors import NotFound, Refused
from kmgr.grid.model import Processor
from kmgr.ids import DesktopId
from kmgr.provision.fake import FakeHypervisor
from kmgr.provision.hypervisor import DomainSpec, DomainState
from kmgr.provision.migration import Progress, Traits

_SIZE = 100


class FakeMigrations:
    """Moves of one fake hypervisor's domains."""

    def __init__(self, hypervisor: FakeHypervisor) -> None:
        self._hypervisor = hypervisor
        self._disks: dict[DesktopId, asyncio.StreamWriter] = {}
        self._memory: dict[DesktopId, socket.socket] = {}
        self._doors: dict[DesktopId, asyncio.Server] = {}
        self._arrived: dict[DesktopId, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.fail: dict[str, str] = {}
        self.chip: Processor | None = Processor("AMD", "family 25 model 17", frozenset({"avx2", "sse4.2"}))
        self.emulation = "qemu"
        self.slow = False
        self.busy = False
        self._looks = 0
        self.lent: set[DesktopId] = set()
        # With its process, all connections of a domain end.
        hypervisor.on_remove = self._end

    async def processor(self) -> Processor | None:
        """Return what a test says it is."""
        self._check("processor")
        return self.chip

    async def traits(self, desktop: DesktopId) -> Traits:
        """Return some that are of the right form."""
        self._check("traits")
        self._hypervisor.spec(desktop)
        uuid = "00000000-0000-4000-8000-000000000001"
        return Traits(uuid, uuid, "52:54:00:00:00:01", "pc-q35-7.2", self.emulation, named_memory=False)

    async def begun(self, desktop: DesktopId) -> bool:
        """True while a copy goes on."""
        self._check("begun")
        return desktop in self._disks or desktop in self._memory

    async def arrive(self, spec: DomainSpec, traits: Traits, generation: int, *, disk_door: str) -> None:
        """Define it under its next generation, standing still, and open a door for its disk."""
        self._check("arrive")
        self._hypervisor.adopt(spec, generation)
        self._doors[spec.desktop] = await asyncio.start_unix_server(_swallow, disk_door)
        self.lent.add(spec.desktop)

    async def load(self, desktop: DesktopId, descriptor: int) -> None:
        """Read what the other one sends, until it closes."""
        self._check("load")
        self._arrived.pop(desktop, None)
        reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=_own(descriptor)))

        async def take() -> None:
            self._arrived[desktop] = await reader.read()
            writer.close()

        task = asyncio.ensure_future(take())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def loaded(self, desktop: DesktopId) -> bool:
        """Tell whether the whole word has arrived."""
        self._check("loaded")
        if desktop not in self._arrived:
            return False
        if json.loads(self._arrived[desktop] or b"0") != _SIZE:
            raise Refused("the memory did not arrive whole: QEMU gave up")
        return True

    async def close_disk(self, desktop: DesktopId) -> None:
        """Close the door."""
        self._check("close_disk")
        self._end(desktop)

    async def copy_disk(self, desktop: DesktopId, disk_door: str) -> None:
        """Connect to the other side's door."""
        self._check("copy_disk")
        reader, writer = await asyncio.open_unix_connection(disk_door)
        if await reader.read(1) != b"!":
            writer.close()
            raise Refused("the other server does not take the disk")
        writer.write(b"d" * _SIZE)
        self._disks[desktop] = writer

    async def disk(self, desktop: DesktopId) -> Progress:
        """All of it is there at once, unless it is slow."""
        self._check("disk")
        if self.busy:
            self._looks += 1
            return Progress(_SIZE * self._looks, _SIZE * (self._looks + 1), ready=False)
        return self._progress(self._disks.get(desktop))

    async def send(self, desktop: DesktopId, descriptor: int) -> None:
        """Keep the connection; a running domain stands still once it is sent."""
        self._check("send")
        self._memory[desktop] = socket.socket(fileno=_own(descriptor))

    async def memory(self, desktop: DesktopId) -> Progress:
        """As with the disk; ready is when it stands still."""
        self._check("memory")
        told = self._progress(self._memory.get(desktop))
        if told.ready:
            await self._hypervisor.suspend(desktop)
        return told

    async def finish(self, desktop: DesktopId) -> None:
        """Send the word and close both connections."""
        self._check("finish")
        self._disks.pop(desktop).close()
        memory = self._memory.pop(desktop)
        memory.sendall(json.dumps(_SIZE).encode())
        memory.close()

    async def stay(self, desktop: DesktopId) -> None:
        """Close both connections and let it go on."""
        self._check("stay")
        self._end(desktop)
        with contextlib.suppress(NotFound):
            if {d.desktop: d.state for d in await self._hypervisor.domains()}.get(desktop) is DomainState.PAUSED:
                await self._hypervisor.start(desktop)

    def close(self) -> None:
        """End everything."""
        for desktop in [*self._disks, *self._memory, *self._doors]:
            self._end(desktop)

    def _end(self, desktop: DesktopId) -> None:
        self.lent.discard(desktop)
        if (door := self._doors.pop(desktop, None)) is not None:
            door.close()
        if (disk := self._disks.pop(desktop, None)) is not None:
            disk.close()
        if (memory := self._memory.pop(desktop, None)) is not None:
            memory.close()

    def _progress(self, copy: object) -> Progress:
        if copy is None:
            raise Refused("the copy broke off")
        return Progress(_SIZE // 2, _SIZE, ready=False) if self.slow else Progress(_SIZE, _SIZE, ready=True)

    def _check(self, step: str) -> None:
        if step in self.fail:
            raise Refused(self.fail[step])


def _own(descriptor: int) -> int:
    """Return another descriptor of the same connection, as QEMU has when one is lent to it."""
    with socket.socket(fileno=descriptor) as lent:
        own = lent.dup()
        lent.detach()
    return own.detach()


async def _swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"!")
    while await reader.read(1 << 16):
        pass
    writer.close()
