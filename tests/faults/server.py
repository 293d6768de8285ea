"""One server of the fault lab in a process of its own: the grid port, the log, heartbeats, the leader's duties.

`python -m tests.faults.server FOLDER SETUP` with SETUP a JSON object: address,
hints (server → address), founder, compact (entries), seed. It has troubles of its own that
can be ordered: a slow disk, a clock that jumps. Without desktops and pages it
starts within a second.
"""

import asyncio
import errno
import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import uvloop
from pysyncobj import syncobj

from kmgr import log
from kmgr.cli.outcome import exit_status
from kmgr.clock import SystemClock
from kmgr.errors import ConfigError, KmgrError
from kmgr.grid import identity
from kmgr.grid.commands import APPLIERS
from kmgr.grid.contacts import Contacts, contacts, split_address
from kmgr.grid.envelope import Outcome, Rejected
from kmgr.grid.leadership import Leadership, Voting, Watch
from kmgr.grid.queries import servers
from kmgr.grid.raft.grid import RaftGrid
from kmgr.grid.raft.library import Timing
from kmgr.grid.raftlink import RaftLink
from kmgr.grid.requests import GridRequests
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.grid.vitals import Board, Heart
from kmgr.grid.wire import GridPort
from kmgr.ids import CommandId, ServerId
from tests.faults import registers
from tests.faults.child import Order, obey, say

TIMING = Timing(election_min_s=0.5, election_max_s=1.0, beat_s=0.1, fallback_s=0.75, compact_most=0)
ROOM = {"cpus": 1, "memory_mib": 1, "memory_free_mib": 1, "disk_mib": 1, "disk_free_mib": 1}


Sync: TypeAlias = Callable[[Any], None]


class JumpingClock(SystemClock):
    """The machine's clock, until it jumps."""

    def __init__(self) -> None:
        self.wall_ms = 0
        self.ahead_s = 0.0
        machine = syncobj.monotonicTime
        syncobj.monotonicTime = lambda: machine() + self.ahead_s

    def now_ms(self) -> int:
        """Return the wall clock, which may be wrong by years."""
        return super().now_ms() + self.wall_ms

    def monotonic(self) -> float:
        """Return seconds, which may have been skipped."""
        return super().monotonic() + self.ahead_s


