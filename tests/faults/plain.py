"""One server of bare pysyncobj, its defaults and its journal, under the same orders as kmgr's log.

`python -m tests.faults.plain FOLDER SETUP`, as `tests.faults.server`. Nothing
of kmgr is used. Its transport is pickle without a password, which in the lab's
own namespaces harms nobody.
"""

import asyncio
import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated

from tests.faults.child import Order, obey

NOT_SENT = frozenset({FAIL_REASON.QUEUE_FULL, FAIL_REASON.MISSING_LEADER, FAIL_REASON.NOT_LEADER})


class Notes(SyncObj):  # type: ignore[misc]
    """Every change that was made, in order."""

    @replicated  # type: ignore[untyped-decorator]
    def put(self, name: str, key: str) -> str:
        """Give a key a value."""
        self._note(name, key)
        return "applied"

    @replicated  # type: ignore[untyped-decorator]
    def swap(self, name: str, key: str, expected: str) -> str:
        """Do so if it has the expected value."""
        if self.value(key)[0] != expected:
            return "rejected"
        self._note(name, key)
        return "applied"

    def value(self, key: str) -> tuple[str | None, int]:
        """Return a key's value and which change made it."""
        self._all()
        return self.values.get(key, (None, 0))

    def held(self) -> list[tuple[str, str]]:
        """Return every change."""
        return list(self._all())

    def _note(self, name: str, key: str) -> None:
        self._all().append((name, key))
        self.values[key] = (name, len(self.notes))

    def _all(self) -> list[tuple[str, str]]:
        # Ticks begin inside the library's constructor, and only what is set after it is in its snapshots.
        if "notes" not in self.__dict__:
            self.notes: list[tuple[str, str]] = []
            self.values: dict[str, tuple[str, int]] = {}
        return self.notes


class PlainServer:
    """The object and the orders."""

    def __init__(self, folder: Path, setup: Mapping[str, Any]) -> None:
        files = {"journalFile": str(folder / "journal"), "fullDumpFile": str(folder / "dump")}
        self.notes = Notes(
            setup["address"],
            sorted(setup["hints"].values()),
            SyncObjConf(**files, logCompactionMinEntries=setup["compact"]),
        )
        self.names = {address: server for server, address in setup["hints"].items()}
        self.names[setup["address"]] = setup["server"]

    async def do(self, order: Order) -> Mapping[str, Any]:
        """Do one order."""
        match order["do"]:
            case "propose":
                return await self._propose(order)
            case "peek":
                seen, position = self.notes.value(order["key"])
                return {"seen": seen, "position": position}
            case "dump":
                held = self.notes.held()
                hashed = hashlib.sha256(json.dumps(held).encode()).hexdigest()
                return {"applied": self.notes.raftLastApplied, "digest": hashed, "held": held}
            case "status":
                leader = self.notes._getLeader()
                named = None if leader is None else self.names.get(leader.id)
                return {"leader": named, "applied": self.notes.raftLastApplied, "majority": self.notes.isReady()}
        return {}

    async def _propose(self, order: Order) -> Mapping[str, Any]:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[tuple[str | None, int]] = loop.create_future()

        def answer(result: str | None, reason: int) -> None:
            loop.call_soon_threadsafe(_settle, answered, (result, reason))

        name, body = order["id"], order["body"]
        if order["type"] == "note.put":
            self.notes.put(name, body["key"], callback=answer)
        else:
            self.notes.swap(name, body["key"], body["expected"], callback=answer)
        try:
            result, reason = await asyncio.wait_for(answered, order["timeout_s"])
        except TimeoutError:
            return {"error": "outcome_unknown"}
        if reason == FAIL_REASON.SUCCESS:
            return {result or "": True}
        return {"error": "not_sent" if reason in NOT_SENT else "outcome_unknown"}


def _settle(answered: "asyncio.Future[tuple[str | None, int]]", found: tuple[str | None, int]) -> None:
    if not answered.done():
        answered.set_result(found)


async def main() -> None:
    """Run the server that the command line names."""
    server = PlainServer(Path(sys.argv[1]), json.loads(sys.argv[2]))
    await obey(server.do)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main())
