"""Servers' logs in processes of their own, seen from the test: begin, ask, kill."""

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kmgr.ids import ServerId
from tests.lab.wires import Wires

ROOT = Path(__file__).parents[2]


class Process:
    """One server's process and the answers it owes; `module` says what it runs, with other `words` if given."""

    def __init__(
        self,
        folder: Path,
        ports: dict[ServerId, int],
        server: ServerId,
        *,
        founder: bool,
        module: str = "tests.lab.raft_process",
        words: Sequence[str] | None = None,
    ) -> None:
        self.server = server
        self.fatal: list[str] = []
        own = [str(folder / server), json.dumps(ports), *(["founder"] if founder else [])]
        self._args = ["-m", module, *(own if words is None else words)]
        self._home = folder / server
        self._log = folder / f"{server}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._number = 0

    @property
    def alive(self) -> bool:
        """Whether it was begun and not killed."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def begin(self) -> None:
        """Start it; return when its log is open."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *self._args, cwd=ROOT,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, limit=1 << 24,
            )  # fmt: skip
        assert self._process.stdout is not None
        assert json.loads(await asyncio.wait_for(self._process.stdout.readline(), 40)) == {"ready": True}
        self._listening = asyncio.create_task(self._listen(self._process.stdout))

    async def kill(self) -> None:
        """Kill it with -9."""
        process, self._process = self._process, None
        if process is not None and self._listening is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()
            await self._listening

    def lose_state(self) -> None:
        """Delete the state database, which is disposable, of a process that was killed."""
        for path in self._home.glob("state.sqlite*"):
            path.unlink()

    async def ask(self, order: dict[str, Any], *, timeout_s: float = 12.0) -> dict[str, Any]:
        """Return the answer; an empty one if the process died before it came."""
        if self._process is None or self._process.stdin is None:
            return {}
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(json.dumps({**order, "number": self._number}).encode() + b"\n")
        return await asyncio.wait_for(answer, timeout_s)

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            found = json.loads(line)
            if "fatal" in found:
                self.fatal.append(found["fatal"])
            elif found["number"] in self._answers:
                self._answers.pop(found["number"]).set_result(found)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result({})
        self._answers.clear()


def identities(folder: Path, servers: Sequence[ServerId]) -> dict[ServerId, int]:
    """Write an identity for each server into the folder; return a port for each that was free a moment ago."""
    wires = Wires(folder)
    for server in servers:
        wires.identity(server)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in servers]
    ports = {server: one.getsockname()[1] for server, one in zip(servers, sockets, strict=True)}
    for one in sockets:
        one.close()
    return ports


async def grow(processes: Sequence[Process]) -> None:
    """Begin all; the first one, which founds the grid, makes the others voters."""
    for process in processes:
        await process.begin()
    for process in processes[1:]:
        async with asyncio.timeout(20):
            while "linked" not in await processes[0].ask({"add": process.server}):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
