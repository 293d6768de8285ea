"""The loop that keeps this server's desktops as the state wants them.

Each round looks at the state and at the hypervisor, asks `reconcile` what to
do, and begins it. What takes long (a boot) runs as a job beside the loop; a job
is only a convenience: killed at any moment, the next round's `reconcile` goes
on from what it then finds. When the hypervisor does not answer nothing is
concluded and nothing fails: the reason is told and the next round looks again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import KmgrError, Unavailable
from kmgr.grid.model import MACHINES
from kmgr.grid.port import Grid
from kmgr.grid.queries import servers, settings
from kmgr.ids import DesktopId, TemplateId, VersionId
from kmgr.provision import disks
from kmgr.provision.deadlines import Deadlines, pause
from kmgr.provision.happening import Events
from kmgr.provision.hypervisor import DomainState, DomainStatus, Hypervisor
from kmgr.provision.lease import MARGIN_S
from kmgr.provision.listening import Listening
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.queries import desktops, outline
from kmgr.provision.reconcile import (
    POWER_OFF_WINDOW_S,
    Action,
    BootAgain,
    Build,
    Fail,
    Quiet,
    Remove,
    RemoveStray,
    Restart,
    Revive,
    Sleep,
    Wake,
    being_made,
    reconcile,
)
from kmgr.provision.shape import Shape
from kmgr.provision.storm_watch import StormWatch
from kmgr.provision.timely import Blocking, disk_calls
from kmgr.provision.warm import Choice, Key, is_builder, sleepers
from kmgr.provision.work import Personal, Work
from kmgr.templates.queries import templates

__all__ = ["ProvisionAgent", "Shape"]

logger = logging.getLogger(__name__)

PERIOD_S = 2.0
# How often everything is looked at while all is as it should be and the hypervisor tells what happens.
CALM_S = 30.0
_NOT_ASKED = "This server has not asked its hypervisor yet: it has just started."
_LACKING = "waiting for the golden image to arrive on this server"
# QEMU halts a guest whose writes the disk does not take. It is let go on in every round; this often, it is told.
_HALTED_LOOKS = 3
_HALTED = (
    "{} desktops of this server are halted again and again ({}): that happens when its disk is full. Make room; they "
    "go on by themselves."
)
_WARMING = "waiting for a memory to be saved that it can be restored from"
_EDITED = "somebody changed its domain by hand: {}. It is made as it was when it is started next"
_ARE_EDITED = (
    "The domains of {} desktops of this server were changed by hand ({}: {}). kmgr makes them as they were when they "
    "are started next; change the template instead."
)
_QUEUED = "waiting for its turn: this server makes {} desktops at a time"


class ProvisionAgent:
    """This server's keeper of desktops. `run()` is the loop, `run_once()` one round of it."""

    def __init__(
        self,
        grid: Grid,
        hypervisor: Hypervisor,
        *,
        clock: Clock,
        shape: Shape,
        blocking: Blocking | None = None,
        personal: Personal | None = None,
        elsewhere: Callable[[], Collection[DesktopId]] = frozenset,
        events: Events | None = None,
        storm: StormWatch | None = None,
    ) -> None:
        self._grid = grid
        self._hypervisor = hypervisor
        self._clock = clock
        self._shape = shape
        self._storm = storm
        self._blocking = blocking or disk_calls(_DISK_ADVICE).call
        self._work = Work(
            grid, hypervisor, clock=clock, shape=shape, blocking=self._blocking, personal=personal, storm=storm
        )
        self._personal = personal
        # Desktops that come from or go to another server while they run: nothing is concluded about them.
        self._elsewhere = elsewhere
        self.making = self._work.making()
        self._jobs: dict[DesktopId, asyncio.Task[None]] = {}
        self._building: set[DesktopId] = set()
        self._job_ended = asyncio.Event()
        self._problem = _NOT_ASKED
        self._waiting: Mapping[DesktopId, str] = {}
        self._edited: Mapping[DesktopId, str] = {}
        self._seen: dict[DesktopId, DomainState] = {}
        self._power_offs: dict[DesktopId, list[float]] = {}
        self._paused: Mapping[DesktopId, int] = {}
        self._asleep: frozenset[DesktopId] = frozenset()
        self._warm_job: asyncio.Task[None] | None = None
        self._deadlines = Deadlines()
        self._late = ""
        self._pause = ""
        self._words: dict[DesktopId, str] = {}
        self._ear = Listening(events, clock=clock)
        self._calm = False

    def problems(self) -> tuple[str, ...]:
        """Return what a person should look after on this server: why it runs no desktops, or not all of them."""
        halted = sorted(desktop for desktop, looks in self._paused.items() if looks >= _HALTED_LOOKS)
        told = [_HALTED.format(len(halted), ", ".join(halted[:3]))] if halted else []
        more = [one for one in (self._late, self._pause) if one]
        if self._edited:
            first = min(self._edited)
            more.append(_ARE_EDITED.format(len(self._edited), first, self._edited[first]))
        return (self._problem,) if self._problem else (*told, *more)

    def can_run(self) -> bool:
        """Tell whether new desktops may be made here: the hypervisor answered, none broke by this server's fault."""
        return not self._problem and not self._pause

    def waiting(self, desktop: DesktopId) -> str:
        """Return what a desktop waits for on this server, empty if nothing."""
        edited = self._edited.get(desktop)
        return self._waiting.get(desktop) or (_EDITED.format(edited) if edited else "")

    def vitals(self) -> Mapping[str, Any]:
        """Return what this part adds to the heartbeat."""
        return {
            "can_run_desktops": self.can_run(),
            "problems": list(self.problems()),
            "accelerator": self._shape.accelerator,
            "extra": {
                "waiting": self._told_waiting(),
                MACHINES: list(self._work.machines),
                **self._work.vitals(),
                **(self._storm.vitals() if self._storm is not None else {}),
            },
        }

    def _told_waiting(self) -> dict[DesktopId, str]:
        return {desktop: self.waiting(desktop) for desktop in sorted({*self._waiting, *self._edited})}

    async def try_clones(self, template: TemplateId) -> None:
        """Let what could not be restored of a template be tried again, in a round that begins now."""
        await self._work.warming.try_again(template)
        self._job_ended.set()

    async def run(self) -> None:
        """Do rounds until cancelled: when a desktop of this server changes, after each job, every two seconds.

        While all is calm and the hypervisor tells by itself what happens, every half minute.
        """
        ear = asyncio.ensure_future(self._ear.run())
        try:
            while True:
                self._job_ended.clear()
                self._ear.looked()
                looked_at, applied = self._outline(), self._grid.status().applied
                try:
                    await self.run_once()
                except KmgrError as error:
                    logger.info("a round over the desktops was cut short", extra={"cause": error.message})
                except Exception:
                    logger.exception("a round over the desktops failed by a bug; the next one looks again")
                await self._until_something_happens(looked_at, applied)
        finally:
            ear.cancel()
            await asyncio.gather(ear, return_exceptions=True)
            await self.stop()

    async def stop(self) -> None:
        """End the jobs; domains run on, the next start goes on with them."""
        jobs = [*self._jobs.values(), *([self._warm_job] if self._warm_job else [])]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def run_once(self) -> tuple[Action, ...]:
        """Look, decide, begin; returns what was begun."""
        busy = {*self._jobs, *self._elsewhere()}  # also whose job ends during this look: the next round judges them
        with self._grid.view() as db:
            if not any(server.id == self._grid.server for server in servers(db)):
                return ()  # the state of the grid has not arrived here yet: nobody's desktop is judged by it
            wanted, limits = desktops(db, server=self._grid.server), settings(db)
            known = templates(db)
        self._wake_claimed(wanted)
        busy |= set(self._jobs)
        self._pause = pause(wanted, now_ms=self._clock.now_ms())
        try:
            found = await self._hypervisor.domains()
            observed = tuple(status for status in found if not is_builder(status.desktop))
            absent = await self._absent(wanted)
            lying = await self._blocking(lambda: disks.overlays(self._shape.data_dir))
            await self._work.look()
            await self._work.warming.clear([s.desktop for s in found if is_builder(s.desktop)])
            room = max(0, self._at_once() - self._coming())
            choice = await self._work.warming.look(wanted, known, absent=absent, room=room)
        except Unavailable as error:
            self._cannot(error.message)
            return self._give_up(wanted, busy, frozenset(), limits)
        self._cannot("")
        self._count_power_offs(observed, busy)
        self._edited = {d.desktop: d.edited for d in observed if d.edited}
        leased = self._leased()
        asleep = sleepers(wanted, known, now_ms=self._clock.now_ms())
        still = asleep | {d.id for d in wanted if d.state is DesktopState.BROKEN}
        halted = [d for d in observed if d.state is DomainState.PAUSED and d.desktop not in still]
        self._asleep = frozenset(d.desktop for d in observed if d.state is DomainState.PAUSED) & asleep
        self._paused = {d.desktop: self._paused.get(d.desktop, 0) + 1 for d in halted if leased or not d.personal}
        unruly = self._ear.unruly([d.id for d in wanted if d.state is DesktopState.IN_USE])
        for desktop in unruly.keys() & self._building:  # the next round reports it
            self._jobs[desktop].cancel()
        actions = tuple(
            reconcile(
                wanted,
                observed,
                busy=busy,
                unruly=unruly,
                room=room,
                absent=absent,
                power_offs={desktop: len(times) for desktop, times in self._power_offs.items()},
                leased=leased,
                held=choice.held,
                sleepers=asleep,
            )
        )
        actions += self._stray_disks(lying, {d.id for d in wanted} | {d.desktop for d in observed} | busy)
        for action in actions:
            self._begin(action)
        self._begin_warm(choice)
        self._waiting = self._waits(wanted, absent, choice.held)
        actions += self._give_up(wanted, busy | set(self._jobs), absent, limits)
        self._calm = not (actions or self._jobs or self._words or self._waiting or self._paused or self._late)
        return actions

    def _give_up(
        self,
        wanted: Sequence[Desktop],
        busy: Collection[DesktopId],
        absent: Collection[VersionId],
        limits: Mapping[str, int],
    ) -> tuple[Action, ...]:
        """Report those that are past their deadline as broken, also while the hypervisor does not answer."""
        now = self._clock.monotonic()
        # Who waits for its turn waits for builds that have deadlines of their own.
        queued = (
            {d.id for d in being_made(wanted) if d.state is DesktopState.PLACED} - set(busy)
            if self._building or self._warm_job is not None
            else ()
        )
        self._deadlines.look(wanted, now=now, queued=queued, absent=absent)
        self._words = {d.id: self._words[d.id] for d in wanted if d.id in self._words}
        self._late = self._deadlines.told(wanted, now=now, limits=limits, words=self._words)
        failures = tuple(
            self._deadlines.failures(
                wanted, now=now, limits=limits, busy=busy, words=self._words, problem=self._problem
            )
        )
        for failure in failures:
            self._begin(failure)
        return failures

    def _at_once(self) -> int:
        """Return how many desktops may be coming up at once now."""
        return self._shape.max_builds if self._storm is None else self._storm.limit

    def _coming(self) -> int:
        return len(self._building) + (self._warm_job is not None)

    def _note_coming(self) -> None:
        if self._storm is not None:
            self._storm.coming(self._coming())

    def _leased(self) -> bool:
        return self._personal is not None and self._personal.lease.holds(MARGIN_S)

    def _begin(self, action: Action) -> None:
        match action:
            case Remove(desktop, why, retired):
                self._power_offs.pop(desktop, None)
                self._ear.forget(desktop)
                self._job(desktop, partial(self._work.remove, desktop, why, retired))
            case RemoveStray(desktop):
                self._job(desktop, partial(self._work.remove_stray, desktop))
            case Build(desktop):
                self._building.add(desktop.id)
                self._note_coming()
                self._job(desktop.id, partial(self._power_on, self._work.build, desktop))
            case Restart(desktop):
                restart = partial(self._work.restart, edited=desktop.id in self._edited)
                self._job(desktop.id, partial(self._power_on, restart, desktop))
            case Wake(desktop):
                self._job(desktop.id, partial(self._power_on, self._work.wake, desktop))
            case Sleep(desktop):
                self._asleep |= {desktop.id}
                self._job(desktop.id, partial(self._work.sleep, desktop))
            case Revive(desktop):
                self._job(desktop.id, partial(self._power_on, self._work.revive, desktop))
            case BootAgain(desktop):
                self._job(desktop.id, partial(self._work.boot_again, desktop))
            case Quiet(desktop):
                self._job(desktop.id, partial(self._hypervisor.suspend, desktop.id))
            case Fail(desktop, step, cause):
                self._ear.forget(desktop.id)
                self._job(desktop.id, partial(self._work.fail, desktop, step, cause))

    def _wake_claimed(self, wanted: Sequence[Desktop]) -> None:
        """Let go on what was claimed while it slept, before anything else is looked at: somebody waits for it."""
        for desktop in wanted:
            if desktop.state is DesktopState.IN_USE and desktop.id in self._asleep and desktop.id not in self._jobs:
                self._asleep -= {desktop.id}
                self._begin(Wake(desktop))

    def _begin_warm(self, choice: Choice) -> None:
        key = None if choice.make is None else self._work.warming.key(choice.make.id)
        if choice.make is not None and key is not None and self._warm_job is None:
            self._warm_job = asyncio.ensure_future(self._warm(choice.make, key))

    async def _warm(self, desktop: Desktop, key: Key) -> None:
        try:
            await self._work.warm(desktop, key)
            self._job_ended.set()
        except (KmgrError, OSError) as error:
            logger.info("saving a memory was cut short", extra={"key": key, "cause": str(error)})
        except Exception:
            logger.exception("saving a memory failed by a bug", extra={"key": key})
        finally:
            self._warm_job = None

    async def _power_on(self, work: Callable[[Desktop], Awaitable[None]], desktop: Desktop) -> None:
        await work(desktop)
        # One that goes off before the next look was running all the same.
        self._seen[desktop.id] = DomainState.RUNNING

    def _job(self, desktop: DesktopId, work: Callable[[], Awaitable[None]]) -> None:
        self._jobs[desktop] = asyncio.ensure_future(self._guarded(desktop, work))

    async def _guarded(self, desktop: DesktopId, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
            self._words.pop(desktop, None)
            # Only then: what failed is tried again after the period, not at once and for ever.
            self._job_ended.set()
        except KmgrError as error:
            self._words[desktop] = error.message
            logger.info("work on a desktop was cut short", extra={"desktop": desktop, "cause": error.message})
        except OSError as error:
            self._words[desktop] = str(error)
            logger.warning("a disk refused work on a desktop", extra={"desktop": desktop, "cause": str(error)})
        except Exception:
            logger.exception("work on a desktop failed by a bug", extra={"desktop": desktop})
        finally:
            self._jobs.pop(desktop, None)
            self._building.discard(desktop)
            self._note_coming()

    async def _absent(self, wanted: Sequence[Desktop]) -> frozenset[VersionId]:
        versions = sorted({desktop.version for desktop in being_made(wanted)})
        if not versions:
            return frozenset()
        backing = self._shape.backing
        return await self._blocking(lambda: frozenset(v for v in versions if backing(v) is None))

    def _waits(
        self, wanted: Sequence[Desktop], absent: Collection[VersionId], held: Collection[DesktopId]
    ) -> Mapping[DesktopId, str]:
        halted = (
            {}
            if self._personal is None or self._leased()
            else {desktop.id: self._personal.lease.why_not for desktop in wanted if desktop.personal}
        )
        return {
            desktop.id: _LACKING
            if desktop.version in absent
            else _WARMING
            if desktop.id in held
            else _QUEUED.format(self._at_once())
            for desktop in being_made(wanted)
            if desktop.id not in self._jobs
        } | halted

    def _stray_disks(self, lying: Collection[DesktopId], known: Collection[DesktopId]) -> tuple[RemoveStray, ...]:
        return tuple(RemoveStray(desktop) for desktop in sorted(lying) if desktop not in known)

    def _cannot(self, problem: str) -> None:
        if problem != self._problem:
            if problem:
                logger.warning("this server cannot run desktops at present", extra={"cause": problem})
            else:
                logger.info("this server can run desktops")
        self._problem = problem

    def _count_power_offs(self, observed: Sequence[DomainStatus], busy: Collection[DesktopId]) -> None:
        """Count who was running at the last look and is off now; after a power cut of the server that is nobody."""
        now = self._clock.monotonic()
        seen = {status.desktop: status.state for status in observed}
        for desktop, state in sorted(seen.items()):
            if desktop in busy:  # what it does is our doing
                seen[desktop] = self._seen.get(desktop, state)
            elif state is DomainState.OFF and self._seen.get(desktop) is DomainState.RUNNING:
                self._power_offs.setdefault(desktop, []).append(now)
        recent = {
            desktop: [at for at in times if now - at < POWER_OFF_WINDOW_S]
            for desktop, times in self._power_offs.items()
        }
        self._power_offs = {desktop: times for desktop, times in recent.items() if times}
        self._seen = seen

    async def _until_something_happens(self, looked_at: tuple[Any, ...], applied: int) -> None:
        began, leased = self._clock.monotonic(), self._leased()
        job = asyncio.ensure_future(self._job_ended.wait())
        heard = asyncio.ensure_future(self._ear.heard())
        try:
            # The grid changes all the time; hypervisor and disks are only asked when it concerns this server.
            while not job.done() and not heard.done():
                left_s = began + (CALM_S if self._calm and self._ear.flows else PERIOD_S) - self._clock.monotonic()
                if left_s <= 0:
                    return
                change = asyncio.ensure_future(self._grid.changed(applied, timeout_s=min(left_s, PERIOD_S)))
                try:
                    await asyncio.wait((change, job, heard), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    change.cancel()
                    await asyncio.gather(change, return_exceptions=True)
                applied = self._grid.status().applied
                if self._outline() != looked_at or self._leased() != leased:
                    return
        finally:
            for waiting in (job, heard):
                waiting.cancel()
            await asyncio.gather(job, heard, return_exceptions=True)

    def _outline(self) -> tuple[Any, ...]:
        with self._grid.view() as db:
            return outline(db, self._grid.server)


_DISK_ADVICE = "Look after it: dmesg and smartctl tell more."
