"""The disks of personal desktops on this server that are not (any more) its running ones.

`superseded/<desktop>.<generation>.qcow2` is a disk that went on elsewhere: kept for
the administrator, and the basis from which the way back needs only what changed.
Beside an overlay that was a safe copy, `<desktop>.promoted` holds the generation
it was promoted to: written before, so that a kill at any point is told apart.

A superseded disk that an administrator has put back is moved into its old place.
What the log has given up is deleted here. It is asked on the log itself (`barrier`):
this server's state may be behind.

A copy that has gone bad is started only once a person has read what is wrong with
it: the desktop was broken by those very words, and somebody had it tried again.
"""

import logging
from collections.abc import Awaitable, Collection
from pathlib import Path

from kmgr.clock import Clock
from kmgr.errors import KmgrError, NotFound, Refused, Unavailable
from kmgr.grid.envelope import Applied
from kmgr.grid.port import Grid
from kmgr.ids import DesktopId
from kmgr.provision import disks
from kmgr.provision.hypervisor import Hypervisor
from kmgr.provision.model import Copy, CopyState, Desktop, DesktopState
from kmgr.provision.queries import copies, desktops, life, put_backs
from kmgr.provision.queries import desktop as find_desktop
from kmgr.provision.timely import Blocking
from kmgr.replica.images import sync_folder, write_synced
from kmgr.replica.mirror import CopyPoint, CopyStore

logger = logging.getLogger(__name__)

TIDY_S = 5.0
_FOLDER = "superseded"
_SUFFIX = ".qcow2"
_MARK = ".promoted"
# What the store says of a copy that no desktop can be started from.
_USELESS = ("damaged", "wrong_base", "bad_copy")


