"""A server's desktops in memory: the real commands and agent, a fake hypervisor, a clock moved by hand."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kmgr.clock import Clock, ManualClock, until_idle
from kmgr.grid import commands as grid_commands
from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.local import LocalGrid, LocalLog
from kmgr.grid.schema import SCHEMA as GRID_SCHEMA
from kmgr.ids import DesktopId, ServerId, VersionId
from kmgr.provision import (
    ask_commands,
    attendance_commands,
    capture_commands,
    copy_commands,
    drain_commands,
    move_commands,
    put_back_commands,
    tenure_commands,
)
from kmgr.provision import commands as provision_commands
from kmgr.provision import version_commands as provision_version_commands
from kmgr.provision.agent import ProvisionAgent, Shape
from kmgr.provision.fake import FakeHypervisor
from kmgr.provision.firmware import Fittings
from kmgr.provision.happening import Events
from kmgr.provision.model import Desktop
from kmgr.provision.queries import desktop, desktops
from kmgr.provision.schema import SCHEMA as PROVISION_SCHEMA
from kmgr.provision.storm_watch import StormWatch
from kmgr.provision.timely import at_once
from kmgr.replica import commands as replica_commands
from kmgr.replica.schema import SCHEMA as REPLICA_SCHEMA
from kmgr.templates import commands as template_commands
from kmgr.templates import install_commands
from kmgr.templates import version_commands as template_version_commands
from kmgr.templates.schema import SCHEMA as TEMPLATES_SCHEMA

A, B = ServerId("srv-a"), ServerId("srv-b")
SCHEMAS = (GRID_SCHEMA, REPLICA_SCHEMA, TEMPLATES_SCHEMA, PROVISION_SCHEMA)
APPLIERS = {
    **grid_commands.APPLIERS,
    **replica_commands.APPLIERS,
    **template_commands.APPLIERS,
    **template_version_commands.APPLIERS,
    **install_commands.APPLIERS,
    **provision_version_commands.APPLIERS,
    **provision_commands.APPLIERS,
    **ask_commands.APPLIERS,
    **capture_commands.APPLIERS,
    **copy_commands.APPLIERS,
    **move_commands.APPLIERS,
    **put_back_commands.APPLIERS,
    **drain_commands.APPLIERS,
    **attendance_commands.APPLIERS,
    **tenure_commands.APPLIERS,
}


class Office:
    """A grid of two servers with one image and the template `office`; commands are done at once."""

    def __init__(self, folder: Path, *, real_clock: Clock | None = None) -> None:
        self.clock = ManualClock()
        self.grid_clock = real_clock or self.clock
        self.log = LocalLog()
        self.folder = folder
        for part in ("desktops", "run", "images"):
            (folder / part).mkdir(exist_ok=True)
        self.grid = self.member(A)

    def member(self, server: ServerId) -> LocalGrid:
        """Return one server's view of the log."""
        return LocalGrid(
            server,
            path=self.folder / f"{server}.sqlite",
            appliers=APPLIERS,
            schemas=SCHEMAS,
            clock=self.grid_clock,
            log=self.log,
        )

    async def do(self, type: str, **body: Any) -> Outcome:
        """Propose one command as the administrator."""
        return await self.grid.propose(type, body, by="anna")

    async def found(self, **changed: Any) -> None:
        """Make servers a and b, image img with version ver-1, and the template tpl."""
        for server in (A, B):
            plain = {"name": server[4:], "grid_address": f"{server}:1", "web_address": f"{server}:2"}
            done(await self.do("server.add", server=server, version="1", fingerprint="f", **plain))
            done(await self.do("server.up", server=server))
        done(await self.do("image.create", image="img", name="debian", notes=""))
        await self.version("ver-1")
        template = {"template": "tpl", "name": "office", "notes": "", "image": "img", "version": "ver-1"}
        shape = {"vcpus": 1, "memory_mib": 64, "standby": 2, "maximum": 9, "refresh": "on_logout"}
        done(await self.do("template.create", **{**template, **shape, **changed}))

    async def version(self, version: str) -> None:
        """Add a version to the image; its raw file lies here."""
        sizes = {"size_bytes": 1 << 20, "used_bytes": 0, "block_bytes": 1 << 16}
        fields = {
            "version": version,
            "image": "img",
            "notes": "",
            "manifest_hash": hashlib.sha256(version.encode()).hexdigest(),
        }
        done(await self.do("version.add", server=A, **sizes, **fields))
        self.raw(version).write_bytes(bytes(1 << 20))

    def raw(self, version: str) -> Path:
        """Return where a version's raw file lies."""
        return self.folder / "images" / f"{version}.raw"

    async def place(self, desktop: str, *, server: ServerId = A, version: str = "ver-1") -> Outcome:
        """Place a desktop of the template."""
        return await self.do("desktop.place", desktop=desktop, template="tpl", version=version, server=server)

    async def report(self, what: str, desktop: str, generation: int = 1, **more: Any) -> Outcome:
        """Report as server a does."""
        return await self.do(f"desktop.{what}", desktop=desktop, generation=generation, server=A, **more)

    async def standby(self, name: str, *, server: ServerId = A) -> None:
        """Have a desktop that is ready, without anybody having built it."""
        done(await self.place(name, server=server))
        for report in ("building", "ready"):
            done(await self.do(f"desktop.{report}", desktop=name, generation=1, server=server))
        await self.clock.advance(1, settle=1)

    def desktop(self, name: str) -> Desktop | None:
        """Return a desktop's record."""
        with self.grid.view() as db:
            return desktop(db, DesktopId(name))

    def one(self, name: str) -> Desktop:
        """Return a desktop's record, which must be there."""
        found = self.desktop(name)
        assert found is not None, f"{name} is gone"
        return found

    def states(self) -> dict[str, str]:
        """Return the state of every desktop."""
        with self.grid.view() as db:
            return {d.id: str(d.state) for d in desktops(db)}


