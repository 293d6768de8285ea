"""A grid of one server that takes newcomers in, over real TLS on loopback."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kmgr.clock import ManualClock
from kmgr.grid import authority, identity
from kmgr.grid.commands import APPLIERS
from kmgr.grid.identity import Identity
from kmgr.grid.join import Invitation, invite, join_grid
from kmgr.grid.joindesk import JoinDesk
from kmgr.grid.joining import Joined, Newcomer, Step
from kmgr.grid.local import LocalGrid
from kmgr.grid.model import Server
from kmgr.grid.port import Grid
from kmgr.grid.queries import invitations, servers
from kmgr.grid.schema import SCHEMA
from kmgr.ids import ServerId
from tests.lab.wires import Wires

A, X = ServerId("srv-a"), ServerId("srv-x")


class Killed(BaseException):
    """The end of a process, in a test that goes on."""


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Office:
    """One server `a` of a grid, and what its state looks like."""

    def __init__(self, folder: Path, *, name: str = "office", version: str = "1") -> None:
        self.clock = ManualClock()
        self.name = name
        self.images_mib = 0
        self.wires = Wires(folder / "a", name)
        self.port = self.wires.port(A)
        own = identity.load(folder / "a" / A)
        assert own is not None
        self.own: Identity = own
        path = folder / "state.sqlite"
        self._path = path
        self.grid = LocalGrid(A, path=path, appliers=APPLIERS, schemas=(SCHEMA,), clock=self.clock)
        self._version = version
        self._neighbour: LocalGrid | None = None
        self.answer_through(self.grid)

    async def start(self) -> None:
        """Found the grid and listen."""
        await self.wires.start(self.port)
        sealed = authority.seal(self.own.secret, self.wires.ca.key_pem)
        ca = self.wires.ca.cert_pem.decode()
        first = {"grid": "grid-1", "name": self.name, "ca_cert_pem": ca, "ca_key_sealed": sealed}
        await self.grid.propose("grid.create", first, by=A)
        server = {"server": A, "name": "a", "grid_address": self.address, "web_address": "w:1", "version": "1"}
        await self.grid.propose("server.add", {**server, "fingerprint": "f"}, by=A)
        await self.grid.propose("server.up", {"server": A}, by=A)

    def answer_through(self, grid: Grid) -> None:
        """Let newcomers be answered by a desk that reaches the log through `grid`."""
        JoinDesk(
            self.port, grid, own=self.own, version=self._version, clock=self.clock,
            images_mib=lambda _: self.images_mib,
        )  # fmt: skip

    async def beside(self) -> str:
        """Start a second server `x` of this grid, which follows the log without a vote; return its address."""
        log = self.grid._log
        port = self.wires.port(X)
        own = identity.load(self.wires.folder / X)
        assert own is not None
        path = self._path.with_name("beside.sqlite")
        grid = LocalGrid(X, path=path, appliers=APPLIERS, schemas=(SCHEMA,), clock=self.clock, log=log)
        log.voteless.add(X)
        log.deliver()
        JoinDesk(port, grid, own=own, version=self._version, clock=self.clock)
        self._neighbour = grid
        await self.wires.start(port)
        address = self.wires.addresses[X]
        server = {"server": X, "name": "x", "grid_address": address, "web_address": "w:2", "version": "1"}
        await self.grid.propose("server.add", {**server, "fingerprint": "f"}, by=A)
        await self.grid.propose("server.up", {"server": X}, by=A)
        return address

    async def stop(self) -> None:
        """Stop listening."""
        await self.wires.stop()
        self.grid.close()
        if self._neighbour is not None:
            self._neighbour.close()

    @property
    def address(self) -> str:
        """`host:port` of the grid port."""
        return self.wires.addresses[A]

    async def invite(self) -> Invitation:
        """Make an invitation."""
        return await invite(self.grid, secret=self.own.secret, by="anna", clock=self.clock)

    async def phrase(self) -> str:
        """Return the phrase of a new invitation."""
        return (await self.invite()).phrase

    async def asked_and_cut_off(self, fresh: "Fresh") -> ServerId:
        """Let a newcomer be taken in and die before it has written its identity; return its id."""

        def die(step: Step) -> None:
            if step is Step.WRITE:
                raise Killed

        steps, fresh.steps = fresh.steps, _Dying(die)
        try:
            await fresh.join(self, await self.phrase())
        except Killed:
            fresh.steps = steps
        return next(one.id for one in self.rows() if one.name == fresh.newcomer.name)

    def rows(self) -> tuple[Server, ...]:
        """Return the servers table."""
        with self.grid.view() as db:
            return servers(db)

    def names(self) -> list[str]:
        """Return the names of the grid's servers."""
        return [server.name for server in self.rows()]

    def tries_left(self) -> int:
        """Return the tries of the newest invitation."""
        with self.grid.view() as db:
            return invitations(db)[0].tries_left

    def everything_stored(self) -> str:
        """Return the whole state as SQL text."""
        with self.grid.view() as db:
            return "\n".join(db.conn.iterdump())


@asynccontextmanager
async def opened(folder: Path, *, name: str = "office", version: str = "1") -> AsyncIterator[Office]:
    """Run such a grid inside."""
    office = Office(folder, name=name, version=version)
    await office.start()
    try:
        yield office
    finally:
        await office.stop()


class Fresh:
    """A machine that wants to join as `name`."""

    def __init__(self, folder: Path, name: str = "b", *, port: int = 0, **changed: Any) -> None:
        port = port or free_port()
        newcomer = Newcomer(name, f":{port}", "web.example:443", "1", ("127.0.0.1", port), disk_free_mib=100)
        self.data_dir = folder / name
        self.newcomer = replace(newcomer, **changed)
        self.clock = ManualClock()
        self.steps: Any = []

    async def join(self, office: Office, phrase: str, *, at: str = "") -> Joined:
        """Join the office's grid, or the one that answers `at` an address."""
        return await self.join_at(at or office.address, phrase)

    async def join_at(self, where: str, phrase: str) -> Joined:
        """Join the grid that answers at an address."""
        return await join_grid(
            self.data_dir, where, phrase, newcomer=self.newcomer, clock=self.clock, progress=self.steps.append
        )


class _Dying:
    """Stands for a list of steps; dies at one of them."""

    def __init__(self, append: Any) -> None:
        self.append = append
