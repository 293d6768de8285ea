"""One server's log in a process of its own, to be killed: takes orders as JSON lines, answers as JSON lines.

`python -m tests.lab.raft_process FOLDER PORTS [founder]` with FOLDER holding an
identity, PORTS a JSON object of server → port. Orders: `{"put": n, "id": …}`,
`{"add": server}`, `{"dump": …}`, `{"status": …}`; each answer repeats its order.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import uvloop
from sqlite_utils import Database

from kmgr.clock import SystemClock
from kmgr.errors import KmgrError
from kmgr.grid import identity
from kmgr.grid.contacts import Contacts
from kmgr.grid.envelope import Applied, Command, Outcome
from kmgr.grid.fsm import Applier
from kmgr.grid.raft.grid import RaftGrid
from kmgr.grid.raft.library import Timing
from kmgr.grid.raftlink import RaftLink
from kmgr.grid.rows import rows
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.grid.wire import GridPort
from kmgr.ids import CommandId, ServerId
from tests.lab.raft_lab import QUICK

TIMING = replace(QUICK, compact_entries=150)
NOTES = "create table if not exists notes (at integer primary key, n integer not null, x text not null);"


def add_note(db: Database, command: Command) -> Outcome:
    """Append a number; a second one would be seen."""
    db.execute("insert into notes (n, x) values (?, ?)", [command.body["n"], "x" * 200])
    return Applied({"n": command.body["n"]})


class Child:
    """The server and its orders."""

    def __init__(
        self,
        folder: Path,
        ports: Mapping[ServerId, int],
        *,
        founder: bool,
        timing: Timing = TIMING,
        more: Mapping[str, Applier] = MappingProxyType({}),
    ) -> None:
        own = identity.load(folder)
        assert own is not None
        addresses = {server: f"127.0.0.1:{port}" for server, port in ports.items()}
        contacts = Contacts(addresses, {server: server for server in addresses}, frozenset())
        self.own_port = ports[own.server]
        self.port = GridPort(own, folder, contacts=lambda: contacts)
        self.link = RaftLink(self.port, clock=SystemClock())
        self.store = Store(folder / "state.sqlite", (SCHEMA, NOTES))
        self.grid = RaftGrid(
            own.server,
            folder=folder / "raft",
            store=self.store,
            appliers={"note.add": add_note, **more},
            link=self.link,
            clock=SystemClock(),
            founder=founder,
            on_fatal=lambda why: self.say({"fatal": why}),
            timing=timing,
        )

    def say(self, answer: Mapping[str, Any]) -> None:
        """Answer on standard output."""
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    async def run(self) -> None:
        """Serve orders until standard input ends."""
        await self.port.start("127.0.0.1", self.own_port)
        await self.grid.start()
        dialling = asyncio.create_task(self.link.run())
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        self.say({"ready": True})
        tasks = set()
        while line := await reader.readline():
            task = asyncio.create_task(self.obey(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        dialling.cancel()
        await asyncio.gather(dialling, return_exceptions=True)
        await self.port.stop()
        await self.grid.stop()

    async def obey(self, order: dict[str, Any]) -> None:
        """Do one order and answer."""
        try:
            self.say({**order, **await self.result(order)})
        except KmgrError as error:
            self.say({**order, "error": error.code})

    async def result(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do one order; return what its answer holds besides."""
        if "put" in order:
            body = {"n": order["put"]}
            await self.grid.propose("note.add", body, by="test", id=CommandId(order["id"]), timeout_s=5)
        elif "add" in order:
            await self.grid.add_voter(ServerId(order["add"]))
        elif "dump" in order:
            with self.grid.view() as db:
                return {"notes": [row["n"] for row in rows(db, "select n from notes order by at")]}
        status = self.grid.status()
        connected = sorted(self.link.connected())
        return {"leader": status.leader, "applied": status.applied, "majority": status.majority, "linked": connected}


if __name__ == "__main__":
    here, known, *more = sys.argv[1:]
    uvloop.run(Child(Path(here), json.loads(known), founder="founder" in more).run())
