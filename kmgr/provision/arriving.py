"""The other side of a live move: makes room for a desktop, takes its disk and memory, and lets it go on here.

Only what the log says is on its way here is taken, and only from the server that it
is on. It is let go on when the log has handed it over, never by the word of the
other server. What arrived and is not coming any more is deleted, after the log.

A guest that is owed its thaw (`thawing`) is noted before this server says that it is
all here, for every life of this daemon, and asked for it once it goes on.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import Conflict, KmgrError, NotFound, Refused, Unavailable
from kmgr.grid.port import Accept, Grid, Requests, Stream
from kmgr.grid.vitals import processor_from
from kmgr.ids import DesktopId, ServerId
from kmgr.provision import disks, processors
from kmgr.provision.hypervisor import DomainSpec, Hypervisor
from kmgr.provision.migration import Migrations, Traits, traits_from
from kmgr.provision.model import CopyState, Desktop
from kmgr.provision.queries import copies
from kmgr.provision.queries import desktop as find_desktop
from kmgr.provision.stillness import Owed, spell
from kmgr.provision.thawing import mark_of
from kmgr.provision.timely import Blocking
from kmgr.provision.tunnel import both_ways
from kmgr.whole import is_whole

logger = logging.getLogger(__name__)

PREPARE, DISK, MEMORY, LOADED, RESUMED = "move.prepare", "move.disk", "move.memory", "move.loaded", "move.resumed"
# In `LOADED`: since when (ms) the guest has held its file systems still, if it was not heard to thaw.
FROZEN = "frozen_since"
# In `PREPARE`: what the guest found of the processors where it is.
PROCESSOR = "processor"
LOOK_S = 1.0
LOADED_S = 20.0
_POLL_S = 0.005


@dataclass(slots=True)
class _Guest:
    """One that is on its way here: the generation that it has where it is."""

    generation: int
    door: Path
    loaded: bool = False
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Making:
    """How this server makes desktops: `spec` of a domain, `clone` of a disk (blocks)."""

    spec: Callable[[Desktop], DomainSpec]
    clone: Callable[[Desktop], None]


class Arriving:
    """Desktops that come to this server.

    `grid` is the log itself, `may_run` as in `Moving`; `owe` has a guest asked for the thaw that is noted (`Thaws`).
    """

    def __init__(
        self,
        grid: Grid,
        requests: Requests,
        hypervisor: Hypervisor,
        migrations: Migrations,
        *,
        making: Making,
        data_dir: Path,
        clock: Clock,
        blocking: Blocking,
        may_run: Callable[[Desktop], bool] = lambda _: True,
        owe: Callable[[DesktopId], None] = lambda _: None,
    ) -> None:
        self._grid = grid
        self._hypervisor = hypervisor
        self._migrations = migrations
        self._making = making
        self._data_dir = data_dir
        self._clock = clock
        self._blocking = blocking
        self._may_run = may_run
        self._owe = owe
        self._guests: dict[DesktopId, _Guest] = {}
        requests.serve(PREPARE, self._prepare)
        requests.serve(LOADED, self._loaded)
        requests.serve(RESUMED, self._resumed)
        requests.serve_stream(DISK, self._disk)
        requests.serve_stream(MEMORY, self._memory)

    def holds(self) -> frozenset[DesktopId]:
        """Return the desktops that are on their way here."""
        return frozenset(self._guests)

    async def run(self) -> None:
        """Let go on what was handed over, and clear away what is not coming, until cancelled."""
        with contextlib.suppress(KmgrError, OSError):
            await self._blocking(self._close_doors)
        while True:
            seen = self._grid.status().applied
            try:
                await self.run_once()
            except (KmgrError, OSError) as error:
                logger.info("a round over what arrives was cut short", extra={"cause": str(error)})
            await self._grid.changed(seen, timeout_s=LOOK_S)

    async def run_once(self) -> None:
        """Look at every guest once."""
        for desktop, guest in sorted(self._guests.items()):
            if guest.busy.locked():
                continue
            async with guest.busy:
                await self._judge(desktop, guest)

    async def _judge(self, desktop: DesktopId, guest: _Guest) -> None:
        with self._grid.view() as db:
            now = find_desktop(db, desktop)
            held = copies(db, desktop=desktop, server=self._grid.server)
        here = now is not None and now.server == self._grid.server
        # It may be here because its server was lost: then it starts from its safe copy, and this is a part of it.
        lost = any(copy.state is CopyState.STARTING for copy in held)
        if now is not None and here and not lost and now.generation == guest.generation + 1:
            if not self._may_run(now):
                return  # it stands still until this server may run it
            await self._migrations.close_disk(desktop)
            if not self._may_run(now):
                return  # that took longer than the right to run it
            await self._hypervisor.start(desktop)
            logger.info("a desktop has arrived", extra={"desktop": now.name})
            self._forget(desktop)
            self._owe(desktop)
        elif now is None or here or now.moving_to != self._grid.server or now.generation != guest.generation:
            await self._clear(desktop)
            self._forget(desktop)

    async def _prepare(self, peer: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._grid.barrier()
        desktop = self._expected(peer, body)
        traits = traits_from(body.get("traits"))
        found = processor_from(body.get(PROCESSOR))
        if why := processors.why_not(traits.emulation, found, await self._migrations.processor()):
            raise Refused(f"the other server {why}")
        guest = self._guests.setdefault(desktop.id, _Guest(desktop.generation, self._door(desktop.id)))
        async with guest.busy:
            self._guests[desktop.id] = guest  # whatever was judged about an earlier one while this waited
            await self._clear(desktop.id)
            guest.generation, guest.loaded = desktop.generation, False
            try:
                await self._make(desktop, traits, guest)
            except BaseException:
                self._forget(desktop.id)  # what there is of it is a stray one now
                raise
        return {}

    async def _make(self, desktop: Desktop, traits: Traits, guest: _Guest) -> None:
        await self._blocking(lambda: self._making.clone(desktop))
        await self._migrations.arrive(
            self._making.spec(desktop), traits, desktop.generation + 1, disk_door=str(guest.door)
        )

    async def _disk(self, peer: ServerId, body: Mapping[str, Any], accept: Accept) -> None:
        desktop = self._expected(peer, body)
        guest = self._guest(desktop)
        try:
            near = Stream(*await asyncio.open_unix_connection(str(guest.door)))
        except OSError as error:
            raise Unavailable(f"the disk cannot be reached here: {error.strerror or error}") from error
        await _joined(near, accept)

    async def _memory(self, peer: ServerId, body: Mapping[str, Any], accept: Accept) -> None:
        desktop = self._expected(peer, body)
        self._guest(desktop)
        ours, its = socket.socketpair()
        near = Stream(*await asyncio.open_connection(sock=ours))
        try:
            await self._migrations.load(desktop.id, its.fileno())
        except BaseException:
            near.writer.close()
            raise
        finally:
            its.close()
        await _joined(near, accept)

    async def _loaded(self, peer: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer once all of it is here; `Refused` if it will not be."""
        desktop = self._expected(peer, body)
        guest = self._guest(desktop)
        until = self._clock.monotonic() + LOADED_S
        async with guest.busy:
            while not await self._migrations.loaded(desktop.id):
                if self._clock.monotonic() > until:
                    raise Unavailable(f"the memory was not there {LOADED_S:.0f} s after it had been sent")
                await self._clock.sleep(_POLL_S)
            await self._migrations.close_disk(desktop.id)
            since = body.get(FROZEN)
            if is_whole(since):
                await self._blocking(lambda: self._mark(desktop.id).write_text(spell(Owed(since, 0))))
            guest.loaded = True
        return {}

    async def _resumed(self, _: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """It was handed over a moment ago: do not wait for the next look."""
        desktop = DesktopId(str(body.get("desktop")))
        guest = self._guests.get(desktop)
        if guest is not None:
            async with guest.busy:
                if desktop in self._guests:
                    await self._judge(desktop, guest)
        return {}

    def _expected(self, peer: ServerId, body: Mapping[str, Any]) -> Desktop:
        """Return the record of a desktop that is on its way from `peer` to here, by the log."""
        with self._grid.view() as db:
            found = find_desktop(db, DesktopId(str(body.get("desktop"))))
        if found is None or found.moving_to != self._grid.server:
            raise NotFound("the log does not say that this desktop comes here")
        if found.server != peer or found.generation != body.get("generation"):
            raise Conflict("this desktop is another one by now, or on another server")
        return found

    def _guest(self, desktop: Desktop) -> _Guest:
        guest = self._guests.get(desktop.id)
        if guest is None or guest.generation != desktop.generation:
            raise Refused("nothing is ready here for this desktop: this server's kmgr began anew meanwhile")
        return guest

    async def _clear(self, desktop: DesktopId) -> None:
        """Delete what is here of a desktop that is on another server."""
        await self._hypervisor.remove(desktop)
        await self._blocking(lambda: disks.remove_overlay(disks.overlay_path(self._data_dir, desktop)))
        await self._blocking(lambda: self._mark(desktop).unlink(missing_ok=True))
        self._owe(desktop)  # what another stay of it here was owed is over

    def _forget(self, desktop: DesktopId) -> None:
        guest = self._guests.pop(desktop, None)
        if guest is not None:
            with contextlib.suppress(OSError):
                guest.door.unlink(missing_ok=True)

    def _close_doors(self) -> None:
        """Remove the sockets of an earlier life: whose disks they led to begins anew, or has arrived. Blocks."""
        for door in sorted((self._data_dir / "run").glob("*.disk")):
            if DesktopId(door.stem) not in self._guests:
                door.unlink(missing_ok=True)

    def _mark(self, desktop: DesktopId) -> Path:
        return mark_of(self._data_dir / "run", desktop)

    def _door(self, desktop: DesktopId) -> Path:
        return self._data_dir / "run" / f"{desktop}.disk"


async def _joined(near: Stream, accept: Callable[[], Awaitable[Stream]]) -> None:
    try:
        await both_ways(near, await accept())
    finally:
        near.writer.close()
