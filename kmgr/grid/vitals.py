"""Heartbeats: each server tells every other one how it is, and remembers what it was told.

Memory only, never in the log. `Heart` measures this server (psutil), asks the
other packages for their contributions (image progress, accelerator, problems)
and calls the operation `heartbeat` on all others; `Board` keeps the last word of each.
Runs in the daemon's loop; measuring happens on a thread of its own: a sick disk may hang, and the threads that all
share may be busy for longer than the others wait for a sign of life.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from kmgr.clock import Clock
from kmgr.errors import KmgrError, Refused
from kmgr.grid import skew
from kmgr.grid.contacts import Contacts
from kmgr.grid.model import Processor, Vitals
from kmgr.grid.port import Grid, Requests
from kmgr.grid.queries import settings
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

OPERATION = "heartbeat"
# In a grid of so few members heartbeats may come faster while something goes on that people watch.
FEW = 20
LEAST_S = 0.2
_MIB = 1 << 20
_NUMBERS = ("cpus", "load_percent", "memory_mib", "memory_free_mib", "disk_mib", "disk_free_mib")

Contribution: TypeAlias = Callable[[], Mapping[str, Any]]
Measure: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]


class Board:
    """The last heartbeat of every server, as heard by this one."""

    def __init__(self) -> None:
        self._vitals: dict[ServerId, Vitals] = {}

    def all(self) -> Mapping[ServerId, Vitals]:
        """Return the last vitals of every server heard from since this daemon started (itself included)."""
        return dict(self._vitals)

    def put(self, vitals: Vitals) -> None:
        """Note a heartbeat."""
        self._vitals[vitals.server] = vitals


class Heart:
    """Beats every `heartbeat_ms`: measures, tells the others. `run()` goes on until it is cancelled."""

    def __init__(
        self,
        grid: Grid,
        requests: Requests,
        *,
        board: Board,
        contacts: Callable[[], Contacts],
        clock: Clock,
        measure: Measure,
    ) -> None:
        self._grid = grid
        self._requests = requests
        self._board = board
        self._contacts = contacts
        self._clock = clock
        self._measure = measure
        self._contributions: dict[str, Contribution] = {}
        self._telling: dict[ServerId, asyncio.Task[None]] = {}
        self._clock_is_wrong = False
        requests.serve(OPERATION, self._heard)

    def contribute(self, name: str, contribution: Contribution) -> None:
        """Let a package add to the vitals, at each beat.

        Fields of `Vitals` replace the measured ones, `problems` are added up,
        `images` merged, and anything else goes into `extra`. It must not block.
        """
        self._contributions[name] = contribution

    async def run(self) -> None:
        """Beat until cancelled."""
        try:
            while True:
                started = self._clock.monotonic()
                await self.beat()
                with self._grid.view() as db:
                    period = settings(db)["heartbeat_ms"] / 1000
                if len(self._contacts().addresses) <= FEW:
                    period = min(period, self._hurry_s())
                await self._clock.sleep(max(0.05, period - (self._clock.monotonic() - started)))
        finally:
            for task in self._telling.values():
                task.cancel()
            await asyncio.gather(*self._telling.values(), return_exceptions=True)

    async def beat(self) -> None:
        """Note this server's own vitals and begin to tell them to all others; waits for nobody."""
        told = await self._vitals()
        own = vitals_from(self._grid.server, told, heard_at=self._clock.monotonic())
        self._board.put(own)
        for server in sorted(self._contacts().addresses):
            # One call at a time to each: a server that hangs must not collect heartbeats.
            if server != self._grid.server and server not in self._telling:
                self._telling[server] = asyncio.create_task(self._tell(server, told))

    def _hurry_s(self) -> float:
        """Return how soon somebody waits for the next beat: `hurry_ms` among what the packages contribute."""
        own = self._board.all().get(self._grid.server)
        told = own.extra.get("hurry_ms") if own else None
        return max(LEAST_S, told / 1000) if isinstance(told, int) else math.inf

    async def _tell(self, server: ServerId, told: Mapping[str, Any]) -> None:
        try:
            await self._requests.call(server, OPERATION, told, timeout_s=3)
        except KmgrError as error:
            logger.debug("a heartbeat was not delivered", extra={"server": server, "cause": error.message})
        finally:
            self._telling.pop(server, None)

    async def _heard(self, peer: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        vitals = vitals_from(peer, body, heard_at=self._clock.monotonic())
        if isinstance(sent := vitals.extra.get("clock_ms"), int):
            vitals = replace(vitals, extra={**vitals.extra, "clock_off_ms": sent - self._clock.now_ms()})
        self._board.put(vitals)
        return {}

    async def _vitals(self) -> dict[str, Any]:
        told: dict[str, Any] = {"problems": [], "images": {}, "extra": {}}
        wrong = skew.complaint(self._board.all(), server=self._grid.server, now=self._clock.monotonic())
        if wrong:
            told["problems"].append(wrong)
        if bool(wrong) != self._clock_is_wrong:
            self._clock_is_wrong = bool(wrong)
            logger.warning("this server's clock", extra={"cause": wrong or "it agrees with the others' again"})
        try:
            told |= await self._measure()
        except OSError as error:
            told["problems"].append(f"this server cannot be measured: {error.strerror or error}")
        # After the measuring, which may take its time: what was true before it would look like a wrong clock.
        told["extra"] |= {"applied": self._grid.status().applied, "clock_ms": self._clock.now_ms()}
        for name, contribution in self._contributions.items():
            try:
                _merge(told, contribution())
            except Exception as error:
                # A broken part must not look like a dead server: the heart goes on and names it.
                logger.exception("a contribution to the vitals failed", extra={"part": name})
                told["problems"].append(f"{name} does not report: {error!r}")
        return told


def measurer(data_dir: Path) -> Measure:
    """Return what measures this machine: processors, memory, and the disk of the data folder."""

    def look() -> Mapping[str, Any]:
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(data_dir))
        return {
            "cpus": psutil.cpu_count() or 1,
            "load_percent": round(psutil.cpu_percent(interval=None)),
            "memory_mib": memory.total // _MIB,
            "memory_free_mib": memory.available // _MIB,
            "disk_mib": disk.total // _MIB,
            "disk_free_mib": disk.free // _MIB,
        }

    thread = ThreadPoolExecutor(1, thread_name_prefix="vitals")

    async def measure() -> Mapping[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(thread, look)

    return measure


def vitals_from(server: ServerId, told: Mapping[str, Any], *, heard_at: float) -> Vitals:
    """Read a heartbeat; raise `Refused` if it is none."""
    try:
        return Vitals(
            server=server,
            heard_at=heard_at,
            **{name: int(told.get(name, 0)) for name in _NUMBERS},
            accelerator=str(told.get("accelerator", "")),
            can_run_desktops=bool(told.get("can_run_desktops", False)),
            processor=processor_from(told.get("processor")),
            problems=tuple(str(problem) for problem in told.get("problems", ())),
            images={str(v): (int(here), int(whole)) for v, (here, whole) in told.get("images", {}).items()},
            extra=dict(told.get("extra", {})),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise Refused(f"this is no heartbeat: {error}") from error


def processor_from(told: Any) -> Processor | None:
    """Read what a server says of its processors; None for whatever says nothing whole."""
    if not isinstance(told, Mapping):
        return None
    vendor, kind, features = told.get("vendor"), told.get("kind"), told.get("features")
    if not (isinstance(vendor, str) and isinstance(kind, str) and isinstance(features, list)):
        return None
    return Processor(vendor, kind, frozenset(one for one in features if isinstance(one, str)))


def _merge(told: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name, value in part.items():
        match name:
            case "problems":
                told["problems"].extend(value)
            case "images":
                told["images"].update({version: list(progress) for version, progress in value.items()})
            case "extra":
                told["extra"].update(value)
            case "accelerator" | "can_run_desktops" | "processor":
                told[name] = value
            case _ if name in _NUMBERS:
                told[name] = value
            case _:
                told["extra"][name] = value
