"""The grid under test: places at a switch, a server at each, their folders in memory, and how to reach them."""

import asyncio
import json
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmgr.ids import ServerId
from tests.faults.checker import End, unexplained
from tests.faults.network import PORT, Network, run
from tests.faults.process import Process, python
from tests.lab.wires import Wires

DISK_MIB = 96
LEVEL_S = 60.0
_NUMBERS = re.compile(r"[0-9]+")
COMPACT = (60, 300, 2000, 5000)


class Broken(Exception):
    """A promise was broken that shows at once; the message says which."""


@dataclass
class Place:
    """A place: its disk, the server that stands there now, and the life that this one is in."""

    number: int
    folder: Path
    server: ServerId
    process: Process | None = None
    life: int = 0
    # The server there is being repaired or replaced by a trouble; nobody else may start it.
    taken: bool = False
    # When its disk was full or failed, from and to; the end of what still goes on is infinite.
    ailed: list[tuple[float, float]] = field(default_factory=list)
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @contextmanager
    def ailing(self) -> Iterator[None]:
        """Note that its disk is full, or fails, meanwhile."""
        ails = (time.monotonic(), float("inf"))
        self.ailed.append(ails)
        try:
            yield
        finally:
            self.ailed[self.ailed.index(ails)] = (ails[0], time.monotonic())

    @property
    def home(self) -> Path:
        """The data folder of the server that stands here."""
        return self.folder / self.server

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.alive

    @property
    def named(self) -> str:
        """Server and life, for the history."""
        return f"{self.server}/{self.life}"


