"""A whole grid in one process: every agent of every server, on a clock moved by hand and a log without wires.

`Lab` has the grid and the ways to disturb it; `Simulated` is one server. With
`islands` a server that is cut off goes on by itself, as the daemon's do. Golden
images are tiny files that a test hands to servers (`Lab.hand_out`).
"""

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kmgr.balancer.agent import Balancer
from kmgr.balancer.farewell_agent import FarewellAgent
from kmgr.clock import ManualClock
from kmgr.errors import Refused, Unavailable
from kmgr.grid.contacts import Contacts
from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.island import IslandGrid
from kmgr.grid.leadership import Leadership, Watch
from kmgr.grid.local import LocalGrid, LocalLog, LocalNetwork
from kmgr.grid.port import Grid
from kmgr.grid.queries import events, servers
from kmgr.grid.vitals import Board, Heart
from kmgr.ids import AccountName, DesktopId, ServerId, VersionId
from kmgr.provision.agent import ProvisionAgent, Shape
from kmgr.provision.arriving import Arriving
from kmgr.provision.cold_moves import ColdMoves
from kmgr.provision.fake import FakeHypervisor
from kmgr.provision.fake_migration import FakeMigrations
from kmgr.provision.halting import Halting
from kmgr.provision.lease import Lease
from kmgr.provision.logons import LogOns
from kmgr.provision.migration import Progress
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.moving import Moving
from kmgr.provision.personal_disks import PersonalDisks
from kmgr.provision.protection import Protection
from kmgr.provision.queries import asks, desktops
from kmgr.provision.queries import desktop as find_desktop
from kmgr.provision.tenure import Tenure
from kmgr.provision.timely import at_once
from kmgr.provision.work import Personal
from kmgr.registry import APPLIERS, ISLAND, SCHEMAS
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.mirror_fake import FakeCopyStore, FakeDisks, FakeMirror
from kmgr.users.broker import Answer, Broker
from kmgr.users.model import Person, Role
from kmgr.users.sessions import Sessions
from tests.lab.people import RIGHT, FakeDirectory

T = TypeVar("T")
IDS = tuple(ServerId(f"srv-{letter}") for letter in "abc")
BOOT_S = 3.0


class LabMirror(FakeMirror):
    """A mirror whose copies need a wire between the two servers, and take `takes_s`; first ones `first_s` more."""

    def __init__(self, lab: "Lab", server: ServerId) -> None:
        super().__init__(lab.disks, lab.clock)
        self._lab = lab
        self._server = server
        self.takes_s = 0.0
        self.first_s = 0.0

    async def cycle(
        self, desktop: DesktopId, generation: int, disk: Path, *, to: ServerId, last: CopyPoint | None
    ) -> CopyPoint:
        """Copy, unless a wire is cut before or meanwhile; what is in it is what the disk said in the beginning."""
        self._lab.network.reach(self._server, to)
        before, begun = self._lab.disks.content.get(disk, ""), self._lab.clock.now_ms()
        known = (to, desktop, generation) in self._lab.disks.copies
        takes_s = self.takes_s + (0.0 if known else self.first_s)
        if takes_s:
            await self._lab.clock.sleep(takes_s)
        self._lab.network.reach(self._server, to)
        if (to, desktop, generation) in self._lab.promoted:
            raise Unavailable("this copy has become the desktop's disk")
        await super().cycle(desktop, generation, disk, to=to, last=last)
        point = CopyPoint(desktop, generation, begun, 1, full=last is None, frozen=True)
        self._lab.disks.copies[to, desktop, generation] = (point, before)
        return point


class LabStore(FakeCopyStore):
    """Copies that become files, since overlays are files here."""

    def __init__(self, lab: "Lab", server: ServerId) -> None:
        super().__init__(lab.disks, server)
        self._lab = lab
        self._here = server

    async def promote(
        self, desktop: DesktopId, generation: int, target: Path, *, accepted: Collection[str] = ()
    ) -> CopyPoint:
        """Let the copy become a file."""
        point = await super().promote(desktop, generation, target, accepted=accepted)
        target.touch()  # noqa: ASYNC240 - the lab has no threads
        self._lab.promoted.add((self._here, desktop, generation))
        return point


