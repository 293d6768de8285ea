"""Servers that keep images, on one log in memory and real files: what tests of keeping work with.

keepers = Keepers(tmp_path, "abc")
await keepers.open()
version = await keepers.imported(keepers["a"], blocks=20)
"""

import asyncio
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kmgr.clock import SystemClock
from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.local import LocalGrid, LocalLog, LocalNetwork
from kmgr.grid.model import Vitals
from kmgr.grid.queries import events
from kmgr.ids import ServerId, VersionId
from kmgr.provision.uses import uses
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.replica import manifest as m
from kmgr.replica import queries
from kmgr.replica.agent import ReplicaAgent
from kmgr.replica.images import Images, Room, room, scan
from kmgr.replica.model import Version
from kmgr.replica.pace import Pace

QUICK = Pace(look_s=0.02, pause_s=0.05, patience_s=0.2, flush_pieces=1)


class LiveClock(SystemClock):
    """The machine's clock, which a test can put forward: copies take their time, and weeks pass in no time."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._ahead_s += seconds

    def now_ms(self) -> int:
        """Return the wall clock, put forward."""
        return super().now_ms() + int(self._ahead_s * 1000)

    def monotonic(self) -> float:
        """Return the monotonic clock, put forward."""
        return super().monotonic() + self._ahead_s


class Keeper:
    """One server of it."""

    def __init__(self, name: str, folder: Path, *, log: LocalLog, network: LocalNetwork, clock: LiveClock) -> None:
        self.id = ServerId(f"srv-{name}")
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.clock = clock
        self.room: Room | None = None
        self.board: dict[ServerId, Vitals] = {}
        self.grid = LocalGrid(
            self.id, path=self.folder / "s.sqlite", appliers=APPLIERS, schemas=SCHEMAS, clock=clock, log=log
        )
        self.requests = network.port(self.id)
        self.start()

    def start(self) -> None:
        """Make its parts anew, as a restart of the daemon does."""
        self.images = Images(self.folder, measure=lambda path: self.room or room(path))
        self.agent = ReplicaAgent(
            self.grid,
            self.requests,
            self.clock,
            self.images,
            pace=QUICK,
            uses=uses,
            board=lambda: self.board,
        )

    async def do(self, type: str, **body: Any) -> Outcome:
        """Propose a change that must be applied."""
        outcome = await self.grid.propose(type, body, by="test")
        assert isinstance(outcome, Applied), outcome
        return outcome

    def holders(self, version: VersionId) -> set[str]:
        """Return the names of the servers that are believed to hold a version."""
        with self.grid.view() as db:
            return {server[4:] for server in queries.holders(db, version)}

    def events(self, kind: str) -> list[str]:
        """Return the texts of a kind of events, newest first."""
        with self.grid.view() as db:
            return [event.text for event in events(db, kind=kind)]

    def spoil(self, version: VersionId, offset: int, data: bytes = b"rot") -> None:
        """Change bytes of a stored version behind everybody's back."""
        path = self.images.path(version)
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
        path.chmod(0o444)

    async def scrub(self) -> int:
        """Let it read until nothing is due; return how many bytes that were."""
        read = 0
        while step := await self.agent.scrub.step():
            read += step
        return read + await self.agent.scrub.step()


class Keepers:
    """All of them."""

    def __init__(self, folder: Path, names: Iterable[str], *, clock: LiveClock | None = None) -> None:
        self.folder = folder
        self.clock = clock or LiveClock()
        self.log, self.network = LocalLog(), LocalNetwork()
        self._all = {
            name: Keeper(name, folder, log=self.log, network=self.network, clock=self.clock) for name in names
        }

    def __getitem__(self, name: str) -> Keeper:
        return self._all[name]

    @property
    def all(self) -> list[Keeper]:
        """All, by name."""
        return list(self._all.values())

    async def open(self) -> None:
        """Make the servers known and up."""
        for one in self.all:
            about = {"name": one.name, "grid_address": f"{one.name}:1", "web_address": f"{one.name}:2"}
            await one.do("server.add", server=one.id, version="0", fingerprint="", **about)
            await one.do("server.up", server=one.id)
        await self.all[0].do("image.create", image="img-1", name="Debian", notes="")

    def close(self) -> None:
        """Let go of the files."""
        for one in self.all:
            one.grid.close()

    async def imported(self, at: Keeper, *, n: int = 1, blocks: int = 20, like: VersionId | None = None) -> Version:
        """Bring in version `n`, of random blocks and holes, or `like` another one but for its first block."""
        version, file = VersionId(f"ver-{n}"), at.images.tmp / f"import-{n}.raw"
        chance = random.Random(n)  # noqa: S311 - a picture, not a secret
        with file.open("wb") as raw:
            if like is not None:
                raw.write(at.images.path(like).read_bytes())
                raw.seek(0)
                raw.write(chance.randbytes(m.BLOCK_BYTES))
            else:
                for block in range(blocks):
                    raw.seek((block + block // 7) * m.BLOCK_BYTES)
                    raw.write(chance.randbytes(m.BLOCK_BYTES))
                raw.truncate((blocks + 30) * m.BLOCK_BYTES - 512)
        manifest = scan(file, on_bytes=lambda _: None, stop=lambda: False)
        data = m.encode(manifest)
        at.images.adopt(version, file, data)
        await at.do(
            "version.add", version=version, image="img-1", size_bytes=manifest.size_bytes, notes="", server=at.id,
            used_bytes=manifest.used_bytes, block_bytes=manifest.block_bytes, manifest_hash=m.manifest_hash(data),
        )  # fmt: skip
        return self.version(version)

    def version(self, version: VersionId) -> Version:
        """Return a version's record."""
        with self.all[0].grid.view() as db:
            found = queries.version(db, version)
        assert found is not None
        return replace(found)

    async def round(self) -> dict[str, str]:
        """Let all agents do a round at the same time; returns what each said."""
        said = await asyncio.gather(*(one.agent.run_once() for one in self.all))
        return dict(zip(self._all, said, strict=True))
