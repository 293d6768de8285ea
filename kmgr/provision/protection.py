"""The loop that keeps the safe copies of this server's personal desktops young.

Which server holds a copy is in the log (the balancer's word). Each copy is brought
up to date cycle by cycle, a few at a time, those that wait longest first. First copies,
which may take half an hour each, have places of their own: what is protected already
stays young meanwhile, and who waits for a first turn says so. A first
complete copy is told to the log at once, later points once per `TELL_S` for all
desktops together: what a failover uses is what the copy's own server has; the log
only has to know that there is something. How old each copy is goes with the heartbeat.

Nothing is kept: after a restart every copy is due, and the mirror finds out what it lacks.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kmgr.clock import Clock
from kmgr.errors import KmgrError
from kmgr.grid.port import Grid
from kmgr.grid.queries import servers, settings
from kmgr.ids import DesktopId, ServerId
from kmgr.provision import disks
from kmgr.provision.model import Copy, CopyState, Desktop, DesktopState
from kmgr.provision.queries import copies, desktops
from kmgr.provision.rhythm import ALARM, alarming, pause_s, retry_s
from kmgr.provision.stillness import sentence
from kmgr.provision.timely import Blocking
from kmgr.replica.mirror import CopyPoint, Mirror
from kmgr.rounds import rounds

logger = logging.getLogger(__name__)

LOOK_S = 1.0
TELL_S = 30.0
AT_ONCE = 2
FIRST_AT_ONCE = 2
_LIVE = (CopyState.WANTED, CopyState.READY)
_WAITS = "it waits: first safe copies of other desktops of this server are being made before"
_NOBODY = "no other server takes its copy now: is another one up, with room on its disk?"


@dataclass(slots=True)
class _Kept:
    """One desktop's copy, as this server knows it. `since`: the begin of its watch, `due`: the next cycle.

    `first` tells that its copy, where the log wants it now, was never complete; `at` is when `as_of` was, by the
    clock that is never set.
    """

    desktop: Desktop
    since: float
    to: ServerId | None = None
    first: bool = False
    as_of: int | None = None
    at: float = 0.0
    due: float = 0.0
    last: CopyPoint | None = None
    failures: int = 0
    cause: str = ""
    told: int = 0
    bytes: int = 0
    cycle: "asyncio.Task[None] | None" = None


class Protection:
    """This server's keeper of safe copies; `grid` is the log itself. `run()` goes on until it is cancelled."""

    def __init__(
        self,
        grid: Grid,
        mirror: Mirror,
        *,
        data_dir: Path,
        clock: Clock,
        holds: Callable[[], bool],
        blocking: Blocking,
    ) -> None:
        self._grid: Final = grid
        self._mirror: Final = mirror
        self._data_dir: Final = data_dir
        self._clock: Final = clock
        self._holds: Final = holds
        self._blocking: Final = blocking
        self._kept: dict[DesktopId, _Kept] = {}
        # Those whose last cycle is somebody else's work (`last`).
        self._ending: set[DesktopId] = set()
        self._target_s = 60.0
        self._told_at = float("-inf")
        self._alarmed: frozenset[DesktopId] = frozenset()
        self._still: frozenset[DesktopId] = frozenset()

    def vitals(self) -> Mapping[str, Any]:
        """Return what this part adds to the heartbeat: of each desktop the age of its copy and what is wrong."""
        ages = {d: [self._age_s(kept), _cause(kept)] for d, kept in sorted(self._kept.items())}
        return {"problems": list(self.problems()), "extra": {"copies": ages}}

    def problems(self) -> tuple[str, ...]:
        """Return what a person should look after."""
        return (*self._behind(), *self._standing_still())

    def _behind(self) -> tuple[str, ...]:
        late = self._late()
        if not late:
            return ()
        names = ", ".join(kept.desktop.name for kept in late[:3])
        more = f" and {len(late) - 3} more" if len(late) > 3 else ""
        cause = next(filter(None, map(_cause, late)), "they take longer than the target allows")
        whose = "The safe copy" if len(late) == 1 else "The safe copies"
        behind = f"{ALARM * self._target_s:.0f} s"
        return (f"{whose} of {names}{more} would lose the work of more than {behind} now: {cause}",)

    def _standing_still(self) -> tuple[str, ...]:
        now = self._clock.now_ms()
        return tuple(
            sentence(self._kept[desktop].desktop.name, max(0, now - since) // 1000)
            for desktop, since in sorted(self._mirror.still().items())
            if desktop in self._kept
        )

    async def run(self) -> None:
        """Do rounds until cancelled."""
        await self._mirror.recover()
        thawing = asyncio.create_task(self._mirror.run())
        try:
            await rounds(
                self.run_once, "a round over the safe copies was cut short", every_s=LOOK_S, clock=self._clock
            )
        finally:
            thawing.cancel()
            await asyncio.gather(thawing, return_exceptions=True)
            await self._end([kept for kept in self._kept.values() if kept.cycle is not None])

    async def last(self, desktop: Desktop, to: ServerId) -> CopyPoint:
        """Bring the copy of a desktop that is off up to its end; nothing else is done about it meanwhile."""
        self._ending.add(desktop.id)
        try:
            kept = self._kept.pop(desktop.id, None)
            if kept is not None:
                await self._end([kept])
            disk = disks.overlay_path(self._data_dir, desktop.id)
            last = None if kept is None else kept.last
            return await self._mirror.cycle(desktop.id, desktop.generation, disk, to=to, last=last)
        finally:
            self._ending.discard(desktop.id)

    async def run_once(self) -> None:
        """Look, begin what is due, tell."""
        await self._look()
        if self._holds():
            self._begin()
        await self._tell()
        await self._alarm()

    async def _look(self) -> None:
        now = self._clock.monotonic()
        with self._grid.view() as db:
            self._target_s = float(settings(db)["copy_target_s"])
            # What moves is copied as a whole anyway, and QEMU does one of the two at a time.
            mine = [
                d
                for d in desktops(db, server=self._grid.server)
                if d.owned and d.state is DesktopState.IN_USE and d.moving_to is None
            ]
            rows = copies(db)
            alone = sum(not s.is_witness for s in servers(db)) < 2
        held: dict[DesktopId, list[Copy]] = {}
        for copy in rows:
            if copy.state in _LIVE:
                held.setdefault(copy.desktop, []).append(copy)
        # What still waits for its copy to become its disk has nothing here to be copied.
        starting = {c.desktop for c in rows if c.state is CopyState.STARTING and c.server == self._grid.server}
        mine = [desktop for desktop in mine if desktop.id not in starting]
        for desktop in mine:
            if desktop.id in self._ending:  # since the state was read
                continue
            kept = self._kept.get(desktop.id)
            if kept is not None and kept.desktop.generation != desktop.generation:
                await self._end([kept])
                kept = None
            if kept is None:
                kept = self._kept[desktop.id] = _Kept(desktop, since=now)
            await self._direct(kept, held.get(desktop.id, ()))
            if kept.to is None:
                kept.cause = "" if alone else _NOBODY
        gone = [self._kept.pop(d) for d in sorted(set(self._kept) - {desktop.id for desktop in mine})]
        await self._end(gone)
        for kept in gone:
            if kept.desktop.id not in self._ending:
                await self._mirror.stop(kept.desktop.id)

    async def _direct(self, kept: _Kept, held: Sequence[Copy]) -> None:
        """Let a desktop be copied to where the log wants it."""
        copy = _chosen(held, kept.desktop)
        to = None if copy is None else copy.server
        if to != kept.to:
            await self._end([kept])
            kept.to, kept.last, kept.failures, kept.cause, kept.due, kept.told = to, None, 0, "", 0.0, 0
        if kept.last is None:
            # Until it is complete, the one that it replaces counts.
            self._date(kept, max((c.as_of for c in held if c.as_of is not None), default=None))
            kept.told = 0 if copy is None or copy.as_of is None else copy.as_of
            kept.first = copy is not None and copy.state is CopyState.WANTED

    def _date(self, kept: _Kept, as_of: int | None) -> None:
        """Note how far a copy of an earlier life goes. The wall clock is believed once, and nothing of the future."""
        if as_of is not None and kept.as_of is not None:  # an older one of the same copy, or of another
            kept.at += min(0, as_of - kept.as_of) / 1000
        elif as_of is not None:
            kept.at = self._clock.monotonic() - max(0, self._clock.now_ms() - as_of) / 1000
        kept.as_of = as_of

    def _begin(self) -> None:
        now = self._clock.monotonic()
        for first, places in ((False, AT_ONCE), (True, FIRST_AT_ONCE)):
            mine = [kept for kept in self._kept.values() if kept.first is first]
            room = places - sum(kept.cycle is not None for kept in mine)
            due = [k for k in mine if k.to is not None and k.cycle is None and k.due <= now]
            for kept in sorted(due, key=lambda k: (k.due, k.desktop.id))[: max(0, room)]:
                kept.cycle = asyncio.create_task(self._cycle(kept, kept.to or self._grid.server))

    async def _cycle(self, kept: _Kept, to: ServerId) -> None:
        begun = self._clock.monotonic()
        disk = disks.overlay_path(self._data_dir, kept.desktop.id)
        try:
            point = await self._mirror.cycle(kept.desktop.id, kept.desktop.generation, disk, to=to, last=kept.last)
        except Exception as error:
            if not isinstance(error, KmgrError):
                logger.exception("a cycle failed by a bug", extra={"desktop": kept.desktop.name})
            kept.failures += 1
            kept.cause = error.message if isinstance(error, KmgrError) else f"{type(error).__name__}: {error}"
            kept.due = self._clock.monotonic() + retry_s(kept.failures)
            logger.info("a safe copy was not updated", extra={"desktop": kept.desktop.name, "cause": kept.cause})
        else:
            kept.bytes = await self._blocking(lambda: _size(disk))
            now = self._clock.monotonic()
            kept.last, kept.as_of, kept.at, kept.first = point, point.as_of, begun, False
            kept.failures, kept.cause = 0, ""
            kept.due = now + pause_s(self._target_s, now - begun)
        finally:
            kept.cycle = None

    async def _tell(self) -> None:
        now = self._clock.monotonic()
        first = any(kept.last is not None and not kept.told for kept in self._kept.values())
        if not first and now - self._told_at < TELL_S:
            return
        new = [kept for kept in self._kept.values() if kept.last is not None and kept.last.as_of != kept.told]
        if not new:
            return
        body = {"server": self._grid.server, "points": [_point(kept) for kept in new]}
        said = {kept.desktop.id: kept.last.as_of for kept in new if kept.last is not None}
        self._told_at = now
        await self._grid.propose("copy.points", body, by=self._grid.server)
        for kept in new:
            kept.told = said[kept.desktop.id]

    async def _alarm(self) -> None:
        """Put into the history which copies fell behind and whose guests stand still, and when that is over."""
        late = {kept.desktop.id: kept for kept in self._late()}
        new, over = frozenset(late) - self._alarmed, self._alarmed - frozenset(late)
        for which, ended in ((new, False), (over & frozenset(self._kept), True)):
            if which:
                causes = [_cause(late[d]) for d in sorted(which) if d in late]
                cause = next(filter(None, causes), "they take too long")
                body = {"server": self._grid.server, "desktops": sorted(which), "cause": cause, "over": ended}
                await self._grid.propose("copy.alarm", body, by=self._grid.server)
        self._alarmed = frozenset(late)
        still = frozenset(self._mirror.still()) & frozenset(self._kept)
        for which, ended in ((still - self._still, False), (self._still - still, True)):
            if which:
                body = {"server": self._grid.server, "desktops": sorted(which), "over": ended}
                await self._grid.propose("copy.still", body, by=self._grid.server)
        self._still = still

    def _late(self) -> Sequence[_Kept]:
        return [k for k in self._kept.values() if (k.cause or k.to) and alarming(self._risk_s(k), self._target_s)]

    def _risk_s(self, kept: _Kept) -> float:
        """Return for how long work is unprotected; a first copy that is being made without trouble is no risk yet.

        That it has begun ends no alarm: only a complete one does.
        """
        age = self._age_s(kept)
        if age is not None:
            return age
        made = kept.cycle is not None and not kept.cause and kept.desktop.id not in self._alarmed
        return 0.0 if made else self._clock.monotonic() - kept.since

    def _age_s(self, kept: _Kept) -> int | None:
        return None if kept.as_of is None else int(self._clock.monotonic() - kept.at)

    async def _end(self, ended: Sequence[_Kept]) -> None:
        cycles = [kept.cycle for kept in ended if kept.cycle is not None]
        for cycle in cycles:
            cycle.cancel()
        await asyncio.gather(*cycles, return_exceptions=True)


def _cause(kept: _Kept) -> str:
    """Return why a copy is not what it should be, as far as anything is known."""
    waits = kept.first and kept.to is not None and kept.cycle is None
    return kept.cause or (_WAITS if waits else "")


def _chosen(held: Sequence[Copy], desktop: Desktop) -> Copy | None:
    """Return the copy to work on: one that is wanted and not complete yet goes before the one it replaces."""
    mine = [copy for copy in held if copy.generation == desktop.generation and copy.server != desktop.server]
    return min(mine, key=lambda c: (c.state is not CopyState.WANTED, c.server), default=None)


def _point(kept: _Kept) -> dict[str, object]:
    last = kept.last
    assert last is not None  # noqa: S101 - only those are told
    return {
        "desktop": kept.desktop.id,
        "generation": kept.desktop.generation,
        "server": kept.to,
        "as_of": last.as_of,
        "bytes": kept.bytes,
        # The clock was set back: what the log knows is of a time that has not come yet.
        **({"set_back": True} if last.as_of < kept.told else {}),
    }


def _size(disk: Path) -> int:
    try:
        return disk.stat().st_blocks * 512
    except OSError:
        return 0
