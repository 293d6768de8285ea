"""How long a change takes until it is agreed on and applied where it was asked for: at the leader, at a follower."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.demo.cluster import Cluster
from appliance.demo.server import Server
from tests.bench.harness import ROOT, Figure, figure
from tests.bench.ports import WEB_PORT, quiet
from tests.lab.api import wait_for

# One commit is short and varies much: more of them than of anything else.
TIMES = 20


async def measure(folder: Path, runs: int) -> list[Figure]:
    """Return the commit latencies of a grid of three servers."""
    return await asyncio.to_thread(_measured, folder, runs)


class Voter:
    """A child that is a whole server and does what it is told."""

    def __init__(self, server: Server) -> None:
        self._log = (server.folder / "voter.log").open("wb")
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.voter", str(server.data)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=ROOT, text=True,
        )  # fmt: skip

    def ask(self, order: str) -> Mapping[str, Any]:
        """Give an order and return the answer."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(order + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        assert line, f"a server ended: see {self._log.name}"
        answer: Mapping[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Close its input and wait for it."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.close()


def _measured(folder: Path, runs: int) -> list[Figure]:
    grid = Cluster(folder / "commit", desktops=False, web_port=WEB_PORT, grid_port=WEB_PORT + 100, say=quiet)
    voters: list[Voter] = []
    try:
        grid.start()
        grid.stop()
        voters = [Voter(server) for server in grid.servers]
        leader = wait_for("there is a leader", lambda: _leader(voters), timeout_s=60)
        follower = next(voter for voter in voters if voter is not leader)
        found = []
        for where, voter in (("leader", leader), ("follower", follower)):
            told = voter.ask(f"measure {runs * TIMES}")
            found.append(
                figure(f"commit of a command, at the {where}", told["commit"], unit="ms", floor=told["append"])
            )
        assert _leader(voters) is leader, "the leader changed meanwhile: measure again"
        return found
    finally:
        for voter in voters:
            voter.end()
        grid.stop()


def _leader(voters: list[Voter]) -> Voter | None:
    told = [voter.ask("status") for voter in voters]
    if not all(answer["majority"] for answer in told):
        return None
    return next((voter for voter, answer in zip(voters, told, strict=True) if answer["leader"]), None)
