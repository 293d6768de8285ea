"""1 GiB of golden image from one server to another, against `cp` of the file and a plain TCP stream on loopback.

The image is random: nothing in it is zero and nothing is compressed on the way.
The same version is copied again and again: its file is taken away from the second
server, which tells the grid so and fetches it anew; from that word to the word that
it is here again is the time. All three write to the same file system and end synced.
"""

import asyncio
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from appliance.demo.client import Client
from appliance.demo.cluster import Cluster
from tests.bench.harness import ROOT, Figure, Stopwatch, figure
from tests.bench.ports import WEB_PORT, quiet
from tests.lab.api import wait_for

GIB = 1 << 30
PIECE = 1 << 20
LOOK_S = 0.03

SENDER = """
import socket, sys
data = bytes(1 << 20)
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as line:
    for _ in range(1024):
        line.sendall(data)
"""


async def measure(folder: Path, runs: int) -> list[Figure]:
    """Return the figure of a copy beside both floors."""
    return await asyncio.to_thread(_measured, folder, runs)


def _measured(folder: Path, runs: int) -> list[Figure]:
    grid = Cluster(
        folder / "copy", names=("one", "two"), desktops=False, web_port=WEB_PORT + 400, grid_port=WEB_PORT + 500,
        say=quiet,
    )  # fmt: skip
    try:
        grid.start()
        version = _imported(grid, folder / "disk.raw")
        here = grid.server("one").data / "images" / f"{version}.raw"
        boss = grid.admin(grid.server("two"))
        ours: list[float] = []
        copied: list[float] = []
        streamed: list[float] = []
        for turn in range(runs + 1):
            took = (_copy(grid, boss, version, turn), _cp(here, folder / "floor.raw"), _stream())
            if turn:  # the first is to warm up
                for values, value in zip((ours, copied, streamed), took, strict=True):
                    values.append(value)
        return [
            figure("image copy, 1 GiB, server to server (floor: cp)", ours, unit="s", floor=copied),
            figure("image copy, 1 GiB (floor: plain TCP on loopback)", ours, unit="s", floor=streamed),
        ]
    finally:
        grid.stop()


def _imported(grid: Cluster, file: Path) -> str:
    chance = random.Random(1)  # noqa: S311 - the same bytes each time
    with file.open("wb") as disk:
        for _ in range(GIB // PIECE):
            disk.write(chance.randbytes(PIECE))
        disk.seek(510)
        disk.write(b"\x55\xaa")
    boss = grid.admin(grid.server("one"))
    offered = grid.server("one").data / "imports" / file.name
    offered.parent.mkdir(exist_ok=True)
    shutil.move(file, offered)
    boss.ask("POST", "/images", {"name": "bench", "file": file.name}, patience_s=300).ok("the import")
    offered.unlink()
    wait_for("both servers have it", lambda: len(_version(boss)["servers"]) == 2, timeout_s=180)
    return str(_version(boss)["id"])


def _copy(grid: Cluster, boss: Client, version: str, turn: int) -> float:
    two = grid.server("two")
    for kind in ("raw", "manifest"):
        (two.data / "images" / f"{version}.{kind}").unlink()
    # Any change of the state makes the server look at its files at once.
    boss.ask("PATCH", "/settings", {"session_hours": 12 + turn % 2}).ok("the nudge")
    wait_for("two misses it", lambda: two.id not in _version(boss)["servers"], timeout_s=30, every_s=LOOK_S)
    watch = Stopwatch()
    wait_for("two has it again", lambda: two.id in _version(boss)["servers"], timeout_s=120, every_s=LOOK_S)
    took = watch.ms() / 1000
    mine = two.data / "images" / f"{version}.raw"
    assert mine.stat().st_size == GIB
    if not turn:
        theirs = grid.server("one").data / "images" / f"{version}.raw"
        assert subprocess.run(["cmp", "-s", mine, theirs], check=False).returncode == 0
    return took


def _version(boss: Client) -> dict[str, Any]:
    found: dict[str, Any] = boss.items("images")[0]["versions"][-1]
    return found


def _cp(source: Path, target: Path) -> float:
    watch = Stopwatch()
    # Reflinks would share the blocks instead of copying them.
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    opened = os.open(target, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)
    took = watch.ms() / 1000
    target.unlink()
    return took


def _stream() -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        sender = subprocess.Popen([sys.executable, "-c", SENDER, str(port)], cwd=ROOT)
        line, _ = listener.accept()
    buffer = bytearray(PIECE)
    watch = Stopwatch()
    got = 0
    with line:
        while count := line.recv_into(buffer):
            got += count
    took = watch.ms() / 1000
    assert sender.wait(30) == 0
    assert got == GIB
    return took