class LabMigrations(FakeMigrations):
    """Live moves that take what the guest wrote with them, need the wire between the two servers, and `takes_s`.

    Half of that time the guest works, then it stands still.
    """

    def __init__(self, lab: "Lab", server: "Simulated") -> None:
        super().__init__(server.hypervisor)
        self._lab = lab
        self._here = server
        self._begun: dict[DesktopId, float] = {}
        self.takes_s = 0.0

    async def copy_disk(self, desktop: DesktopId, disk_door: str) -> None:
        """Note when that was."""
        await super().copy_disk(desktop, disk_door)
        self._begun[desktop] = self._lab.clock.monotonic()

    async def disk(self, desktop: DesktopId) -> Progress:
        """As the fake does, over the wire."""
        self._wire(desktop)
        self.slow = self._lab.clock.monotonic() < self._begun[desktop] + self.takes_s / 2
        return await super().disk(desktop)

    async def memory(self, desktop: DesktopId) -> Progress:
        """As the fake does, over the wire."""
        self._wire(desktop)
        return await super().memory(desktop)

    async def finish(self, desktop: DesktopId) -> None:
        """Let the other disk say what this one says."""
        await self._lab.clock.sleep(self.takes_s / 2)
        there = self._wire(desktop)
        await super().finish(desktop)
        content = self._lab.disks.content
        content[there.disk(desktop)] = content.get(self._here.disk(desktop), "")

    def _wire(self, desktop: DesktopId) -> "Simulated":
        with self._here.log.view() as db:
            found = find_desktop(db, desktop)
        if found is None or found.moving_to is None:
            raise Refused("it does not move any more")
        self._lab.network.reach(self._here.id, found.moving_to)
        return self._lab.at(found.moving_to)


class Simulated:
    """One server of the lab: its state, its agents, its hypervisor, its disks."""

    def __init__(self, lab: "Lab", server: ServerId) -> None:
        self.lab = lab
        self.id = server
        self.folder = lab.folder / server
        for part in ("desktops", "run", "images"):
            (self.folder / part).mkdir(parents=True)
        self.room: dict[str, int] = {
            "cpus": 4, "memory_mib": 16_384, "memory_free_mib": 15_000, "disk_mib": 100_000, "disk_free_mib": 90_000,
        }  # fmt: skip
        self.hypervisor = FakeHypervisor(lab.clock, boot_s=BOOT_S)
        self.log = LocalGrid(
            server, path=self.folder / "state", appliers=APPLIERS, schemas=SCHEMAS, clock=lab.clock, log=lab.log
        )
        self.grid: Grid = self.log
        self.island: IslandGrid | None = None
        self.connected: set[str] = set()
        self.mirror = LabMirror(lab, server)
        self.migrations = LabMigrations(lab, self)
        self.store = LabStore(lab, server)
        self.boot = "boot-1"
        # What the guard reads from the lease's file: it outlives the daemon.
        self.lease_until = 0.0
        self.guard = Halting(self.hypervisor, lambda: lab.clock.monotonic() < self.lease_until, clock=lab.clock)
        self.guarding = asyncio.create_task(self.guard.run())
        self.tasks: list[asyncio.Task[None]] = []
        if not lab.islands:
            self.begin()

    async def start(self) -> None:
        """Start the daemon; it knows nothing but the state and what is on the disks."""
        if self.lab.islands:
            self.island = IslandGrid(
                self.log,
                folder=self.folder / "island",
                schemas=SCHEMAS,
                appliers=APPLIERS,
                rules=ISLAND,
                clock=self.lab.clock,
                blocking=at_once,
            )
            self.island.attend(lambda: self.connected)
            await self.island.start()
            self.grid = self.island
        self.begin()

    def begin(self) -> None:
        """Begin the daemon's loops."""
        clock, grid = self.lab.clock, self.grid
        self.board = Board()
        self.heart = Heart(
            self.log,
            self.lab.network.port(self.id),
            board=self.board,
            contacts=lambda: Contacts({other: f"{other}:1" for other in self.lab.ids if other != self.id}),
            clock=clock,
            measure=self._measured,
        )
        shape = Shape(
            self.folder, "grid-1", self._backing, lambda desktop: self.folder / "run" / desktop, max_builds=2
        )
        self.tenure = Tenure(self.log, folder=self.folder / "run", boot=self.boot, clock=clock)
        self.lease = Lease(lease_grid(self), clock=clock, tenured=self.tenure.lasts, told=self._leased)
        self.halting = Halting(self.hypervisor, self.lease.holds, clock=clock)
        disks = PersonalDisks(
            self.log, self.store, self.hypervisor, data_dir=self.folder, clock=clock, blocking=at_once
        )
        self.protection = Protection(
            self.log, self.mirror, data_dir=self.folder, clock=clock, holds=self.lease.holds, blocking=at_once
        )
        self.desktops = ProvisionAgent(
            grid,
            self.hypervisor,
            clock=clock,
            shape=shape,
            blocking=at_once,
            personal=Personal(self.lease, disks),
            elsewhere=lambda: self.moving.holds() | self.arriving.holds(),
        )
        requests = self.lab.network.port(self.id)
        self.moving = Moving(
            self.log,
            requests,
            self.migrations,
            run_dir=self.folder / "run",
            clock=clock,
            may_run=self.lease.allows,
            cold=ColdMoves(self.log, self.hypervisor, self.protection.last, clock=clock, may_run=self.lease.allows),
        )
        self.arriving = Arriving(
            self.log,
            requests,
            self.hypervisor,
            self.migrations,
            making=self.desktops.making,
            data_dir=self.folder,
            clock=clock,
            blocking=at_once,
            may_run=self.lease.allows,
        )
        self.heart.contribute("moves", self.moving.vitals)
        self.heart.contribute("copies", self.protection.vitals)
        self.heart.contribute("desktops", self.desktops.vitals)
        self.log_ons = LogOns(grid, self.hypervisor, clock=clock)
        self.heart.contribute("log-ons", self.log_ons.vitals)
        self.sessions = Sessions(grid, lambda: self.lab.directory, clock=clock)
        self.broker = Broker(grid, clock=clock)
        self.balancer = Balancer(grid, self.board, clock=clock)
        self.leadership = Leadership(self.log, clock=clock)
        self.leadership.duty("watch", Watch(self.log, self.board, clock=clock).run)
        self.keeping = Leadership(grid, clock=clock)
        self.keeping.duty("balancer", self.balancer.run)
        self.keeping.duty("farewells", FarewellAgent(grid, self.board, clock=clock).run)
        self.keeping.duty("sessions", self.sessions.housekeeping)
        loops = [self.heart.run, self.leadership.run, self.keeping.run, self.desktops.run]
        loops += [self.moving.run, self.arriving.run, self.log_ons.run]
        loops += [self.tenure.run, self.lease.run, self.halting.run, disks.run, self.protection.run]
        if self.island is not None:
            self.heart.contribute("island", self.island.vitals)
            loops.append(self.island.run)
        self.tasks = [asyncio.create_task(loop()) for loop in loops]

    async def stop(self) -> None:
        """Stop the daemon; domains run on."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []
        if self.island is not None:
            await self.island.stop()

    def disk(self, desktop: DesktopId) -> Path:
        """Return where a desktop's own disk is here."""
        return self.folder / "desktops" / f"{desktop}.qcow2"

    def image(self, version: str) -> Path:
        """Return where this server has a version's file."""
        return self.folder / "images" / f"{version}.raw"

    def domains(self) -> list[DesktopId]:
        """Return the desktops that have a domain here, running or not."""
        return sorted(self.hypervisor._domains)

    def overlays(self) -> list[str]:
        """Return the desktops that have a disk here."""
        return sorted(path.stem for path in (self.folder / "desktops").glob("*.qcow2"))

    def _backing(self, version: VersionId) -> Path | None:
        file = self.image(version)
        return file if file.exists() else None

    def _leased(self, until: float) -> None:
        self.lease_until = until

    async def _measured(self) -> Mapping[str, Any]:
        return self.room