@dataclass
class Lab:
    """A grid of `size` servers in `folder`; `plain` runs bare pysyncobj for kmgr's log, `whole` all of kmgr."""

    folder: Path
    size: int
    seed: int
    plain: bool = False
    whole: bool = False
    # What happened, in order; what servers said when they ended by themselves; promises that were broken.
    told: list[str] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)  # noqa: S311 - repeatable on purpose
        self.network = Network(self.size)
        self.wires = Wires(self.folder / "identities")
        self.began = time.monotonic()
        self.places = [
            Place(number, self.folder / f"disk-{number}", ServerId(f"srv-{number}")) for number in range(self.size)
        ]
        self._names = self.size
        self._founded = False

    def note(self, what: str) -> None:
        """Remember what happened, for the report."""
        self.told.append(f"{time.monotonic() - self.began:7.2f} {what}")

    # The whole grid.

    async def open(self) -> None:
        """Make networks and disks, start the servers, make them one grid."""
        await self.network.open()
        for place in self.places:
            place.folder.mkdir(parents=True)
            await run("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place.folder))
            self._move_in(place)
        await asyncio.gather(*(self.begin(place) for place in self.places))
        if not self.plain:
            async with asyncio.timeout(LEVEL_S):
                for place in self.places:
                    await self._join(place)
                # Of four one would only learn: who votes is seen when all are there.
                for place in self.places:
                    await self._must_vote(place)
        await self.level()

    async def close(self) -> None:
        """End everything and remove it."""
        for place in self.places:
            if place.process is not None:
                await place.process.kill()
            await run("umount", "-l", str(place.folder), check=False)
        await self.network.close()

    async def heal(self) -> None:
        """Let every wire, process and disk work again."""
        await self.network.heal()
        for place in self.places:
            (place.folder / "filler").unlink(missing_ok=True)
            if place.process is not None:
                place.process.go_on()
        for place in self.places:
            if not place.alive:
                await self.begin(place)
            await self.ask(place, {"do": "trouble", "sync_s": 0.0})

    async def level(self, *, within: int = 0) -> list[dict[str, Any]]:
        """Wait until all servers have applied the same, or nearly so, and return what they say; `Broken` if not."""
        deadline = time.monotonic() + LEVEL_S
        while time.monotonic() < deadline:
            found = await asyncio.gather(*(self.ask(place, {"do": "status"}) for place in self.places))
            if all(one.get("majority") for one in found):
                applied = [one["applied"] for one in found]
                if max(applied) - min(applied) <= within:
                    return found
            await self.revive()
            await asyncio.sleep(0.2)
        raise Broken(f"the servers do not come to rest within {LEVEL_S:g} s: {found}")

    async def revive(self) -> None:
        """Start servers that ended by themselves, as systemd would."""
        for place in self.places:
            if not place.alive and not place.taken:
                await self.begin(place)

    # One server.

    async def begin(self, place: Place, *, refused: bool = False) -> bool:
        """Start the server that stands at a place; False if it says why it cannot, which may be `refused` to run."""
        async with place.starting:
            if place.alive:
                return True
            self._hear(place)
            place.life += 1
            log = self.folder / f"{place.server}.log"
            process = Process(self.network.inside(place.number, *self._command(place)), log)
            place.process = process
            ready = await process.begin()
            if not ready:
                self._hear(place, refused=refused)
            return ready

    async def kill(self, place: Place) -> None:
        """Kill it."""
        if place.process is not None:
            self._hear(place)
            await place.process.kill()

    async def ask(self, place: Place, order: Mapping[str, Any], *, timeout_s: float = 5.0) -> dict[str, Any]:
        """Ask the server at a place; an empty answer if there is none."""
        if place.process is None:
            return {}
        return await place.process.ask(dict(order), timeout_s=timeout_s)

    def doubts(self, place: Place) -> int:
        """Return how often the server at a place has said that its folder is older than what it promised."""
        log = self.folder / f"{place.server}.log"
        return log.read_text(errors="replace").count("data is older than what it had promised")

    async def leader(self) -> Place | None:
        """Return the place of the server that most believe to lead."""
        found = await asyncio.gather(*(self.ask(place, {"do": "status"}, timeout_s=0.5) for place in self.places))
        named = [one["leader"] for one in found if one.get("leader")]
        there = [place for place in self.places if place.server in named]
        return max(there, key=lambda place: named.count(place.server), default=None)

    async def insist(self, type: str, body: Mapping[str, Any], *, within_s: float = 45.0) -> None:
        """Make a change through whoever can, under one command id."""
        name = f"lab-{type}-{self.dice.getrandbits(60):x}"
        order = {"do": "propose", "type": type, "body": body, "id": name, "timeout_s": 3}
        deadline = time.monotonic() + within_s
        answer: dict[str, Any] = {}
        while time.monotonic() < deadline:
            for place in self.places:
                answer = await self.ask(place, order)
                if answer.get("applied"):
                    return
                if "rejected" in answer:
                    raise Broken(f"{type} was rejected: {answer['rejected']}")
            await asyncio.sleep(0.2)
        raise Broken(f"{type} could not be made within {within_s:g} s: {answer}")

    async def replace(self, place: Place) -> None:
        """Remove the server at a place from the grid and let a fresh one join there, with an empty folder."""
        old = place.server
        await self.insist("server.remove", {"server": old})
        await self.kill(place)
        shutil.rmtree(place.home)
        place.server = ServerId(f"srv-{self._names}")
        self._names += 1
        self._move_in(place)
        await self.begin(place)
        await self._join(place)
        await self._must_vote(place)
        self.note(f"{old} was replaced by {place.server}")

    async def votes(self, server: ServerId, *, within_s: float = 40.0) -> bool:
        """Wait until a server votes; False if it does not in time."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            leader = await self.leader()
            if leader is not None:
                status = await self.ask(leader, {"do": "status"})
                if server in status.get("voters", ()):
                    return True
            await asyncio.sleep(0.2)
        return False

    async def _join(self, place: Place) -> None:
        address = f"{self.network.address(place.number)}:{PORT}"
        addresses = {"grid_address": address, "web_address": f"{address}1"}
        body = {"server": place.server, "name": place.server, **addresses, "version": "1", "fingerprint": ""}
        await self.insist("server.add", body)

    async def _must_vote(self, place: Place) -> None:
        if not await self.votes(place.server):
            raise Broken(f"{place.server} joined, but does not vote")

    def _move_in(self, place: Place) -> None:
        self.wires.identity(place.server)
        shutil.move(self.wires.folder / place.server, place.home)

    def _command(self, place: Place) -> list[str]:
        others = {
            other.server: f"{self.network.address(other.number)}:{PORT}"
            for other in self.places
            if other is not place
        }
        setup = {
            "server": place.server,
            "address": f"{self.network.address(place.number)}:{PORT}",
            "hints": others,
            "founder": place.number == 0 and place.server == "srv-0",
            "compact": self.dice.choice(COMPACT),
            "seed": self.dice.getrandbits(32),
        }
        module = f"tests.faults.{'plain' if self.plain else 'daemon' if self.whole else 'server'}"
        return python(module, str(place.home), json.dumps(setup))

    def _hear(self, place: Place, *, refused: bool = False) -> None:
        """Note why a server ended by itself; an end that no fault explains breaks a promise."""
        if place.process is None or not place.process.ended:
            return
        for how, why in place.process.ended.items():
            self.note(f"{place.server} {how}: {why}")
            self.words[f"{how}: {_NUMBERS.sub('…', why.replace(str(self.folder), ''))}"] += 1
            if unexplained(End(how, why, place.process.ended_at), ailed=place.ailed, refusable=refused):
                text = f"{place.server}: {how}: {why}"
                # Said again at every start.
                if text not in self.broken:
                    self.broken.append(text)
        place.process.ended = {}
