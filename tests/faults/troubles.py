"""Everything that can go wrong, each as something that begins, lasts, and is mended.

A schedule is drawn from the seed before the run: which trouble, who, how long,
how long after the last one. Who the leader is turns out when it happens.
"""

import asyncio
import contextlib
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmgr.grid.raft.records import MAGIC, Kind, scan
from tests.faults.lab import Broken, Lab, Place
from tests.faults.network import both

# Names of troubles with their weights; those of the second table change a folder and come one at a time.
PASSING = {
    "kill_one": 4, "kill_leader": 3, "kill_all": 1, "pause_one": 2, "pause_leader": 2, "cut_one": 2, "cut_leader": 3,
    "halves": 2, "deaf": 2, "mute": 2, "bridge": 2, "slow_wire": 2, "lossy_wire": 2, "far_wire": 2, "slow_disk": 2,
    "sick_disk": 2, "clock_jumps": 2,
}  # fmt: skip
LASTING = {
    "disk_full": 2,
    "torn_tail": 2,
    "old_state": 1,
    "old_log": 1,
    "old_folder": 2,
    "damaged_log": 1,
    "leaves_and_joins": 2,
}
PLAIN = ("kill_one", "kill_leader", "pause_one", "cut_one", "cut_leader", "halves", "deaf", "mute", "bridge")
YEAR_MS = 365 * 86_400_000


@dataclass(frozen=True, slots=True)
class Planned:
    """One entry of the schedule: after `pause_s`, `name` happens to `who` for `lasts_s`."""

    name: str
    pause_s: float
    lasts_s: float
    who: tuple[float, ...]
    # The next one does not wait until this one is mended.
    overlaps: bool


def schedule(seed: int, *, plain: bool = False, only: Sequence[str] = ()) -> list[Planned]:
    """Return what the seed says, perhaps of these troubles `only`; more than any run can use up."""
    dice = random.Random(f"schedule {seed}")  # noqa: S311 - repeatable on purpose
    weights = {name: PASSING[name] for name in PLAIN} if plain else {**PASSING, **LASTING}
    weights = {name: weight for name, weight in weights.items() if name in only or not only}
    return [
        Planned(
            name=dice.choices(list(weights), list(weights.values()))[0],
            pause_s=dice.choice([0.1, 0.5, 1.0, 2.0, 4.0]),
            lasts_s=dice.choice([0.2, 0.8, 1.5, 3.0, 6.0, 12.0]),
            who=tuple(dice.random() for _ in range(6)),
            overlaps=dice.random() < 0.35,
        )
        for _ in range(5000)
    ]


