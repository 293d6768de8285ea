"""One server's images in a process of its own that measures itself: `python -m tests.bench.image_server SPEC PLACE`.

Real: the grid port with TLS, the folder of images, the agent that copies. Not real: the log, which every process has
for itself, filled from SPEC with the same servers and versions; a finished copy is therefore found by asking, as any
copy under way is. Orders come as JSON lines on stdin, each is answered by one line, and a copy that ended by another.

* `go`: begin a round of the agent; `done` follows with what it said, and when by the machine's monotonic clock.
* `usage`: processor seconds, memory and bytes on the link since the last `mark`; `mark` begins anew.
* `progress`: blocks here and in all.
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop

from kmgr.clock import SystemClock
from kmgr.grid import identity
from kmgr.grid.contacts import Contacts, split_address
from kmgr.grid.envelope import Applied
from kmgr.grid.local import LocalGrid
from kmgr.grid.requests import GridRequests
from kmgr.grid.wire import GridPort
from kmgr.ids import ServerId
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.replica.agent import ReplicaAgent
from kmgr.replica.images import Images


class Meter:
    """What this process took and its link carried since `mark()`."""

    def __init__(self) -> None:
        self.mark()

    def mark(self) -> None:
        """Begin anew; the peak of memory as well."""
        Path("/proc/self/clear_refs").write_text("5")
        self._began = self._taken()

    def usage(self) -> dict[str, int | float]:
        """Return CPU seconds, bytes sent and received, and by how many bytes memory rose at most."""
        now = self._taken()
        grown = _status("VmHWM") - self._began["memory"]
        return {"cpu": now["cpu"] - self._began["cpu"], "memory": grown} | {
            way: now[way] - self._began[way] for way in ("sent", "received")
        }

    def _taken(self) -> dict[str, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        # What IP carried, in packets as the sender made them: headers are a few thousandths of it.
        names, numbers = (
            line.split()[1:]
            for line in Path("/proc/net/netstat").read_text().splitlines()
            if line.startswith("IpExt:")
        )
        carried = dict(zip(names, map(int, numbers), strict=True))
        return {
            "cpu": used.ru_utime + used.ru_stime,
            "memory": _status("VmRSS"),
            "sent": carried["OutOctets"],
            "received": carried["InOctets"],
        }


class ImageServer:
    """The server of one place."""

    def __init__(self, spec: Mapping[str, Any], place: int) -> None:
        self._spec = spec
        self._server = ServerId(spec["servers"][place])
        folder = Path(spec["folders"][place])
        clock = SystemClock()
        (folder / "state.sqlite").unlink(missing_ok=True)
        addresses = dict(zip(spec["servers"], spec["addresses"], strict=True))
        self._address = addresses[self._server]
        own = identity.load(folder)
        assert own is not None, folder
        self._port = GridPort(own, folder, contacts=lambda: Contacts(addresses))
        self._grid = LocalGrid(
            self._server, path=folder / "state.sqlite", appliers=APPLIERS, schemas=SCHEMAS, clock=clock
        )
        requests = GridRequests(self._port, clock=clock)
        self._agent = ReplicaAgent(self._grid, requests, clock, Images(folder))
        self._meter = Meter()
        self._copying: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until stdin ends."""
        await self._port.start(*split_address(self._address))
        for kind, body in self._spec["commands"]:
            outcome = await self._grid.propose(kind, body, by="bench")
            assert isinstance(outcome, Applied), outcome
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        say({"ready": True})
        while line := await reader.readline():
            say(self._obey(json.loads(line)))

    def _obey(self, order: Mapping[str, Any]) -> dict[str, Any]:
        match order:
            case {"go": _}:
                self._meter.mark()
                self._copying = asyncio.create_task(self._copy())
                return {}
            case {"mark": _}:
                self._meter.mark()
                return {}
            case {"usage": _}:
                return dict(self._meter.usage())
            case {"progress": _}:
                return {"progress": list(self._agent.progress().values())[-1]}
            case _:
                return {"error": f"unknown order {order}"}

    async def _copy(self) -> None:
        try:
            said = await self._agent.run_once()
        except Exception as error:  # noqa: BLE001 - whoever measures shall hear of it
            said = f"failed: {error!r}"
        at = time.monotonic()
        say({"done": said, "problems": list(self._agent.problems()), "at": at})


def say(what: dict[str, Any]) -> None:
    """Write a line to whoever started this."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _status(name: str) -> int:
    """Return a number of bytes from this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    uvloop.run(ImageServer(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])).run())
