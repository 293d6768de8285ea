"""Random troubles for personal desktops, each run decided by its seed: is one ever running twice?

A run has three servers, a few people with personal desktops, and about a minute of
cut cables, cut wires between two servers, power cuts, killed daemons whose guests
run on, drains, desktops shut down to go on elsewhere, former disks put back, and slow
answers of the log. In every second run the servers become islands, the third has no
vote at first, and gets and loses it at any moment: also in the very one in which one
of the two that vote is cut off.
After each step, and at each start of a domain, every desktop runs at most once. In
the end all is mended: every desktop runs once, on the server that the log says, with
all that the age on the console had promised.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kmgr.errors import KmgrError
from kmgr.grid.local import LocalGrid
from kmgr.grid.port import Grid
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.model import CopyState
from kmgr.provision.queries import copies, desktops, take_overs
from kmgr.provision.queries import desktop as find_desktop
from kmgr.replica.mirror import CopyPoint
from kmgr.users.broker import Ready
from tests.lab.whole_grid import IDS, Lab, Simulated

PEOPLE = ("anna", "berta")
STEPS = 14
# A copy that failed for long is tried again once a minute.
CALM_S = 90.0


class TwiceRunning(AssertionError):
    """A desktop runs on two servers."""


class SlowLog:
    """The log as one server's lease asks it: answers take up to two seconds, before and after they were true."""

    def __init__(self, log: LocalGrid, lab: "Walk") -> None:
        self._log = log
        self._lab = lab

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def barrier(self, timeout_s: float = 5.0) -> None:
        """Ask, slowly."""
        before = self._lab.dice.random() * timeout_s * self._lab.slow
        await self._lab.clock.sleep(before)
        await self._log.barrier()
        await self._lab.clock.sleep(self._lab.dice.random() * (timeout_s - before) * self._lab.slow)


