"""Servers with kmgr's own engine, one process each on the links of the lab, and what a copy to all of them took."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

from kmgr.ids import ServerId, VersionId
from kmgr.replica import manifest as m
from kmgr.replica.images import Images, scan
from tests.bench.harness import ROOT
from tests.lab.links import Links
from tests.lab.wires import Wires

PORT = 8440
PATIENCE_S = 600.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Taken:
    """What one distribution took: seconds of each receiver, and what all processes (`cpu`: each of them) used."""

    seconds: tuple[float, ...]
    cpu_s: float
    memory: tuple[int, ...] = ()
    sent: tuple[int, ...] = ()
    received: tuple[int, ...] = ()
    busy: float = 0.0
    notes: tuple[str, ...] = ()
    cpu: tuple[float, ...] = ()

    @property
    def last(self) -> float:
        """When the last receiver had all of it."""
        return max(self.seconds)


class Busy:
    """How much of the machine was used, by anybody, since it was made."""

    def __init__(self) -> None:
        self._before = self._times()

    def cores(self) -> tuple[float, float]:
        """Return the processor seconds used by anybody, and those there were."""
        used, all_of_it = self._times()
        return used - self._before[0], all_of_it - self._before[1]

    def others(self, own_s: float) -> float:
        """Return the share of the machine that somebody else used."""
        used, all_of_it = self.cores()
        return max(0.0, used - own_s) / max(all_of_it, 0.01)

    def _times(self) -> tuple[float, float]:
        ticks = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        second = os.sysconf("SC_CLK_TCK")
        return (sum(ticks) - ticks[3] - ticks[4]) / second, sum(ticks) / second


class Process:
    """One server's process."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )
        self._answers: Queue[dict[str, Any]] = Queue()
        self._done: Queue[dict[str, Any]] = Queue()
        Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's number: it was started by exec, not by a shell that would be in between."""
        return self._process.pid

    def order(self, **order: Any) -> dict[str, Any]:
        """Give an order and return the answer."""
        self.tell(json.dumps(order))
        return self.answer()

    def tell(self, line: str) -> None:
        """Write a line to its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the next answer."""
        found = self.next()
        assert "error" not in found, found
        return found

    def next(self) -> dict[str, Any]:
        """Return the next answer, even if it is that there is none."""
        return self._answers.get(timeout=60)

    def done(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Return how the copy ended, once it did."""
        return self._done.get(timeout=timeout_s)

    def kill(self) -> None:
        """Kill it with -9, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                found = json.loads(line)
                (self._done if "done" in found else self._answers).put(found)
        except ValueError:  # closed while it was read
            pass
        self._answers.put({"error": "it ended"})
        self._done.put({"done": "it ended", "problems": ["it ended"]})


@dataclass(slots=True)
class ImageGrid:
    """Servers on `links`: place 0 is the source, the others receive. Data lies in `folder`."""

    links: Links
    folder: Path
    commands: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    processes: dict[int, Process] = field(default_factory=dict)
    servers: list[ServerId] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Sign the servers in."""
        wires = Wires(self.folder, "bench")
        self.servers = [ServerId(f"srv-{place:02}") for place in range(self.links.size)]
        for server in self.servers:
            wires.identity(server)
            about = {
                "name": server,
                "grid_address": f"{server}:1",
                "web_address": "",
                "version": "",
                "fingerprint": "",
            }
            self.commands.append(("server.add", {"server": server, **about}))
        self.commands.append(("image.create", {"image": "img-1", "name": "bench", "notes": ""}))

    def images(self, place: int) -> Images:
        """Return the folder of images of a place."""
        return Images(self.folder / self.servers[place])

    def publish(self, version: VersionId, file: Path) -> m.Manifest:
        """Make a file (which is taken away) a version on the source."""
        manifest = scan(file, on_bytes=lambda _: None, stop=lambda: False)
        data = m.encode(manifest)
        self.images(0).adopt(version, file, data)
        numbers = {
            "size_bytes": manifest.size_bytes,
            "used_bytes": manifest.used_bytes,
            "block_bytes": manifest.block_bytes,
        }
        about = {"version": version, "image": "img-1", "manifest_hash": m.manifest_hash(data), "notes": ""}
        self.commands.append(("version.add", {**about, **numbers, "server": self.servers[0]}))
        return manifest

    def begin(self, place: int) -> None:
        """Start the process of a place; `ready` waits until it serves."""
        spec = self.folder / "spec.json"
        about = {
            "servers": self.servers,
            "folders": [str(self.folder / server) for server in self.servers],
            "addresses": [f"{self.links.address(place)}:{PORT}" for place in range(self.links.size)],
            "commands": self.commands,
        }
        fresh = spec.with_suffix(".new")
        fresh.write_text(json.dumps(about))
        fresh.replace(spec)  # whoever was begun before may just be reading it
        module = [sys.executable, "-m", "tests.bench.image_server", str(spec), str(place)]
        self.processes[place] = Process(self.links.inside(place, module), self.folder / f"log.{place}")

    def ready(self, place: int) -> None:
        """Wait until a place serves."""
        answer = self.processes[place].next()
        assert answer == {"ready": True}, (answer, self.words())

    def copy(self, receivers: Sequence[int]) -> Taken:
        """Let the receivers copy what they lack, all at once, and return what it took."""
        began, busy = self.go(receivers)
        ended = {place: self.processes[place].done() for place in receivers}
        return self.taken(began, busy, ended)

    def go(self, receivers: Sequence[int]) -> tuple[float, Busy]:
        """Let the receivers begin."""
        for process in self.processes.values():
            process.order(mark=1)
        began, busy = time.monotonic(), Busy()
        for place in receivers:
            self.processes[place].order(go=1)
        return began, busy

    def taken(self, began: float, busy: Busy, ended: dict[int, dict[str, Any]]) -> Taken:
        """Return what it took until now, from what the receivers said at their end."""
        usage = {place: process.order(usage=1) for place, process in self.processes.items()}
        cpu_s = sum(one["cpu"] for one in usage.values())
        failed = [
            f"{place}: {end['done']} {end['problems']}"
            for place, end in ended.items()
            if end["problems"] or "copied in" not in end["done"]
        ]
        assert not failed, (failed, self.words())
        return Taken(
            seconds=tuple(end["at"] - began for end in ended.values()),
            cpu_s=cpu_s,
            memory=tuple(one["memory"] for one in usage.values()),
            sent=tuple(one["sent"] for one in usage.values()),
            received=tuple(one["received"] for one in usage.values()),
            busy=busy.others(cpu_s),
            cpu=tuple(one["cpu"] for one in usage.values()),
        )

    def words(self) -> str:
        """Return the end of what the processes wrote."""
        logs = sorted(self.folder.glob("log.*"))
        return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in logs)

    def same(self, place: int, version: VersionId) -> bool:
        """Tell whether a place has exactly what the source has; if not, say where it begins to differ."""
        files = [self.images(at).path(version) for at in (0, place)]
        done = subprocess.run(["cmp", *files], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"  {done.stdout}{done.stderr}", flush=True)
        return done.returncode == 0

    def stop(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.kill()
        self.processes.clear()

    def forget(self, place: int) -> None:
        """Take all images from a place; its folder stays, for another one would count as another disk."""
        for file in (self.folder / self.servers[place] / "images").glob("ver-*"):
            file.unlink()


@contextmanager
def distributing(links: Links, folder: Path, file: Path, receivers: Sequence[int]) -> Iterator[ImageGrid]:
    """Publish a file on place 0 and have all processes ready; afterwards nothing of it is left."""
    grid = ImageGrid(links, folder)
    try:
        grid.publish(VersionId("ver-1"), file)
        for place in (0, *receivers):
            grid.begin(place)
        for place in (0, *receivers):
            grid.ready(place)
        yield grid
    finally:
        grid.stop()
        shutil.rmtree(folder, ignore_errors=True)


def picture(file: Path, size: int, *, seed: int = 1) -> None:
    """Write random bytes: nothing in them is zero or can be compressed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)  # noqa: S311 - the same bytes each time
    with file.open("wb") as disk:
        for _ in range(size // MIB):
            disk.write(chance.randbytes(MIB))
