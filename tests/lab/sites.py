"""Servers of one process that copy versions from each other, and wires on which a source lies or is late."""

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from kmgr.clock import SystemClock
from kmgr.grid.envelope import Applied
from kmgr.grid.local import LocalGrid, LocalLog, LocalNetwork, LocalRequests
from kmgr.ids import ServerId, VersionId
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.replica import manifest as m
from kmgr.replica import queries
from kmgr.replica.agent import ReplicaAgent
from kmgr.replica.images import Images, Room, room, scan, version_path
from kmgr.replica.model import Version
from kmgr.replica.pace import Pace

MIB = 1 << 20
V1 = VersionId("ver-1")
FRAME = 1000
QUICK = Pace(look_s=0.02, pause_s=0.05, patience_s=0.2, flush_pieces=1)


class Site:
    """One server of the test grid, with its own folder."""

    def __init__(self, name: str, folder: Path, *, log: LocalLog, network: LocalNetwork) -> None:
        self.id = ServerId(f"srv-{name}")
        self.folder = folder / name
        self.folder.mkdir()
        self.clock = SystemClock()
        self.room: Room | None = None
        self.grid = LocalGrid(
            self.id, path=self.folder / "s.sqlite", appliers=APPLIERS, schemas=SCHEMAS, clock=self.clock, log=log
        )
        self.requests = network.port(self.id)
        self.start()

    def start(self) -> None:
        """Make a new agent, as after a restart of the daemon."""
        self.images = Images(self.folder, measure=lambda path: self.room or room(path))
        self.agent = ReplicaAgent(self.grid, self.requests, self.clock, self.images, pace=QUICK)

    @property
    def raw(self) -> Path:
        return version_path(self.folder, V1)

    async def do(self, type: str, **body: Any) -> None:
        assert isinstance(await self.grid.propose(type, body, by="test"), Applied)

    async def add_version(self, file: Path, *, version: VersionId = V1) -> m.Manifest:
        """Bring a raw file in as an import would."""
        manifest = scan(file, on_bytes=lambda _: None, stop=lambda: False)
        data = m.encode(manifest)
        self.images.adopt(version, file, data)
        if version == V1:
            await self.do("image.create", image="img-1", name="Debian", notes="")
        await self.do(
            "version.add", version=version, image="img-1", size_bytes=manifest.size_bytes, notes="", server=self.id,
            used_bytes=manifest.used_bytes, block_bytes=manifest.block_bytes, manifest_hash=m.manifest_hash(data),
        )  # fmt: skip
        return manifest

    def version(self) -> Version:
        with self.grid.view() as db:
            found = queries.version(db, V1)
        assert found is not None
        return found

    def holders(self) -> tuple[ServerId, ...]:
        with self.grid.view() as db:
            return queries.holders(db, V1)


class Served(Protocol):
    """Whatever has a server's requests."""

    @property
    def requests(self) -> LocalRequests:
        """Its requests."""
        ...


def disk(path: Path, *, size: int = 20 * MIB, used: int = 6 * MIB) -> Path:
    """Write a sparse file whose data lies in scattered places, one of them not at a block's edge."""
    chance = random.Random(7)  # noqa: S311 - a picture, not a secret
    with path.open("wb") as file:
        for _ in range(6):
            file.seek(chance.randrange(size // 4096 - used // 4096 // 6) * 4096)
            file.write(chance.randbytes(used // 6))
        file.seek(size - 700)
        file.write(b"end")
        file.truncate(size)
    return path


def newer(raw: Path, manifest: m.Manifest, path: Path) -> Path:
    """Make the file of a newer version, of which only the first block with data differs."""
    shutil.copyfile(raw, path)
    with path.open("r+b") as file:
        file.seek(manifest.block(0).offset)
        file.write(b"a change in the first block")
    return path


def three_sites(folder: Path, names: str = "abc") -> Iterator[list[Site]]:
    """Yield three servers, or as many as have names, that know each other."""
    log, network = LocalLog(), LocalNetwork()
    made = [Site(name, folder, log=log, network=network) for name in names]
    for site in made:
        about = {"name": site.id, "grid_address": f"{site.id}:1", "web_address": f"{site.id}:2"}
        asyncio.run(site.do("server.add", server=site.id, version="0", fingerprint="", **about))
    yield made
    for site in made:
        site.grid.close()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what other tasks and threads bring about."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - a thread writes, nobody could set an event
            await asyncio.sleep(0.002)


def spoil(site: Served, change: Callable[[bytes], bytes]) -> None:
    """Let a server's stream of blocks pass through `change`: what is longer than `FRAME` are bytes of blocks."""
    handler = site.requests._handlers.stream_handler("blocks")

    async def spoiled(peer: ServerId, body: Any, accept: Callable[[], Awaitable[Any]]) -> None:
        async def spoiling() -> Any:
            stream = await accept()
            write = stream.writer.writelines
            stream.writer.writelines = lambda parts: write(list(map(change, parts)))
            return stream

        await handler(peer, body, spoiling)

    site.requests.serve_stream("blocks", spoiled)


def hold_back(site: Site, moment: asyncio.Event) -> None:
    """Let a server give blocks to nobody before a moment has come."""
    handler = site.requests._handlers.stream_handler("blocks")

    async def late(peer: ServerId, body: Any, accept: Callable[[], Awaitable[Any]]) -> None:
        await moment.wait()
        await handler(peer, body, accept)

    site.requests.serve_stream("blocks", late)
