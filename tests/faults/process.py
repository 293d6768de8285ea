"""A server's process as the lab sees it: begin, ask, pause, kill; and what it said when it ended by itself."""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_S = 40.0


class Process:
    """One process; a new one is made for every life of a server."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._number = 0
        # Why it ended by itself: `refused` to start, `fatal` while running; `crashed` has no words.
        self.ended: dict[str, str] = {}
        self.ended_at = 0.0
        self._killed = False

    @property
    def alive(self) -> bool:
        """Whether it runs (or is paused)."""
        return self._process is not None and self._process.returncode is None and not self._listening_ended

    @property
    def _listening_ended(self) -> bool:
        return self._listening is None or self._listening.done()

    async def begin(self) -> bool:
        """Start; True when it is ready, False if it ended before (`ended` says why)."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, cwd=ROOT, limit=1 << 26,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        ready = asyncio.get_running_loop().create_future()
        self._listening = asyncio.create_task(self._listen(ready))
        async with asyncio.timeout(START_S):
            return bool(await ready)

    def pause(self) -> None:
        """Stop it as a hypervisor or a sick disk would."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Kill it with -9."""
        self._killed = True
        self._signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()
        if self._listening is not None:
            await self._listening

    async def ask(self, order: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Return the answer; an empty one if the process died or did not answer in time."""
        if not self.alive or self._process is None or self._process.stdin is None:
            return {}
        self._number += 1
        number = self._number
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(json.dumps({**order, "number": number}).encode() + b"\n")
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            return {}
        finally:
            self._answers.pop(number, None)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _listen(self, ready: "asyncio.Future[bool]") -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            found = json.loads(line)
            if "ready" in found:
                ready.set_result(True)
            elif "number" not in found:
                self.ended, self.ended_at = found, time.monotonic()
            elif (answer := self._answers.get(found["number"])) is not None and not answer.done():
                answer.set_result(found)
        status = await self._process.wait()
        if not self.ended and not self._killed and status:
            self.ended, self.ended_at = {"crashed": f"exit status {status}, see {self._log}"}, time.monotonic()
        if not ready.done():
            ready.set_result(False)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result({})


def python(module: str, *words: str) -> list[str]:
    """Return the command that runs one of our modules."""
    return [sys.executable, "-m", module, *words]
