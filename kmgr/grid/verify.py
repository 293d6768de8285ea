"""Do all servers hold the same state? Each computes the digest at one log entry; one of them compares.

A digest says something only beside others of the same entry. Whoever asks first
makes sure that it is current, then names its own entry; a server answers when
it has applied that one. If changes went on meanwhile the answers are of later
entries, and all are asked again for the latest of these.
Runs in the daemon's loop.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kmgr.errors import KmgrError, Unavailable
from kmgr.grid.digest import digest
from kmgr.grid.model import Server
from kmgr.grid.port import Grid, Requests
from kmgr.grid.queries import servers
from kmgr.ids import ServerId

OPERATION = "digest"
TRIES = 30
PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Verified:
    """One server's answer: the log entry and the digest of its state there, or why there is none."""

    server: ServerId
    name: str
    applied: int = 0
    digest: str = ""
    problem: str = ""


def same(answers: tuple[Verified, ...]) -> bool:
    """Whether all that answered hold the same state."""
    return len({(one.applied, one.digest) for one in answers if not one.problem}) <= 1


class Verifier:
    """Answers for this server, and asks all others."""

    def __init__(self, grid: Grid, requests: Requests) -> None:
        self._grid = grid
        self._requests = requests
        requests.serve(OPERATION, self._answer)

    async def verify(self) -> tuple[Verified, ...]:
        """Return every member's digest at one entry; raise `Unavailable` if changes never pause long enough."""
        await self._grid.barrier()
        with self._grid.view() as db:
            members = servers(db)
        target = self._grid.status().applied
        for _ in range(TRIES):
            answers = tuple(await asyncio.gather(*(self._ask(member, target) for member in members)))
            reached = {one.applied for one in answers if not one.problem}
            if len(reached) <= 1:
                return answers
            target = max(reached)
        raise Unavailable("the grid changes so often that its servers could not be compared: try again in a while")

    async def _ask(self, member: Server, target: int) -> Verified:
        try:
            told = await self._requests.call(member.id, OPERATION, {"applied": target}, timeout_s=PATIENCE_S + 10)
            return Verified(member.id, member.name, int(told["applied"]), str(told["digest"]))
        except KmgrError as error:
            return Verified(member.id, member.name, problem=error.message)

    async def _answer(self, _: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        target = int(body["applied"])
        if await self._grid.changed(target - 1, timeout_s=PATIENCE_S) < target:
            raise Unavailable(f"server {self._grid.server} has not applied entry {target} yet: it does not keep up")
        applied, found = await asyncio.to_thread(self._digest)
        return {"applied": applied, "digest": found}

    def _digest(self) -> tuple[int, str]:
        with self._grid.view() as db:
            return digest(db)