class Walk(Lab):
    """A grid with personal desktops and troubles."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self.two_vote = seed % 2 == 0
        self.slow = 0.0
        self.off: set[ServerId] = set()
        self.killed: set[ServerId] = set()
        self.written: dict[DesktopId, list[tuple[int, str]]] = {}
        self.owner_of: dict[DesktopId, str] = {}
        self.take_overs = 0
        self.cold_moves = 0
        self.saves = 0
        self.twice = ""
        super().__init__(folder, ids=IDS, islands=self.two_vote)
        if self.two_vote:
            self.log.voteless.add(IDS[2])

    def lease_wires(self, log: LocalGrid) -> Grid:
        """Let the log answer slowly at times."""
        return SlowLog(log, self)

    async def begin(self, *, without: ServerId | None = None) -> None:
        """Give each of the people a desktop with a copy, on any server but one."""
        for server in self.servers:
            server.mirror.takes_s = self.dice.choice((0.0, 0.5, 3.0))
            server.migrations.takes_s = self.dice.choice((0.0, 1.0, 6.0, 20.0))
            self._watch_starts(server)
            self._watch_promotions(server)
        await self.create(kind="personal", standby=len(PEOPLE), maximum=6)
        if without is not None:
            await self.do("server.drain", server=without)
        await self.wait(6 if without is None else 20)
        for user in PEOPLE:
            answer = await self.open(user)
            assert isinstance(answer, Ready)
            self.owner_of[answer.desktop.id] = user
        if without is not None:
            await self.do("server.undrain", server=without)
        await self.wait(self.dice.choice((1.0, 15.0)))

    async def wait(self, seconds: float) -> None:
        """Let time pass; look after each tenth of a second, and let the guests write."""
        for _ in range(round(seconds * 10)):
            await self.clock.advance(0.1)
            self.look()
            self._write()

    def look(self) -> None:
        """Raise if a desktop runs twice."""
        for desktop in self.owner_of:
            where = self.running(desktop)
            if len(where) > 1:
                self.twice = self.twice or f"{desktop} runs on {where} after {self.clock.monotonic():.1f} s"
        # Once is enough, also where whoever started it went on all the same.
        if self.twice:
            raise TwiceRunning(self.twice)

    def running(self, desktop: DesktopId) -> list[ServerId]:
        """Return where a desktop runs."""
        return [s.id for s in self.servers if _runs(s, desktop)]

    async def step(self) -> None:
        """Do one random thing."""
        deeds: list[Callable[[ServerId], Awaitable[None]]] = [
            *(self._cut, self._cut, self._mend, self._wire, self._power),
            *(self._kill, self._drain, self._slowly, self._ask, self._put_back, self._move, self._move),
            *(self._leave, self._leave, self._leave),
            *([self._vote, self._vote] if self.two_vote else []),
        ]
        await self.dice.choice(deeds)(self.dice.choice(self.ids))
        await self.wait(self.dice.choice((0.3, 1.0, 3.0, 7.0, 12.0)))

    async def mend_all(self) -> None:
        """Let everything be well again."""
        self.slow = 0.0
        self.network.cut.clear()
        for server in self.ids:
            await self._revive(server)
            self.mend(server)
        await self.wait(3)
        for server in self.ids:
            await self.propose("server.undrain", server=server)
        for _ in range(round(CALM_S / 5)):
            await self.wait(5)
            if not self._unsettled():
                return

    def _unsettled(self) -> bool:
        try:
            self.check_end()
        except AssertionError:
            return True
        return False

    def check_end(self) -> None:
        """Every desktop runs once, where the log says, and has what was promised."""
        with self.servers[0].grid.view() as db:
            known = {d.id: d for d in desktops(db)}
            held = copies(db)
        for desktop, user in self.owner_of.items():
            assert desktop in known, f"{user}'s desktop {desktop} is gone"
            assert known[desktop].user == user
            assert self.running(desktop) == [known[desktop].server], (self.running(desktop), known[desktop])
            ready = [copy for copy in held if copy.desktop == desktop and copy.state is CopyState.READY]
            assert [copy.generation for copy in ready] == [known[desktop].generation], "protection is whole again"

    async def _vote(self, server: ServerId) -> None:
        """Let the third vote, or no longer; at times in the moment in which another one is cut off.

        A voter more counts where its leader and it are together, one less where the others are.
        """
        third = self.ids[2]
        if third in self.log.voteless:
            if self.dice.random() < 0.6 and server != third and not self.log.cut_off:
                self.cut(server)
                self.log.voteless.discard(third)
            elif not self.log.cut_off:
                self.log.voteless.discard(third)
        elif not self.log.cut_off & self.log.voters():
            self.log.voteless.add(third)

    async def _cut(self, server: ServerId) -> None:
        if not self.log.cut_off:
            self.cut(server)

    async def _mend(self, _: ServerId) -> None:
        for server in sorted(self.log.cut_off):
            if server not in self.off:
                self.mend(server)
        self.network.cut.clear()

    async def _wire(self, server: ServerId) -> None:
        other = self.dice.choice([one for one in self.ids if one != server])
        self.network.cut.add(frozenset({server, other}))

    async def _power(self, server: ServerId) -> None:
        if server in self.off | self.killed:
            await self._revive(server)
        elif not self.log.cut_off and not self.killed:
            self.off.add(server)
            await self.power_cut(server)

    async def _kill(self, server: ServerId) -> None:
        """The daemon dies, or hangs; its guests run on, and it may come back as if nothing had been."""
        if server in self.off | self.killed:
            await self._revive(server)
        elif not self.log.cut_off and not self.killed:
            self.killed.add(server)
            self.cut(server)
            await self.at(server).stop()

    async def _revive(self, server: ServerId) -> None:
        if server in self.off | self.killed:
            self.off.discard(server)
            self.killed.discard(server)
            await self.power_on(server)

    async def _drain(self, server: ServerId) -> None:
        drains = self.server_states()[server] == "draining"
        await self._try("server.undrain" if drains else "server.drain", server=server)

    async def _slowly(self, _: ServerId) -> None:
        self.slow = self.dice.choice((0.0, 0.3, 0.95))

    async def _put_back(self, _: ServerId) -> None:
        """Somebody wants a former disk back, whoever runs the desktop now and whether that can be reached."""
        with self.alive()[0].grid.view() as db:
            former = [copy for copy in copies(db) if copy.state is CopyState.SUPERSEDED]
            generations = {desktop.id: desktop.generation for desktop in desktops(db)}
        if former:
            disk = self.dice.choice(former)
            key = {"desktop": disk.desktop, "generation": generations.get(disk.desktop, 0)}
            await self._try("desktop.put_back", **key, server=disk.server, disk=disk.generation)

    async def _move(self, server: ServerId) -> None:
        """Let one go on on another server while it runs, whatever else is happening to it."""
        desktop = self.dice.choice([d for d in self.desktops() if d.id in self.owner_of])
        key = {"desktop": desktop.id, "generation": desktop.generation, "server": desktop.server}
        await self._try("desktop.move", **key, target=server, why="balance")

    async def _leave(self, _: ServerId) -> None:
        """Have one shut down and started from its safe copy, whatever else is happening to it."""
        desktop = self.dice.choice([d for d in self.desktops() if d.id in self.owner_of])
        with self.alive()[0].grid.view() as db:
            held = [copy for copy in copies(db, desktop=desktop.id) if copy.state is CopyState.READY]
        if not held:
            return
        if self.server_states()[desktop.server] == "up":
            await self._try("server.drain", server=desktop.server)
        ignores = self.at(desktop.server).hypervisor.ignores
        ignores.clear() if self.dice.random() < 0.8 else ignores.add(desktop.id)
        seen = {"connected_at": desktop.connected_at, "disconnected_at": desktop.disconnected_at, "left": True}
        key = {"desktop": desktop.id, "generation": desktop.generation, "server": desktop.server}
        await self._try("drain.leave", **key, **seen, target=held[0].server)

    async def _ask(self, _: ServerId) -> None:
        at = self.ids.index(self.alive()[0].id)
        for user in PEOPLE:
            try:
                answer = await self.open(user, at=at)
            except KmgrError:
                continue
            if isinstance(answer, Ready):
                assert self.owner_of.get(answer.desktop.id) == user, f"{user} was given another desktop"

    async def _try(self, type: str, **body: Any) -> None:
        try:
            await self.propose(type, **body)
        except KmgrError:
            return

    def _write(self) -> None:
        self.saves += 1
        for desktop in self.owner_of:
            for server in self.running(desktop):
                path = self.at(server).disk(desktop)
                text = f"{self.disks.content.get(path, '')[-400:]} {self.saves}"
                self.disks.write(path, text)
                self.written.setdefault(desktop, []).append((self.clock.now_ms(), text))

    def _watch_starts(self, server: Simulated) -> None:
        start = server.hypervisor.start

        async def watched(desktop: DesktopId) -> None:
            await start(desktop)
            self.look()

        server.hypervisor.start = watched  # type: ignore[method-assign]

    def _watch_promotions(self, server: Simulated) -> None:
        promote = server.store.promote

        async def watched(
            desktop: DesktopId, generation: int, target: Path, *, accepted: Collection[str] = ()
        ) -> CopyPoint:
            point = await promote(desktop, generation, target, accepted=accepted)
            self._check_promised(desktop, generation, point, target)
            return point

        server.store.promote = watched  # type: ignore[method-assign]

    def _check_promised(self, desktop: DesktopId, generation: int, point: CopyPoint, target: Path) -> None:
        self.take_overs += 1
        written = self.written.get(desktop, [])
        before = [text for at, text in written if at < point.as_of]
        found = self.disks.content[target]
        # What was saved in that very millisecond may be in it or not.
        may_be = {before[-1] if before else "", *(text for at, text in written if at == point.as_of)}
        assert found in may_be, f"{desktop}: what was saved before {point.as_of} is not in its copy"
        with self.alive()[0].grid.view() as db:
            mine = find_desktop(db, desktop)
            lost = any(one.generation == generation + 1 for one in take_overs(db, desktop))
        if mine is not None and mine.generation == generation + 1 and not lost:
            self.cold_moves += 1
            assert found == (written[-1][1] if written else ""), f"{desktop}: its last words are not in its copy"
        with server_view(self) as told:
            known = told.get(desktop)
        assert known is None or known <= point.as_of, "the copy is older than the log had said"


class server_view:  # noqa: N801 - a small lens, used once
    """What the log says of how far a starting copy goes, by desktop."""

    def __init__(self, lab: Walk) -> None:
        self._lab = lab

    def __enter__(self) -> Mapping[DesktopId, int]:
        with self._lab.alive()[0].grid.view() as db:
            found = copies(db)
        return {c.desktop: c.as_of for c in found if c.state is CopyState.STARTING and c.as_of is not None}

    def __exit__(self, *_: object) -> None:
        return


def _runs(server: Simulated, desktop: DesktopId) -> bool:
    domain = server.hypervisor._domains.get(desktop)
    return domain is not None and domain.state is DomainState.RUNNING


@asynccontextmanager
async def _grid(folder: Path, seed: int) -> AsyncIterator[Walk]:
    """Lend the servers of one walk."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240 - the lab has no threads
    lab = Walk(folder, seed)
    try:
        yield lab
    finally:
        await lab.close()
        await asyncio.sleep(0)