def lease_grid(server: Simulated) -> Grid:
    """Return the log that a server's lease is asked of; a test may put wires of its own before it."""
    return server.lab.lease_wires(server.log)


class Lab:
    """The whole grid and the ways to disturb it."""

    def __init__(self, folder: Path, *, ids: Sequence[ServerId] = IDS, islands: bool = False) -> None:
        self.ids = tuple(ids)
        self.islands = islands
        self.folder = folder
        self.clock = ManualClock()
        self.log = LocalLog()
        self.network = LocalNetwork()
        self.directory = FakeDirectory()
        self.disks = FakeDisks()
        self.promoted: set[tuple[ServerId, DesktopId, int]] = set()
        self.servers = [Simulated(self, server) for server in self.ids]

    def lease_wires(self, log: LocalGrid) -> Grid:
        """Return the log as a lease sees it."""
        return log

    async def create(self, **template: Any) -> None:
        """Let the servers join, give everyone one template of one image that is everywhere."""
        if self.islands:
            for one in self.servers:
                await one.start()
        for server in self.ids:
            where = {"grid_address": f"{server}:1", "web_address": f"{server}:2"}
            await self.do("server.add", server=server, name=server[4:], **where, version="1", fingerprint="")
        for server in self.ids:
            await self.do("server.up", server=server)
        await self.do("image.create", image="img-1", name="debian", notes="")
        await self.version("ver-1", self.ids)
        plain = {"template": "tpl-1", "name": "office", "notes": "", "image": "img-1", "version": "ver-1"}
        shape = {"vcpus": 1, "memory_mib": 1024, "standby": 3, "maximum": 8, "refresh": "on_logout"}
        await self.do("template.create", **{**plain, **shape, **template})
        await self.do("assignment.add", template="tpl-1", kind="everyone", subject="")

    async def close(self) -> None:
        """Stop everything."""
        for server in self.servers:
            await server.stop()
            server.migrations.close()
            server.guarding.cancel()
            await asyncio.gather(server.guarding, return_exceptions=True)
            server.log.close()

    async def do(self, type: str, **body: Any) -> Mapping[str, Any]:
        """Make a change that must succeed, from any server that can."""
        outcome = await self.propose(type, **body)
        assert isinstance(outcome, Applied), outcome
        return outcome.values

    async def propose(self, type: str, **body: Any) -> Outcome:
        """Propose a change from the first server that is not cut off."""
        return await self.alive()[0].grid.propose(type, body, by="root")

    def alive(self) -> list[Simulated]:
        """Return the servers that are not cut off."""
        return [server for server in self.servers if server.id not in self.log.cut_off]

    async def version(self, version: str, holders: tuple[ServerId, ...]) -> None:
        """Add a version of the image to the log; the holders have it."""
        number = f"{int(version.rpartition('-')[2]):064x}"
        sizes = {"size_bytes": 1 << 20, "used_bytes": 0, "block_bytes": 1 << 16}
        body = {"version": version, "image": "img-1", "notes": "", "manifest_hash": number, **sizes}
        await self.do("version.add", server=holders[0], **body)
        for holder in holders:
            await self.hand_out(version, holder)

    async def hand_out(self, version: str, server: ServerId) -> None:
        """Let a server have a version."""
        self.at(server).image(version).write_bytes(bytes(1 << 16))
        await self.do("version.here", version=version, server=server)

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds * 10)):
            await self.clock.advance(0.1)

    async def meanwhile(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what some work returns; time passes until it has ended."""
        task = asyncio.create_task(work)
        await asyncio.sleep(0)
        while not task.done():
            await self.clock.advance(0.1)
        return await task

    def at(self, server: ServerId) -> Simulated:
        """Return one server."""
        return self.servers[self.ids.index(server)]

    def cut(self, server: ServerId) -> None:
        """Pull a server's network cables; it runs on."""
        self.log.cut_off.add(server)
        self.network.down.add(server)

    def mend(self, server: ServerId) -> None:
        """Plug them in again."""
        self.log.cut_off.discard(server)
        self.network.down.discard(server)
        self.log.deliver()

    async def power_cut(self, server: ServerId) -> None:
        """Take a server's power away: the daemon is gone, nothing runs."""
        self.cut(server)
        await self.at(server).stop()
        self.at(server).hypervisor.power_cut()
        self.at(server).migrations.close()
        self.at(server).boot += "+"

    async def power_on(self, server: ServerId) -> None:
        """Let it boot again."""
        self.mend(server)
        await self.at(server).start()

    async def log_in(self, user: str, at: int = 0) -> str:
        """Log somebody in at a server; return the token."""
        if user not in self.directory.people:
            self.directory.add(user, RIGHT)
        token, _ = await self.servers[at].sessions.log_in(user, RIGHT, address="127.0.0.1")
        return token

    async def open(self, user: str, at: int = 0) -> Answer:
        """Let somebody ask a server for their desktop."""
        person = Person(AccountName(user), user, (), Role.USER, "corp")
        return await self.servers[at].broker.open(person, "office")

    async def give_up_waiting(self) -> None:
        """Let everybody who waits for a desktop go away, without the time that it takes to notice it."""
        with self.alive()[0].grid.view() as db:
            waiting = asks(db)
        for ask in waiting:
            await self.do("desktop.unask", template=ask.template, user=ask.user, at=ask.at)

    def desktops(self, *states: DesktopState) -> list[Desktop]:
        """Return the desktops in these states (all if none is given), as the first server that is alive sees them."""
        with self.alive()[0].grid.view() as db:
            found = desktops(db)
        return [desktop for desktop in found if not states or desktop.state in states]

    def count(self, state: DesktopState, server: ServerId | None = None) -> int:
        """Count desktops in a state, on one server or on all."""
        return sum(server in (None, desktop.server) for desktop in self.desktops(state))

    def server_states(self) -> dict[ServerId, str]:
        """Return how the grid sees its servers."""
        with self.alive()[0].grid.view() as db:
            return {server.id: server.state.value for server in servers(db, removed=True)}

    def texts(self, kind: str) -> list[str]:
        """Return what the history says of one kind, oldest first."""
        with self.alive()[0].grid.view() as db:
            return [event.text for event in reversed(events(db, kind=kind, limit=10_000))]
