"""Grids, people, templates and desktops for tests of the users package: in memory, on a clock moved by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher

from kmgr.clock import ManualClock
from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.local import LocalGrid, LocalLog
from kmgr.ids import AccountName, ServerId
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.users.directory import AccountClosed, DirectoryUnreachable, Unknown, WrongPassword
from kmgr.users.model import Person, Role

RIGHT = "the right password"
# A hash carries how costly it is to verify; for tests as little as the library allows.
_quick = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)

SERVERS = tuple(ServerId(f"srv-{letter}") for letter in "abc")


class FakeDirectory:
    """People in a dictionary; `down` makes it unreachable, `asked` are the names it was asked for."""

    def __init__(self, source: str = "corp") -> None:
        self.source = source
        self.people: dict[str, tuple[str, Person]] = {}
        self.closed: dict[str, str] = {}
        self.down = False
        self.asked: list[str] = []

    def add(self, name: str, password: str, *, groups: Sequence[str] = (), role: Role = Role.USER) -> None:
        """Let somebody log in."""
        person = Person(AccountName(name), name.title(), tuple(groups), role, self.source)
        self.people[name] = (password, person)

    async def authenticate(self, name: str, password: str) -> Person:
        """Answer like a directory."""
        self.asked.append(name)
        if self.down:
            raise DirectoryUnreachable(f"The directory {self.source} cannot be asked.")
        found = self.people.get(name)
        if found is None:
            raise Unknown
        if not password or found[0] != password:
            raise WrongPassword
        if name in self.closed:
            raise AccountClosed(self.closed[name])
        return found[1]


class Office:
    """Three servers on one log, with a template `office` and as many ready desktops as a test makes."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.log = LocalLog()
        self.grids: list[LocalGrid] = []
        for server in SERVERS:
            grid = LocalGrid(
                server, path=folder / server, appliers=APPLIERS, schemas=SCHEMAS, clock=self.clock, log=self.log
            )
            self.grids.append(grid)
        self.grid = self.grids[0]
        self._made = 0

    async def open(self) -> None:
        """Fill in servers, a golden image and the template."""
        for server in SERVERS:
            await self.do("server.add", **added(server))
            await self.do("server.up", server=server)
        await self.do("image.create", image="img-1", name="debian", notes="")
        await self.do(
            "version.add", version="ver-1", image="img-1", notes="", server=SERVERS[0], size_bytes=1 << 20,
            used_bytes=4096, block_bytes=1 << 18, manifest_hash="a" * 64,
        )  # fmt: skip
        await self.template()

    def close(self) -> None:
        """Close the stores."""
        for grid in self.grids:
            grid.close()

    async def propose(self, type: str, **body: Any) -> Outcome:
        """Make a change and return its outcome."""
        return await self.grid.propose(type, body, by="root")

    async def do(self, type: str, **body: Any) -> Mapping[str, Any]:
        """Make a change that must succeed."""
        outcome = await self.propose(type, **body)
        assert isinstance(outcome, Applied), outcome
        return outcome.values

    async def template(self, name: str = "office", **changed: Any) -> str:
        """Make a template; its id is `tpl-<name>`."""
        shape = {"vcpus": 1, "memory_mib": 512, "standby": 2, "maximum": 5, "refresh": "on_logout", "notes": ""}
        body = {"template": f"tpl-{name}", "name": name, "image": "img-1", "version": "ver-1", **shape, **changed}
        await self.do("template.create", **body)
        return f"tpl-{name}"

    async def placed(self, template: str = "tpl-office", server: ServerId = SERVERS[0]) -> dict[str, Any]:
        """Place a desktop; returns what its server's reports carry."""
        self._made += 1
        desktop = f"dsk-{self._made}"
        await self.do("desktop.place", desktop=desktop, template=template, version="ver-1", server=server)
        return {"desktop": desktop, "generation": 1, "server": server}

    async def standby(self, template: str = "tpl-office", server: ServerId = SERVERS[0], *, took_s: int = 0) -> str:
        """Make a desktop that is ready, after so many seconds."""
        report = await self.placed(template, server)
        await self.do("desktop.building", **report)
        await self.clock.advance(took_s)
        await self.do("desktop.ready", **report)
        return str(report["desktop"])

    async def account(self, name: str, *, password: str = RIGHT, **changed: Any) -> None:
        """Make a built-in account."""
        plain = {"display_name": name.title(), "role": "user", "groups": []}
        body = {"name": name, **plain, "password_hash": _quick.hash(password), **changed}
        await self.do("account.create", **body)

    async def give(self, subject: str, kind: str = "user", template: str = "tpl-office") -> None:
        """Assign a template."""
        await self.do("assignment.add", template=template, kind=kind, subject=subject)


def added(server: ServerId) -> dict[str, str]:
    """Return the body of `server.add`."""
    addresses = {"grid_address": f"{server}:1", "web_address": f"{server}:2"}
    return {"server": server, "name": server[4:], **addresses, "version": "0.1.0", "fingerprint": "f"}


def a_person(name: str = "anna", *groups: str, role: Role = Role.USER) -> Person:
    """Return somebody of the built-in directory."""
    return Person(AccountName(name), name.title(), groups, role, "built-in")