async def walk(folder: Path, seed: int, *, steps: int = STEPS) -> int:
    """Run one seed; return how many desktops went on from their copies."""
    async with _grid(folder, seed) as lab:
        await lab.begin(without=lab.dice.choice(lab.ids))
        for _ in range(steps):
            await lab.step()
        await lab.mend_all()
        lab.check_end()
    return lab.take_overs


async def third_vote(folder: Path) -> int:
    """Cut one of two voters off in the moment in which a third one gets its vote; mend, and cut it off again."""
    async with _grid(folder, 0) as lab:
        await lab.begin(without=IDS[2])
        await lab.wait(20)
        home = next(d.server for d in lab.desktops() if d.user)
        lab.cut(home)
        lab.log.voteless.clear()
        await lab.wait(30)
        assert not lab.take_overs, "it had not heard of the third vote, and runs on"
        lab.mend(home)
        await lab.wait(10)
        lab.cut(home)
        await lab.wait(30)
        await lab.mend_all()
        lab.check_end()
    return lab.take_overs


async def unheard(folder: Path) -> int:
    """Lose a server's heartbeats while it still reaches the log, kill the next one's daemon, then mend all."""
    async with _grid(folder, 1) as lab:  # all three vote: whoever is killed, a majority is left
        await lab.begin(without=lab.log.leader())
        await lab.wait(20)
        home = next(d.server for d in lab.desktops() if d.user and d.server != lab.log.leader())
        lab.network.cut.add(frozenset({home, lab.log.leader() or home}))
        await lab.wait(25)
        lab.network.cut.clear()
        await lab.wait(10)
        await lab._kill(next(d.server for d in lab.desktops() if d.user))
        await lab.wait(25)
        await lab.mend_all()
        lab.check_end()
    return lab.take_overs


async def stopped_on_its_way(folder: Path) -> int:
    """Lose a server in the middle of a move that fails; its desktop goes on elsewhere, then the server is back."""
    async with _grid(folder, 1) as lab:
        await lab.begin(without=lab.log.leader())
        await lab.wait(20)
        leader = lab.log.leader()
        moved = next(d for d in lab.desktops() if d.user and d.server != leader)
        lab.at(moved.server).migrations.takes_s = 26.0
        key = {"desktop": moved.id, "generation": moved.generation, "server": moved.server}
        await lab.do("desktop.move", **key, target=leader, why="balance")
        await lab.wait(13.5)
        # It stands still, on its way. From now on nobody hears from its server, which still reaches the log: that the
        # move failed it says when its lease has ended, and before the loss was waited out.
        lab.network.cut.update(frozenset({moved.server, other}) for other in lab.ids if other != moved.server)
        await lab.wait(30)
        lab.network.cut.clear()
        await lab.mend_all()
        lab.check_end()
        found = [s.id for s in lab.servers if moved.id in s.domains()]
        assert found == lab.running(moved.id), "nothing of it is left where it was"
    return lab.take_overs