class Desk(Office):
    """Server a of that office with its agent; `mode` is of instant clones, as in `kmgr.toml`."""

    def __init__(
        self, folder: Path, *, max_builds: int = 1, mode: str = "never", events: Events | None = None
    ) -> None:
        super().__init__(folder)
        self.events, self.mode = events, mode
        self.hypervisor = FakeHypervisor(self.clock, boot_s=10)
        self.max_builds = max_builds
        self.watch: StormWatch | None = None
        self.fittings = Fittings()
        self.look: Callable[[], Fittings] = lambda: self.fittings
        self.agent = self.restarted()

    def restarted(self) -> ProvisionAgent:
        """Return a new agent, as after a restart of the daemon."""
        shape = Shape(
            data_dir=self.folder,
            grid_id="grid-1",
            backing=self.backing,
            display=lambda desktop: self.folder / "run" / f"{desktop}.vnc",
            max_builds=self.max_builds,
            instant_clones=self.mode,
            fittings=self.look,
        )
        self.agent = ProvisionAgent(
            self.grid,
            self.hypervisor,
            clock=self.clock,
            shape=shape,
            blocking=at_once,
            events=self.events,
            storm=self.watch,
        )
        return self.agent

    def backing(self, version: VersionId) -> Path | None:
        """Return a version's raw file, if it is here."""
        path = self.raw(version)
        return path if path.exists() else None

    def overlay(self, name: str) -> Path:
        """Return where a desktop's own disk lies."""
        return self.folder / "desktops" / f"{name}.qcow2"

    async def round(self) -> tuple[Any, ...]:
        """Do one round and let what it began go on until it waits for time."""
        begun = await self.agent.run_once()
        await settle()
        return begun

    async def live(self, seconds: float) -> None:
        """Let rounds pass, two seconds apart, as the agent's loop does."""
        for _ in range(round(seconds / 2)):
            await self.round()
            await self.clock.advance(2)
        await self.round()


async def settle(turns: int = 30) -> None:
    """Let everything that is ready to run do so."""
    await until_idle(turns)


def done(outcome: Outcome) -> Mapping[str, Any]:
    """Return what an applied command told; fail on a rejected one."""
    assert isinstance(outcome, Applied), outcome
    return outcome.values
