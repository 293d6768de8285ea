"""The loop that lets this server's desktops go on on other servers.

Which one goes where is in the log (the balancer's word, `desktop.move`). Disk and
memory are copied while it runs; at the end it stands still for a moment, all of it is
there, and `desktop.moved` in the log hands it over. Whatever fails before, ends
in `desktop.move_failed`: it runs on here. If it is not known which of the two the
log has first, the log is asked until it is; until then it runs nowhere. One that is
shut down to go on elsewhere (`drain.leave`, `cold_moves`) is handed over the same way.

Both copies go through the grid port. `takes` is the other side (`arriving`), which is told
at the end whether the guest still holds its file systems for a safe copy (`thawing`). The
agent leaves alone whatever `holds` names.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from kmgr.clock import Clock
from kmgr.errors import Conflict, KmgrError, OutcomeUnknown, Refused, Unavailable
from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.model import Processor, ServerState
from kmgr.grid.port import Grid, Requests, Stream
from kmgr.grid.queries import server
from kmgr.ids import DesktopId
from kmgr.provision.arriving import DISK, FROZEN, LOADED, LOADED_S, MEMORY, PREPARE, PROCESSOR, RESUMED
from kmgr.provision.cold_moves import ColdMoves
from kmgr.provision.migration import Migrations, Progress
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.move_rows import cold_mark
from kmgr.provision.pace import Pace
from kmgr.provision.queries import desktop as find_desktop
from kmgr.provision.queries import desktops
from kmgr.provision.thawing import noted
from kmgr.provision.tunnel import both_ways

logger = logging.getLogger(__name__)

AT_ONCE = 2
LOOK_S = 2.0
PREPARE_S = 30.0
# No byte more in this time: the other side is stuck.
STALLED_S = 60.0
_POLL_S = 0.1
_ASK_AGAIN_S = 1.0

Stay: TypeAlias = Callable[[Desktop], Awaitable[None]]


class Moving:
    """Desktops that leave this server. `grid` is the log itself.

    `may_run` tells whether a desktop, as it was read, may be let go on here now (`Lease.allows`).
    """

    def __init__(
        self,
        grid: Grid,
        requests: Requests,
        migrations: Migrations,
        *,
        run_dir: Path,
        clock: Clock,
        may_run: Callable[[Desktop], bool] = lambda _: True,
        cold: ColdMoves | None = None,
    ) -> None:
        self._grid = grid
        self._requests = requests
        self._migrations = migrations
        self._run_dir = run_dir
        self._clock = clock
        self._may_run = may_run
        self._cold = cold
        self._processor: Processor | None = None
        self._jobs: dict[DesktopId, asyncio.Task[None]] = {}
        self._percent: dict[DesktopId, int] = {}

    def holds(self) -> frozenset[DesktopId]:
        """Return the desktops that are on their way from here, or that the log says are."""
        return frozenset(self._jobs) | frozenset(d.id for d in self._wanted())

    def vitals(self) -> Mapping[str, Any]:
        """Return what this part adds to the heartbeat: the processor, and how far each desktop that leaves is."""
        known = {} if self._processor is None else {"processor": self._processor.to_json()}
        return {"extra": {"moves": dict(self._percent)}, **known}

    async def run(self) -> None:
        """Do rounds until cancelled: whenever the state changes, and every two seconds."""
        for left in sorted(self._run_dir.glob("*.move")):  # doors of an earlier life, which was killed
            left.unlink(missing_ok=True)
        try:
            while True:
                seen = self._grid.status().applied
                await self._look()
                self.run_once()
                await self._grid.changed(seen, timeout_s=LOOK_S)
        finally:
            jobs = list(self._jobs.values())
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _look(self) -> None:
        if self._processor is None:
            with contextlib.suppress(KmgrError):  # libvirt does not answer: the agent tells
                self._processor = await self._migrations.processor()

    def run_once(self) -> None:
        """Begin what the log wants moved, a few at a time."""
        for desktop in self._wanted():
            if len(self._jobs) >= AT_ONCE:
                return
            if desktop.id not in self._jobs:
                self._jobs[desktop.id] = asyncio.create_task(self._guarded(desktop))

    def _wanted(self) -> tuple[Desktop, ...]:
        with self._grid.view() as db:
            return tuple(d for d in desktops(db, server=self._grid.server) if d.moving_to is not None)

    async def _guarded(self, desktop: Desktop) -> None:
        mark = self._mark(desktop)
        stay = self._cold.stay if mark and self._cold is not None else self._go_on
        try:
            await (self._move_cold(desktop, mark) if mark else self._move(desktop))
        except (KmgrError, OSError) as error:
            cause = error.message if isinstance(error, KmgrError) else str(error)
            await self._stay(desktop, cause, stay)
        except Exception as error:
            logger.exception("a move failed by a bug", extra={"desktop": desktop.name})
            await self._stay(desktop, f"by a bug: {type(error).__name__}", stay)
        finally:
            self._jobs.pop(desktop.id, None)
            self._percent.pop(desktop.id, None)

    async def _move(self, desktop: Desktop) -> None:
        """Copy everything, then hand over."""
        to = desktop.moving_to
        assert to is not None  # noqa: S101 - only those are begun
        self._check(desktop)
        if await self._migrations.begun(desktop.id):
            raise Unavailable("this server's kmgr began anew in the middle of it")
        begun = self._clock.monotonic()
        traits = await self._migrations.traits(desktop.id)
        body = {"desktop": desktop.id, "generation": desktop.generation}
        own = await self._migrations.processor()
        told = {"traits": traits.to_json(), PROCESSOR: None if own is None else own.to_json()}
        await self._requests.call(to, PREPARE, {**body, **told}, timeout_s=PREPARE_S)
        async with self._disk_door(desktop, body) as door:
            await self._migrations.copy_disk(desktop.id, door)
            await self._until_ready(desktop, self._migrations.disk, (0, 60), Pace("disk", self._clock.monotonic()))
            stream = await self._requests.open(to, MEMORY, body)
            async with self._given(stream) as descriptor:
                await self._migrations.send(desktop.id, descriptor)
                await self._until_ready(desktop, self._migrations.memory, (60, 100))
                still = self._clock.monotonic()
                await self._migrations.finish(desktop.id)
        await self._requests.call(to, LOADED, {**body, **self._owed(desktop)}, timeout_s=LOADED_S)
        if await self._handed_over(desktop, self._go_on):
            with contextlib.suppress(KmgrError):  # it sees that in the log by itself, a moment later
                await self._requests.call(to, RESUMED, body)
            now = self._clock.monotonic()
            took = {"took_s": round(now - begun, 1), "stood_still_ms": round(1000 * (now - still))}
            logger.info("a desktop goes on elsewhere", extra={"desktop": desktop.name, "to": to, **took})

    def _owed(self, desktop: Desktop) -> Mapping[str, Any]:
        """Return since when its guest is owed a thaw, which it must be asked for where it goes on."""
        owed = noted(self._run_dir, desktop.id, now_ms=self._clock.now_ms())
        return {} if owed is None else {FROZEN: owed.since}

    async def _move_cold(self, desktop: Desktop, mark: str) -> None:
        """Shut it down, have all of it in its safe copy, then hand over: it is started there."""
        to = desktop.moving_to
        assert to is not None  # noqa: S101 - only those are begun
        if self._cold is None:
            raise Unavailable("this server runs no personal desktops")
        begun = self._clock.monotonic()
        point = await self._cold.end(desktop, to, lambda: self._check_cold(desktop, mark))
        if await self._handed_over(desktop, self._cold.stay, cold=mark, as_of=point.as_of):
            extra = {"desktop": desktop.name, "to": to, "took_s": round(self._clock.monotonic() - begun, 1)}
            logger.info("a desktop was shut down and goes on elsewhere", extra=extra)

    async def _go_on(self, desktop: Desktop) -> None:
        await self._migrations.stay(desktop.id)

    async def _handed_over(self, desktop: Desktop, stay: Stay, **more: Any) -> bool:
        """Hand over in the log; it stands still meanwhile. False if somebody else ended the move, for good."""
        try:
            outcome = await self._said(desktop, "desktop.moved", target=desktop.moving_to, **more)
        except (Unavailable, OutcomeUnknown):
            return await self._settled(desktop, "the log could not be asked for the hand-over", stay)
        if isinstance(outcome, Applied):
            return True
        raise Conflict(outcome.detail)

    async def _stay(self, desktop: Desktop, cause: str, stay: Stay) -> None:
        logger.info("a desktop stays here", extra={"desktop": desktop.name, "cause": cause})
        await self._settled(desktop, cause, stay)

    async def _settled(self, desktop: Desktop, cause: str, stay: Stay) -> bool:
        """Ask the log until it is known where it is; True if it was handed over. Let it go on if it is here."""
        while True:
            try:
                outcome = await self._said(desktop, "desktop.move_failed", cause=cause)
                await self._grid.barrier()
                break
            except (Unavailable, OutcomeUnknown):
                await self._clock.sleep(_ASK_AGAIN_S)
        now = self._now(desktop)
        if not isinstance(outcome, Applied) and (now is None or now.generation != desktop.generation):
            return now is not None and now.server == desktop.moving_to
        # Without the right to run it stands still; meanwhile it may go on elsewhere, from its safe copy.
        while self._is_here(now, desktop) and not self._may_run(desktop):
            await self._clock.sleep(_ASK_AGAIN_S)
            now = self._now(desktop)
        if not self._is_here(now, desktop):
            return False  # the agent removes what there is of it
        try:
            await stay(desktop)
        except KmgrError as error:
            logger.warning("a move could not be undone", extra={"desktop": desktop.name, "cause": error.message})
        return False

    def _now(self, desktop: Desktop) -> Desktop | None:
        with self._grid.view() as db:
            return find_desktop(db, desktop.id)

    def _is_here(self, now: Desktop | None, desktop: Desktop) -> bool:
        here = (self._grid.server, desktop.generation)
        return now is not None and (now.server, now.generation) == here and now.state is not DesktopState.RETIRED

    async def _until_ready(
        self,
        desktop: Desktop,
        look: Callable[[DesktopId], Any],
        percent: tuple[int, int],
        pace: Pace | None = None,
    ) -> None:
        """Wait for one of the two copies; raise `Unavailable` if it has no end, or nobody wants it any more."""
        at_begin, at_end = percent
        best, since = -1, self._clock.monotonic()
        while True:
            told: Progress = await look(desktop.id)
            part = told.done / max(1, told.total)
            self._percent[desktop.id] = round(at_begin + part * (at_end - at_begin))
            if told.ready:
                return
            if told.done > best:
                best, since = told.done, self._clock.monotonic()
            if self._clock.monotonic() - since > STALLED_S:
                raise Unavailable(f"nothing more went over for {STALLED_S:.0f} s")
            if pace is not None and (why := pace.problem(told.total - told.done, self._clock.monotonic())):
                raise Unavailable(why)
            self._check(desktop)
            await self._clock.sleep(_POLL_S)

    def _check(self, desktop: Desktop) -> None:
        now = self._now(desktop)
        wanted = (desktop.generation, DesktopState.IN_USE, desktop.moving_to)
        if now is None or (now.generation, now.state, now.moving_to) != wanted:
            raise Conflict("it was given back, or is not to move any more")

    def _check_cold(self, desktop: Desktop, mark: str) -> None:
        self._check(desktop)
        with self._grid.view() as db:
            here = server(db, self._grid.server)
        if here is None or here.state is not ServerState.DRAINING:
            raise Conflict("its server stays in service after all")
        if self._mark(desktop) != mark:
            raise Conflict("it is to move another time, or another way")

    def _mark(self, desktop: Desktop) -> str:
        with self._grid.view() as db:
            return cold_mark(db, desktop.id)

    async def _said(self, desktop: Desktop, command: str, **more: Any) -> Outcome:
        body = {"desktop": desktop.id, "generation": desktop.generation, "server": self._grid.server, **more}
        return await self._grid.propose(command, body, by=self._grid.server)

    @contextlib.asynccontextmanager
    async def _disk_door(self, desktop: Desktop, body: Mapping[str, Any]) -> AsyncIterator[str]:
        """Open a unix socket for this server's QEMU that leads to the disk on the other server."""
        path = self._run_dir / f"{desktop.id}.move"
        path.unlink(missing_ok=True)
        to = desktop.moving_to
        assert to is not None  # noqa: S101 - only those are begun
        tunnels: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

        async def tunnel(near: Stream) -> None:
            try:
                far = await self._requests.open(to, DISK, body)
                try:
                    await both_ways(near, far)
                finally:
                    far.writer.close()
            except (KmgrError, OSError) as error:
                logger.info("the way to a disk broke", extra={"desktop": desktop.name, "cause": str(error)})

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not door.is_serving():
                writer.close()
                return
            task = asyncio.ensure_future(tunnel(Stream(reader, writer)))
            tunnels[task] = writer
            task.add_done_callback(lambda _: writer.close())

        door = await asyncio.start_unix_server(accepted, str(path))
        path.chmod(0o666)  # QEMU is another user's; the folder is only for those who know the name
        try:
            yield str(path)
        finally:
            door.close()
            path.unlink(missing_ok=True)
            for task in tunnels:
                task.cancel()
            await asyncio.gather(*tunnels, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _given(self, far: Stream) -> AsyncIterator[int]:
        """Make an open connection for this server's QEMU whose other end is the stream."""
        ours, its = socket.socketpair()
        near = Stream(*await asyncio.open_connection(sock=ours))
        pump = asyncio.create_task(both_ways(near, far))
        try:
            yield its.fileno()
            its.close()
            # QEMU has closed its own end by now, or will with the guest: the last bytes are on their way.
            await asyncio.wait((pump,), timeout=PREPARE_S)
            if not pump.done():
                raise Refused("the memory did not go over whole")
        finally:
            its.close()
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            for stream in (near, far):
                stream.writer.close()