class Troubles:
    """Makes trouble in a lab until `running` is false, then waits until all of it is mended."""

    def __init__(self, lab: Lab, only: Sequence[str] = ()) -> None:
        self.lab = lab
        self.running = True
        self.count: Counter[str] = Counter()
        # When each one was mended, to see how soon changes go on.
        self.mended: list[tuple[str, float, float]] = []
        self._planned = schedule(lab.seed, plain=lab.plain, only=only)
        self._folders = asyncio.Lock()
        # Passing troubles that go on now; none begins while it is not calm.
        self._passing = 0
        self._calm = asyncio.Event()
        self._calm.set()

    async def run(self) -> None:
        """Follow the schedule."""
        tasks: set[asyncio.Task[None]] = set()
        for planned in self._planned:
            await self._pause(planned.pause_s)
            if not self.running:
                break
            task = asyncio.create_task(self._happen(planned))
            tasks.add(task)
            if not planned.overlaps or len([one for one in tasks if not one.done()]) > 1:
                await asyncio.wait(tasks)
            for done in [one for one in tasks if one.done()]:
                done.result()
                tasks.discard(done)
        for task in tasks:
            await task

    async def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.running and time.monotonic() < until:  # noqa: ASYNC110 - two things to wait for
            await asyncio.sleep(0.1)

    async def _happen(self, planned: Planned) -> None:
        self.count[planned.name] += 1
        begins = time.monotonic()
        trouble: Callable[[Planned], Awaitable[None]] = getattr(self, planned.name)
        if planned.name in LASTING:
            async with self._folders:
                await trouble(planned)
        else:
            await self._calm.wait()
            self._passing += 1
            try:
                await trouble(planned)
            finally:
                self._passing -= 1
        self.mended.append((planned.name, begins, time.monotonic()))

    def _one(self, planned: Planned, number: int = 0) -> Place:
        return self.lab.places[int(planned.who[number] * self.lab.size)]

    async def _leader(self, planned: Planned) -> Place:
        return await self.lab.leader() or self._one(planned)

    # Processes.

    async def kill_one(self, planned: Planned) -> None:
        """`kill -9`."""
        await self._kill([self._one(planned)], planned)

    async def kill_leader(self, planned: Planned) -> None:
        """`kill -9` of the leader."""
        await self._kill([await self._leader(planned)], planned)

    async def kill_all(self, planned: Planned) -> None:
        """`kill -9` of everybody at once."""
        await self._kill(list(self.lab.places), planned)

    async def _kill(self, places: list[Place], planned: Planned) -> None:
        victims = [place for place in places if not place.taken]
        self.lab.note(f"{planned.name}: {', '.join(place.server for place in victims)}")
        for place in victims:
            place.taken = True
        await asyncio.gather(*(self.lab.kill(place) for place in victims))
        self.count["kills"] += len(victims)
        await asyncio.sleep(planned.lasts_s / 3)
        for place in victims:
            place.taken = False
        await self.lab.revive()

    async def pause_one(self, planned: Planned) -> None:
        """SIGSTOP, later SIGCONT."""
        await self._stop(self._one(planned), planned)

    async def pause_leader(self, planned: Planned) -> None:
        """SIGSTOP of the leader, later SIGCONT."""
        await self._stop(await self._leader(planned), planned)

    async def _stop(self, place: Place, planned: Planned) -> None:
        process = place.process
        if process is None or place.taken:
            return
        self.lab.note(f"{planned.name}: {place.server} for {planned.lasts_s} s")
        self.count["pauses"] += 1
        process.pause()
        await asyncio.sleep(planned.lasts_s)
        process.go_on()

    # Wires.

    async def cut_one(self, planned: Planned) -> None:
        """Nothing to or from one server."""
        await self._cut_off(self._one(planned), planned)

    async def cut_leader(self, planned: Planned) -> None:
        """Nothing to or from the leader."""
        await self._cut_off(await self._leader(planned), planned)

    async def _cut_off(self, place: Place, planned: Planned) -> None:
        await self._block(both([place.number], self._others(place)), planned, place.server)

    async def halves(self, planned: Planned) -> None:
        """Two groups that do not hear each other."""
        order = sorted(range(self.lab.size), key=lambda number: planned.who[number])
        middle = 1 + int(planned.who[5] * (self.lab.size - 1))
        await self._block(both(order[:middle], order[middle:]), planned, f"{order[:middle]} | {order[middle:]}")

    async def deaf(self, planned: Planned) -> None:
        """One server sends, but hears nobody."""
        place = await self._leader(planned) if planned.who[1] < 0.5 else self._one(planned)
        await self._block({(other, place.number) for other in self._others(place)}, planned, place.server)

    async def mute(self, planned: Planned) -> None:
        """One server hears, but nobody hears it."""
        place = await self._leader(planned) if planned.who[1] < 0.5 else self._one(planned)
        await self._block({(place.number, other) for other in self._others(place)}, planned, place.server)

    async def bridge(self, planned: Planned) -> None:
        """Two groups that do not hear each other, and one server that hears both."""
        order = sorted(range(self.lab.size), key=lambda number: planned.who[number])
        middle = self.lab.size // 2
        left, right = order[:middle], order[middle + 1 :]
        await self._block(both(left, right), planned, f"{left} - {order[middle]} - {right}")

    def _others(self, place: Place) -> list[int]:
        return [number for number in range(self.lab.size) if number != place.number]

    async def _block(self, ways: set[tuple[int, int]], planned: Planned, told: str) -> None:
        self.lab.note(f"{planned.name}: {told} for {planned.lasts_s} s")
        self.count["partitions"] += 1
        await self.lab.network.block(ways)
        await asyncio.sleep(planned.lasts_s)
        await self.lab.network.unblock(ways)

    async def slow_wire(self, planned: Planned) -> None:
        """A wire of some hundred kilobits."""
        place, kbit = self._one(planned), 100 + int(planned.who[1] * 400)
        self.lab.note(f"slow_wire: {place.server} at {kbit} kbit/s for {planned.lasts_s} s")
        await self.lab.network.slow(place.number, kbit)
        await asyncio.sleep(planned.lasts_s)
        await self.lab.network.slow(place.number, None)

    async def lossy_wire(self, planned: Planned) -> None:
        """Some of the packets to one server are lost."""
        place, share = self._one(planned), 0.05 + planned.who[1] * 0.35
        self.lab.note(f"lossy_wire: {place.server} loses {share:.0%} for {planned.lasts_s} s")
        await self.lab.network.lose(place.number, share)
        await asyncio.sleep(planned.lasts_s)
        await self.lab.network.lose(place.number, 0.0)

    async def far_wire(self, planned: Planned) -> None:
        """A wire to the other end of the world: 50 to 200 ms there and back, and some more by chance."""
        place, delay_s = self._one(planned), (0.05 + planned.who[1] * 0.15) / 2
        self.lab.note(f"far_wire: {place.server}, {2000 * delay_s:.0f} ms there and back for {planned.lasts_s} s")
        await self.lab.network.far(place.number, delay_s, delay_s * planned.who[2])
        await asyncio.sleep(planned.lasts_s)
        await self.lab.network.near(place.number)

    # Disks and clocks.

    async def slow_disk(self, planned: Planned) -> None:
        """Every sync takes up to half a second."""
        place, sync_s = self._one(planned), planned.who[1] * 0.5
        self.lab.note(f"slow_disk: {place.server} up to {sync_s:.2f} s for {planned.lasts_s} s")
        await self.lab.ask(place, {"do": "trouble", "sync_s": sync_s})
        await asyncio.sleep(planned.lasts_s)
        await self.lab.ask(place, {"do": "trouble", "sync_s": 0.0})

    async def sick_disk(self, planned: Planned) -> None:
        """Syncs of the log fail: the server ends at the first one, with words, and goes on when it is begun again."""
        place = self._one(planned)
        self.lab.note(f"sick_disk: {place.server}, for {planned.lasts_s} s if it writes nothing")
        with place.ailing():
            await self.lab.ask(place, {"do": "trouble", "sick": True})
            await asyncio.sleep(planned.lasts_s)
            await self.lab.ask(place, {"do": "trouble", "sick": False})
        await self.lab.revive()

    async def clock_jumps(self, planned: Planned) -> None:
        """The wall clock jumps by years, the steady one by seconds as after a suspend."""
        place = self._one(planned)
        wall_ms, ahead_s = int((planned.who[1] - 0.5) * 10 * YEAR_MS), planned.who[2] * 20
        self.lab.note(f"clock_jumps: {place.server} by {wall_ms // 86_400_000} days, {ahead_s:.1f} s")
        await self.lab.ask(place, {"do": "trouble", "wall_ms": wall_ms, "ahead_s": ahead_s})

    async def disk_full(self, planned: Planned) -> None:
        """No byte of room is left; the server says so, ends, and goes on when there is room."""
        place = self._one(planned)
        self.lab.note(f"disk_full: {place.server} for {planned.lasts_s} s")
        filler = place.folder / "filler"
        with place.ailing():
            await asyncio.to_thread(_fill, filler)
            await asyncio.sleep(planned.lasts_s)
            filler.unlink()
        await self.lab.revive()

    # Folders.

    async def torn_tail(self, planned: Planned) -> None:
        """A kill in the middle of a write: what was begun is cut off again."""
        place = self._one(planned)
        async with _dead(self.lab, place):
            journal = place.home / "raft" / "journal"
            tail = random.Random(planned.who[1]).randbytes(1 + int(planned.who[2] * 200))  # noqa: S311
            with journal.open("r+b") as file:
                file.seek(scan(file.read()).end)
                file.write(tail)
            self.lab.note(f"torn_tail: {place.server}, {len(tail)} bytes")

    async def old_state(self, planned: Planned) -> None:
        """The state database is an older copy, or none: the log makes it anew."""
        place = self._one(planned)
        async with _dead(self.lab, place):
            kept = sorted(place.home.glob("state.sqlite*"))
            older = place.folder / "older"
            self.lab.note(f"old_state: {place.server}")
            for file in kept:
                file.unlink()
            for file in sorted(older.glob("*")) if older.exists() and planned.who[1] < 0.7 else ():
                if (older / "of").read_text() == place.server and file.name != "of":
                    shutil.copy(file, place.home / file.name)
            shutil.rmtree(older, ignore_errors=True)
        # A copy for the next time, made while nothing is written.
        async with _dead(self.lab, place):
            older.mkdir()
            (older / "of").write_text(place.server)
            for file in place.home.glob("state.sqlite*"):
                shutil.copy(file, older / file.name)

    async def old_log(self, planned: Planned) -> None:
        """The log is an older copy, the state is not: refused with words, replaced under a new id."""
        place = self._one(planned)
        await self._all_well()
        copy = place.folder / "older-log"
        async with _dead(self.lab, place):
            shutil.copytree(place.home / "raft", copy)
        then = (await self._all_well())[place.number]["applied"]
        while (await self._all_well())[place.number]["applied"] < then + 50:  # noqa: ASYNC110 - asked of others
            await asyncio.sleep(0.2)
        self.lab.note(f"old_log: {place.server}, as it was about entry {then}")
        place.taken = True
        try:
            await self.lab.kill(place)
            shutil.rmtree(place.home / "raft")
            copy.rename(place.home / "raft")
            if await self.lab.begin(place, refused=True):
                raise Broken(f"{place.server} runs on a log that is older than its state")
            await self.lab.replace(place)
        finally:
            place.taken = False

    async def old_folder(self, planned: Planned) -> None:
        """Everything is put back to an older copy; the others notice, and make it whole under its own id."""
        place = self._one(planned)
        await self._all_well()
        copy = place.folder / "older-home"
        async with _dead(self.lab, place):
            shutil.copytree(place.home, copy, ignore=shutil.ignore_patterns("*.sock"))
        then = (await self._all_well())[place.number]["applied"]
        # The others must be there when it returns: nobody else remembers.
        self._calm.clear()
        try:
            while self._passing:  # noqa: ASYNC110 - others end by themselves
                await asyncio.sleep(0.1)
            while (await self._all_well())[place.number]["applied"] < then + 50:  # noqa: ASYNC110 - asked of others
                await asyncio.sleep(0.2)
            self.lab.note(f"old_folder: {place.server}, as it was about entry {then}")
            place.taken = True
            await self.lab.kill(place)
            shutil.rmtree(place.home)
            copy.rename(place.home)
            seen = self.lab.doubts(place)
            await self.lab.begin(place)
            if not await _soon(lambda: self.lab.doubts(place) > seen):
                raise Broken(f"{place.server} runs with an older copy of its folder, and nobody noticed")
        finally:
            place.taken = False
            self._calm.set()
        if not await _soon(lambda: self._counts(place)):
            raise Broken(f"{place.server} was put back to an older copy and is not made whole")

    async def _counts(self, place: Place) -> bool:
        return (await self.lab.ask(place, {"do": "status"})).get("problems") == []

    async def damaged_log(self, planned: Planned) -> None:
        """A byte of what had been written safely is wrong: refused with words, replaced under a new id."""
        place = self._one(planned)
        await self._all_well()
        place.taken = True
        try:
            await self.lab.kill(place)
            journal = place.home / "raft" / "journal"
            raw = bytearray(journal.read_bytes())
            spot = _promised(bytes(raw), planned.who[1])
            raw[spot] ^= 0x40
            journal.write_bytes(raw)
            self.lab.note(f"damaged_log: {place.server} at {spot} of {len(raw)}")
            if await self.lab.begin(place, refused=True):
                raise Broken(f"{place.server} runs on a log that is damaged at {spot} of {len(raw)}")
            await self.lab.replace(place)
        finally:
            place.taken = False

    async def leaves_and_joins(self, planned: Planned) -> None:
        """A server is removed while others go on, and a fresh one joins in its place."""
        place = self._one(planned)
        await self._all_well()
        place.taken = True
        try:
            if planned.who[1] < 0.5:
                self.lab.note(f"leaves_and_joins: {place.server}, which is dead")
                await self.lab.kill(place)
            await self.lab.replace(place)
        finally:
            place.taken = False

    async def _all_well(self) -> list[dict[str, Any]]:
        """Take nothing away from a grid that lacks something already: wait until all follow closely."""
        return await self.lab.level(within=200)


@asynccontextmanager
async def _dead(lab: Lab, place: Place) -> AsyncIterator[None]:
    """A server that is dead, and started by nobody, for a moment."""
    place.taken = True
    try:
        await lab.kill(place)
        yield
    finally:
        place.taken = False
    await lab.begin(place)


async def _soon(true: Callable[[], bool | Awaitable[bool]], *, within_s: float = 40.0) -> bool:
    """Wait until something is true; False if it is not in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = true()
        if found if isinstance(found, bool) else await found:
            return True
        await asyncio.sleep(0.2)
    return False


def _fill(filler: Path) -> None:
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        # What is left is less than a block at first.
        for size in (1 << 20, 64):
            with contextlib.suppress(OSError):
                while True:
                    os.write(descriptor, bytes(size))
    finally:
        os.close(descriptor)


def _promised(raw: bytes, share: float) -> int:
    """Return a place in the log before the last batch, all of which is known to have been synced."""
    end = len(MAGIC)
    offset = end
    for kind, body in scan(raw).records:
        if kind is Kind.SYNCED:
            end = offset
        offset += 9 + len(body)
    return len(MAGIC) + int(share * max(0, end - len(MAGIC) - 1))