class SlowDisk:
    """Makes every sync take longer, or fail: the log's, snapshots', the identity's; not what SQLite does itself."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)  # noqa: S311 - an imitation of a disk
        self.longest_s = 0.0
        self.sick = False

    def install(self) -> None:
        """Stand between this process and its disk."""
        os.fsync = self._slow(os.fsync)  # type: ignore[assignment]
        os.fdatasync = self._slow(os.fdatasync)  # type: ignore[assignment]

    def _slow(self, sync: Sync) -> Sync:
        def slow(file: Any) -> None:
            if self.longest_s:
                time.sleep(self._dice.uniform(0.2, 1.0) * self.longest_s)
            if self.sick:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(file)

        return slow


class LabServer:
    """All parts, and the orders."""

    def __init__(self, folder: Path, setup: Mapping[str, Any]) -> None:
        own = identity.load(folder)
        assert own is not None
        self.address = setup["address"]
        self.hints = {ServerId(server): address for server, address in setup["hints"].items()}
        self.clock, self.disk = JumpingClock(), SlowDisk(setup["seed"])
        self.disk.install()
        self.store = Store(folder / "state.sqlite", (SCHEMA, registers.SCHEMA))
        self.known = contacts((), self.hints)
        self.port = GridPort(own, folder, contacts=self.contacts)
        self.link = RaftLink(self.port, clock=self.clock)
        self.requests = GridRequests(self.port, clock=self.clock)
        self.grid = RaftGrid(
            own.server,
            folder=folder / "raft",
            store=self.store,
            appliers={**APPLIERS, **registers.APPLIERS},
            link=self.link,
            clock=self.clock,
            founder=setup["founder"],
            on_fatal=end,
            timing=replace(TIMING, compact_entries=setup["compact"]),
        )
        self.board = Board()
        self.heart = Heart(
            self.grid, self.requests, board=self.board, contacts=self.contacts, clock=self.clock, measure=measure
        )
        self.leadership = Leadership(self.grid, clock=self.clock)
        self.leadership.duty("watch", Watch(self.grid, self.board, clock=self.clock).run)
        self.leadership.duty("voting", Voting(self.grid, self.grid, self.board, clock=self.clock).run)

    def contacts(self) -> Contacts:
        """Return whom this server knows."""
        return self.known

    async def run(self) -> None:
        """Start, serve, and stop when standard input ends."""
        await self.grid.start()
        await self.port.start(*split_address(self.address))
        loops = (self.link.run, self.heart.run, self.leadership.run, self._follow_table)
        tasks = [asyncio.create_task(loop()) for loop in loops]
        await obey(self.do)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.port.stop()
        await self.grid.stop()

    async def _follow_table(self) -> None:
        seen = -1
        while True:
            with self.store.view() as db:
                self.known = contacts(servers(db, removed=True), self.hints)
            self.port.refresh()
            seen = await self.grid.changed(seen, timeout_s=1)
            await asyncio.sleep(0.1)

    async def do(self, order: Order) -> Mapping[str, Any]:
        """Do one order."""
        try:
            return await self._do(order)
        except KmgrError as error:
            return {"error": error.code, "words": error.message}

    async def _do(self, order: Order) -> Mapping[str, Any]:
        match order["do"]:
            case "propose":
                outcome = await self.grid.propose(
                    order["type"], order["body"], by="lab", id=CommandId(order["id"]), timeout_s=order["timeout_s"]
                )
                return _told(outcome)
            case "read":
                await self.grid.barrier(order["timeout_s"])
                return self._value(order["key"])
            case "peek":
                return self._value(order["key"])
            case "dump":
                return self._dump()
            case "trouble":
                self.disk.longest_s = order.get("sync_s", self.disk.longest_s)
                self.disk.sick = order.get("sick", self.disk.sick)
                self.clock.wall_ms += order.get("wall_ms", 0)
                self.clock.ahead_s += order.get("ahead_s", 0.0)
                return {}
        return self._status()

    def _value(self, key: str) -> Mapping[str, Any]:
        with self.grid.view() as db:
            found, position = registers.value(db, key)
        return {"seen": found, "position": position}

    def _status(self) -> Mapping[str, Any]:
        status = self.grid.status()
        with self.grid.view() as db:
            known = {server.id: server.state.value for server in servers(db, removed=True)}
        return {
            "leader": status.leader,
            "term": status.term,
            "applied": status.applied,
            "majority": status.majority,
            "voters": list(status.voters),
            "servers": known,
            "problems": self.grid.problems(),
        }

    def _dump(self) -> Mapping[str, Any]:
        with self.grid.view() as db:
            applied = db.execute("select v from meta where k = 'applied'").fetchone()
            return {
                "applied": applied[0] if applied else 0,
                "digest": registers.digest(db),
                "held": registers.held(db),
            }


def _told(outcome: Outcome) -> Mapping[str, Any]:
    return {"rejected": outcome.detail} if isinstance(outcome, Rejected) else {"applied": True}


async def measure() -> Mapping[str, Any]:
    """Return vitals; nobody looks at them here."""
    return ROOM


def end(why: str) -> None:
    """Say why this server cannot go on, and end, as the daemon does."""
    say({"fatal": why})
    os._exit(70)


def main() -> None:
    """Run the server that the command line names."""
    log.set_up("info")
    try:
        uvloop.run(LabServer(Path(sys.argv[1]), json.loads(sys.argv[2])).run())
    except ConfigError as error:
        say({"refused": error.message})
        sys.exit(exit_status(error))
    except (OSError, sqlite3.Error) as error:
        # `kmgr run` says so in one line and is started again by systemd.
        say({"fatal": f"cannot start: {error}"})
        sys.exit(70)


if __name__ == "__main__":
    main()