class PersonalDisks:
    """Safe copies that become disks, disks that are superseded, and what nobody needs. `grid` is the log itself."""

    def __init__(
        self,
        grid: Grid,
        store: CopyStore,
        hypervisor: Hypervisor,
        *,
        data_dir: Path,
        clock: Clock,
        blocking: Blocking,
    ) -> None:
        self._grid = grid
        self._hypervisor = hypervisor
        self._store = store
        self._data_dir = data_dir
        self._clock = clock
        self._blocking = blocking
        self._started: dict[DesktopId, CopyPoint] = {}
        # Whose safe copies are here by the log, and were not when it was looked last: somebody removed them.
        self.missing: frozenset[DesktopId] = frozenset()

    async def run(self) -> None:
        """Delete what is not needed any more, until cancelled."""
        while True:
            try:
                await self.tidy()
            except (KmgrError, OSError) as error:
                logger.info("copies could not be tidied up", extra={"cause": str(error)})
            await self._clock.sleep(TIDY_S)

    async def bring(self, desktop: Desktop) -> int | None:
        """Make a safe copy that is here the desktop's disk, if the log says so; return how far it goes (ms).

        A superseded disk that is put back goes as far as it goes: None. Raises `Refused` if none can be made of it.
        """
        copy = self._row(desktop.id, CopyState.STARTING)
        if copy is None:
            return None
        target = disks.overlay_path(self._data_dir, desktop.id)
        await self._blocking(lambda: self._clear(target, desktop))
        if _is_put_back(copy, desktop):
            await self._blocking(lambda: self._put_in_place(self._aside(desktop.id, copy.generation), target))
            return None
        try:
            accepted = self._accepted(desktop)
            point = await self._store.promote(desktop.id, copy.generation, target, accepted=accepted)
        except NotFound as error:
            raise Refused(error.message) from error
        except Unavailable as error:
            if error.code in _USELESS:
                raise Refused(error.message, code=error.code) from error
            raise
        self._started[desktop.id] = point
        return point.as_of

    def _accepted(self, desktop: Desktop) -> Collection[str]:
        """Return what a desktop was broken by, under its present generation, before somebody had it tried again."""
        with self._grid.view() as db:
            return {
                stage.cause
                for stage in life(db, desktop.id)
                if stage.state is DesktopState.BROKEN and stage.generation == desktop.generation
            }

    def awaits(self, desktop: Desktop) -> bool:
        """Tell whether a desktop is still to be given its disk here: what lies there is something else. Blocks."""
        return self._row(desktop.id, CopyState.STARTING) is not None and not self._is_marked(desktop)

    def set_aside(self, desktop: DesktopId) -> bool:
        """Keep an overlay as superseded if the log says that it is; False if it is to be deleted. Blocks."""
        overlay = disks.overlay_path(self._data_dir, desktop)
        copy = (
            self._row(desktop, CopyState.LEFT)
            or self._row(desktop, CopyState.SUPERSEDED)
            or self._being_put_back(desktop)
        )
        if copy is None or not overlay.exists():
            return False
        aside = self._aside(desktop, copy.generation)
        if aside.exists():
            return False
        aside.parent.mkdir(exist_ok=True)
        overlay.rename(aside)
        self._mark(desktop).unlink(missing_ok=True)
        logger.warning("a former disk is kept", extra={"desktop": desktop, "file": str(aside)})
        return True

    def forget(self, desktop: DesktopId) -> None:
        """Delete what lies beside an overlay that goes. Blocks."""
        self._mark(desktop).unlink(missing_ok=True)

    def seed(self, desktop: DesktopId) -> Path | None:
        """Return the newest superseded disk of a desktop here, None if there is none. Blocks."""
        found = sorted((self._data_dir / _FOLDER).glob(f"{desktop}.*{_SUFFIX}"), key=_generation)
        return found[-1] if found else None

    async def tidy(self) -> None:
        """Do one round. What cannot be done about one desktop's disk keeps no other from being looked after."""
        await self._grid.barrier()
        with self._grid.view() as db:
            mine = copies(db, server=self._grid.server)
            stopped = [d for d in desktops(db, server=self._grid.server) if d.id in put_backs(db)]
        for desktop in stopped:
            await self._part(desktop.id, self._tell_aside(desktop))
        for copy in mine:
            if copy.state is CopyState.DROPPING:
                await self._part(copy.desktop, self._dropped(copy))
            elif copy.state is CopyState.STARTING:
                await self._part(copy.desktop, self._tell_started(copy))
        known = {(copy.desktop, copy.generation) for copy in mine}
        ready = {(copy.desktop, copy.generation) for copy in mine if copy.state is CopyState.READY}
        held = await self._store.held()
        there = {(point.desktop, point.generation) for point in held}
        self.missing = frozenset(desktop for desktop, _ in ready - there)
        for point in held:
            if (point.desktop, point.generation) not in known:
                await self._part(point.desktop, self._drop(point.desktop, point.generation))

    async def _part(self, desktop: DesktopId, work: Awaitable[None]) -> None:
        try:
            await work
        except (KmgrError, OSError) as error:
            if not self._grid.status().majority:
                raise
            logger.info("a copy could not be tidied up", extra={"desktop": desktop, "cause": str(error)})

    async def _dropped(self, copy: Copy) -> None:
        await self._drop(copy.desktop, copy.generation)
        key = {"desktop": copy.desktop, "server": copy.server, "generation": copy.generation}
        await self._grid.propose("copy.dropped", key, by=self._grid.server)

    async def tell(self, desktop: Desktop, as_of: int) -> None:
        """Tell the log that a safe copy has become a desktop's disk, and how far it goes."""
        body = {"desktop": desktop.id, "generation": desktop.generation, "server": self._grid.server, "as_of": as_of}
        point = self._started.pop(desktop.id, None)
        if point is not None:
            body |= {name: count for name, count in (("bad", point.bad), ("unread", point.unread)) if count}
        outcome = await self._grid.propose("copy.promoted", body, by=self._grid.server)
        if isinstance(outcome, Applied):
            await self._store.drop(desktop.id, desktop.generation - 1)

    async def _tell_started(self, copy: Copy) -> None:
        """Tell what this daemon was killed before it could tell."""
        with self._grid.view() as db:
            desktop = find_desktop(db, copy.desktop)
        if desktop is None or desktop.server != self._grid.server:
            return
        target = disks.overlay_path(self._data_dir, desktop.id)
        if _is_put_back(copy, desktop):
            aside = self._aside(desktop.id, copy.generation)
            if await self._blocking(lambda: target.exists() and self._is_marked(desktop) and not aside.exists()):
                body = {"desktop": desktop.id, "generation": desktop.generation, "server": self._grid.server}
                await self._grid.propose("desktop.put_in_place", body, by=self._grid.server)
            return
        if await self._blocking(lambda: target.exists() and self._is_marked(desktop)):
            self._started[desktop.id] = point = await self._store.promote(desktop.id, copy.generation, target)
            await self.tell(desktop, point.as_of)

    async def _tell_aside(self, desktop: Desktop) -> None:
        """Tell that a desktop of which another disk is being put back runs here no more, its disk kept aside."""
        if any(domain.desktop == desktop.id for domain in await self._hypervisor.domains()):
            return  # the agent removes it
        await self._blocking(lambda: self.set_aside(desktop.id))
        body = {"desktop": desktop.id, "generation": desktop.generation, "server": self._grid.server}
        await self._grid.propose("desktop.put_aside", body, by=self._grid.server)

    def _put_in_place(self, aside: Path, target: Path) -> None:
        """Move a superseded disk to where the desktop's own is, unless that was done already. Blocks."""
        if aside.exists():
            aside.rename(target)
            logger.warning("a superseded disk is put back", extra={"file": str(target)})
        elif not target.exists():
            raise Refused(f"the former disk {aside} is gone: somebody removed it by hand")

    async def _drop(self, desktop: DesktopId, generation: int) -> None:
        await self._store.drop(desktop, generation)
        await self._blocking(lambda: self._aside(desktop, generation).unlink(missing_ok=True))

    def _clear(self, target: Path, desktop: Desktop) -> None:
        """Make way for the copy, unless it has become the disk already."""
        if self._is_marked(desktop):
            return
        if target.exists() and not self.set_aside(desktop.id):
            disks.remove_overlay(target)
        # After a power cut the mark is believed: what was there must be gone before it, and it must be whole.
        sync_folder(target.parent)
        mark = self._mark(desktop.id)
        fresh = mark.with_suffix(f"{_MARK}-new")
        write_synced(fresh, str(desktop.generation).encode())
        fresh.replace(mark)
        sync_folder(mark.parent)

    def _is_marked(self, desktop: Desktop) -> bool:
        mark = self._mark(desktop.id)
        return mark.exists() and mark.read_text() == str(desktop.generation)

    def _row(self, desktop: DesktopId, state: CopyState) -> Copy | None:
        """Return the newest disk of a desktop here that is in a state."""
        with self._grid.view() as db:
            mine = [copy for copy in copies(db, desktop=desktop, server=self._grid.server) if copy.state is state]
        return max(mine, key=lambda copy: copy.generation, default=None)

    def _being_put_back(self, desktop: DesktopId) -> Copy | None:
        """Return the superseded disk that is put back here, which this server may not have set aside before."""
        copy = self._row(desktop, CopyState.STARTING)
        with self._grid.view() as db:
            record = find_desktop(db, desktop)
        if copy is None or record is None or not _is_put_back(copy, record) or self._is_marked(record):
            return None
        return copy

    def _aside(self, desktop: DesktopId, generation: int) -> Path:
        return self._data_dir / _FOLDER / f"{desktop}.{generation}{_SUFFIX}"

    def _mark(self, desktop: DesktopId) -> Path:
        return disks.overlay_path(self._data_dir, desktop).with_suffix(_MARK)


def _is_put_back(copy: Copy, desktop: Desktop) -> bool:
    """Tell a superseded disk that is put back from a safe copy, which is always of the generation before."""
    return copy.generation != desktop.generation - 1


def _generation(path: Path) -> int:
    told = path.name.removesuffix(_SUFFIX).rpartition(".")[2]
    return int(told) if told.isascii() and told.isdigit() else 0
