"""Versions travel over the real grid port as they do in memory, and a copy outlives the port of its source."""

import asyncio
import filecmp
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import SystemClock
from kmgr.grid.envelope import Applied
from kmgr.grid.local import LocalGrid, LocalLog
from kmgr.grid.requests import GridRequests
from kmgr.ids import ServerId, VersionId
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.replica import manifest as m
from kmgr.replica.agent import ReplicaAgent
from kmgr.replica.images import Images, scan
from kmgr.replica.pace import Pace
from tests.lab.wires import Wires

SERVERS = [ServerId(f"srv-{letter}") for letter in "abc"]
V1 = VersionId("ver-1")
MIB = 1 << 20


class Room:
    """Three servers on loopback, with real certificates and one shared log."""

    def __init__(self, folder: Path) -> None:
        self.wires, self.clock, log = Wires(folder), SystemClock(), LocalLog()
        self.ports = {server: self.wires.port(server) for server in SERVERS}
        self.grids = {
            server: LocalGrid(
                server,
                path=folder / f"{server}.sqlite",
                appliers=APPLIERS,
                schemas=SCHEMAS,
                clock=self.clock,
                log=log,
            )
            for server in SERVERS
        }
        self.images = {server: Images(folder / server) for server in SERVERS}
        self.requests = {server: GridRequests(port, clock=self.clock) for server, port in self.ports.items()}
        self.agents = {
            server: ReplicaAgent(
                self.grids[server],
                self.requests[server],
                self.clock,
                self.images[server],
                pace=Pace(look_s=0.05, pause_s=0.1, patience_s=2.0),
            )
            for server in SERVERS
        }

    async def do(self, type: str, **body: Any) -> None:
        assert isinstance(await self.grids[SERVERS[0]].propose(type, body, by="test"), Applied)

    async def fill(self, file: Path, *, blocks: int) -> None:
        """Make the servers known and the file a version on the first."""
        for server in SERVERS:
            about = {
                "name": server,
                "grid_address": f"{server}:1",
                "web_address": "",
                "version": "",
                "fingerprint": "",
            }
            await self.do("server.add", server=server, **about)
        data = random.Random(3).randbytes(blocks * m.BLOCK_BYTES - 512)  # noqa: S311 - a picture, not a secret
        await asyncio.to_thread(file.write_bytes, data)
        manifest = scan(file, on_bytes=lambda _: None, stop=lambda: False)
        data = m.encode(manifest)
        self.images[SERVERS[0]].adopt(V1, file, data)
        await self.do("image.create", image="img-1", name="Debian", notes="")
        numbers = {"size_bytes": manifest.size_bytes, "used_bytes": manifest.used_bytes, "block_bytes": m.BLOCK_BYTES}
        await self.do(
            "version.add",
            **numbers,
            version=V1,
            image="img-1",
            manifest_hash=m.manifest_hash(data),
            notes="",
            server=SERVERS[0],
        )


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(tmp_path)
    for port in room.ports.values():
        await room.wires.start(port)
    yield room
    for requests in room.requests.values():
        requests.close()
    await room.wires.stop()
    for grid in room.grids.values():
        grid.close()


async def test_two_servers_copy_at_the_same_time_over_tls(room: Room, tmp_path: Path) -> None:
    await room.fill(tmp_path / "disk", blocks=40)
    said = await asyncio.gather(*(room.agents[server].run_once() for server in SERVERS))
    assert [text.startswith("version 1 of 'Debian' copied") for text in said] == [False, True, True]
    for server in SERVERS[1:]:
        assert filecmp.cmp(room.images[SERVERS[0]].path(V1), room.images[server].path(V1), shallow=False)


async def test_a_copy_goes_on_when_its_source_falls_silent_and_another_appears(room: Room, tmp_path: Path) -> None:
    await room.fill(tmp_path / "disk", blocks=80)
    await room.agents[SERVERS[1]].run_once()
    running = asyncio.create_task(room.agents[SERVERS[2]].run_once())
    async with asyncio.timeout(10):
        while not room.agents[SERVERS[2]].progress()[V1][0]:  # noqa: ASYNC110 - the copy runs in its own time
            await asyncio.sleep(0.001)
    await room.ports[SERVERS[0]].stop()
    assert "copied" in await running
    assert filecmp.cmp(room.images[SERVERS[0]].path(V1), room.images[SERVERS[2]].path(V1), shallow=False)
