"""A grid's state in memory, changed by the real appliers: for tests of what is decided on it."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

from sqlite_utils import Database

from kmgr.balancer.model import Action, Forget, Place, Relocate, Retire, View
from kmgr.balancer.queries import look
from kmgr.grid.envelope import Applied, Command, Outcome
from kmgr.grid.model import Vitals
from kmgr.ids import CommandId, DesktopId, ServerId, TemplateId, VersionId
from kmgr.provision.queries import asks
from kmgr.registry import APPLIERS, SCHEMAS

AMPLE = {
    "cpus": 8,
    "memory_mib": 65_536,
    "memory_free_mib": 60_000,
    "disk_mib": 500_000,
    "disk_free_mib": 400_000,
    "can_run_desktops": True,
}


@cache
def _empty() -> bytes:
    """Return all tables without a row: making them takes longer than a whole example."""
    db = Database(memory=True)
    for schema in SCHEMAS:
        db.executescript(schema)
    return db.conn.serialize()


class State:
    """The tables of all packages and the last heartbeats. Ids are names: `srv-a`, `tpl-win`, `ver-1`, `dsk-1`."""

    def __init__(self) -> None:
        self.db = Database(memory=True)
        self.db.conn.isolation_level = None
        self.db.conn.deserialize(_empty())
        self.vitals: dict[ServerId, Vitals] = {}
        self.at = 1_000
        self._next = 0

    def do(self, type: str, **body: Any) -> Outcome:
        """Apply one command, undoing a rejected one as the state machine does."""
        self.at += 1
        self.db.conn.execute("savepoint entry")
        outcome = APPLIERS[type](self.db, Command(type, CommandId(f"cmd-{self.at}"), self.at, "test", body))
        if not isinstance(outcome, Applied):
            self.db.conn.execute("rollback to entry")
        self.db.conn.execute("release entry")
        return outcome

    def server(self, name: str, state: str = "up", **vitals: Any) -> ServerId:
        """Add a server that is heard from; `vitals` differ from ample ones."""
        server = ServerId(f"srv-{name}")
        self.db.execute(
            "insert into servers (id, name, grid_address, web_address, state, version, fingerprint, joined_at,"
            " changed_at, draining) values (?, ?, ?, '', ?, '', '', 0, 0, 0)",
            [server, name, server, state],
        )
        self.hear(server, **vitals)
        return server

    def witness(self, name: str, state: str = "up") -> ServerId:
        """Add a witness that is heard from."""
        server = self.server(name, state, can_run_desktops=False)
        self.db.execute("update servers set role = 'witness' where id = ?", [server])
        return server

    def hear(self, server: ServerId, **vitals: Any) -> None:
        """Note a heartbeat with ample room, but for what is given."""
        self.vitals[server] = Vitals(server, heard_at=0.0, **{**AMPLE, **vitals})

    def silence(self, server: ServerId) -> None:
        """Forget what a server said last."""
        self.vitals.pop(server, None)

    def become(self, server: ServerId, state: str) -> None:
        """Set a server's state directly."""
        self.db.execute(
            "update servers set state = ?, draining = ? where id = ?", [state, state == "draining", server]
        )

    def version(self, id: str, holders: Iterable[ServerId]) -> VersionId:
        """Add a ready version of the one golden image, held by some servers."""
        number = int(id.rpartition("-")[2])
        self.db.execute(
            "insert into versions (id, image, number, size_bytes, used_bytes, block_bytes, manifest_hash, state,"
            " notes, created_at, created_by) values (?, 'img-1', ?, 1, 1, 1, '', 'ready', '', ?, '')",
            [id, number, number],
        )
        for server in holders:
            self.hold(id, server)
        return VersionId(id)

    def hold(self, version: str, server: ServerId) -> None:
        """Let a server hold a version."""
        self.db.execute("insert or ignore into holdings (version, server, at) values (?, ?, 0)", [version, server])

    def template(self, name: str, version: str = "ver-1", **fields: Any) -> TemplateId:
        """Add a template; two stand by, ten are the most, if nothing else is given."""
        values = {
            "notes": "",
            "image": "img-1",
            "version": version,
            "vcpus": 1,
            "memory_mib": 1024,
            "standby": 2,
            "maximum": 10,
            "refresh": "on_logout",
            "enabled": 1,
            "broken_cause": "",
            "next_number": 1000,
            "created_at": 0,
            "changed_at": 0,
            **fields,
        }
        self.db.table("templates").insert({"id": f"tpl-{name}", "name": name, **values})
        return TemplateId(f"tpl-{name}")

    def desktop(
        self,
        template: str,
        server: ServerId,
        state: str = "ready",
        *,
        version: str = "ver-1",
        user: str = "anna",
        memory_mib: int = 1024,
    ) -> DesktopId:
        """Add a desktop in a state."""
        self._next += 1
        self.at += 1
        made = DesktopId(f"dsk-{self._next:04d}")
        self.db.table("desktops").insert(
            {
                "id": made,
                "name": made[4:],
                "template": template,
                "version": version,
                "server": server,
                "state": state,
                "generation": 1,
                "vcpus": 1,
                "memory_mib": memory_mib,
                "user": user if state == "in_use" else None,
                "claimed_at": None,
                "step": "",
                "cause": "",
                "created_at": self.at,
                "changed_at": self.at,
                "ready_at": self.at if state in ("ready", "in_use") else None,
            }
        )
        return made

    def asked_at(self, user: str) -> int:
        """Return when somebody said last that they wait."""
        return next(ask.at for ask in asks(self.db) if ask.user == user)

    def view(self) -> View:
        """Read it as the balancer does."""
        return look(self.db, self.vitals, 0.0)

    def states(self, template: str) -> list[str]:
        """Return the states of a template's desktops, sorted."""
        return sorted(d.state.value for d in self.view().desktops if d.template == template)

    def carry_out(self, actions: Iterable[Action]) -> list[Outcome]:
        """Propose a plan's changes with all that the agent adds."""
        states = {server.id: server.state for server in self.view().servers}
        outcomes = []
        for action in actions:
            match action:
                case Forget(desktop):
                    outcomes.append(self.do("desktop.forget", desktop=desktop))
                case Retire(desktop, why):
                    believed = {
                        "generation": desktop.generation,
                        "state": desktop.state,
                        "server_state": states[desktop.server],
                    }
                    outcomes.append(self.do("desktop.retire", desktop=desktop.id, why=why, **believed))
                case Relocate(desktop, target, why):
                    where = {"server": desktop.server, "target": target, "why": why}
                    body = {"desktop": desktop.id, "generation": desktop.generation, **where}
                    outcomes.append(self.do("desktop.move", **body))
                case Place(template, version, server):
                    self._next += 1
                    body = {"template": template, "version": version, "server": server}
                    outcomes.append(self.do("desktop.place", desktop=f"dsk-{self._next:04d}", **body))
        return outcomes

    def make_everything(self) -> None:
        """Let every server that can do what its agent would: remove retired desktops, make the others ready."""
        for desktop in self.view().desktops:
            vitals = self.vitals.get(desktop.server)
            if vitals is None or not vitals.can_run_desktops:
                continue
            report = {"desktop": desktop.id, "generation": desktop.generation, "server": desktop.server}
            if desktop.moving_to is not None:
                self.do("desktop.moved", **report, target=desktop.moving_to)
            match desktop.state:
                case "retired":
                    self.do("desktop.removed", **report)
                case "placed":
                    self.do("desktop.building", **report)
                    self.do("desktop.ready", **report)
                case "building":
                    self.do("desktop.ready", **report)
                case _:
                    continue


def shuffled(view: View, chance: Any) -> View:
    """Return the same view with its parts in another order."""
    return replace(
        view,
        servers=tuple(chance.sample(view.servers, len(view.servers))),
        templates=tuple(chance.sample(view.templates, len(view.templates))),
        desktops=tuple(chance.sample(view.desktops, len(view.desktops))),
        holders=dict(reversed([*view.holders.items()])),
        vitals=dict(reversed([*view.vitals.items()])),
    )
