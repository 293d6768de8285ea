"""What is done to one desktop: make it, power it on again, remove it, report it.

Every step may be done twice and goes on wherever a former one was cut off.
`Refused` and a disk's `OSError` make a desktop broken, by step and cause;
`Unavailable` only ends this attempt: the next round begins another one.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import KmgrError, Refused, Unavailable
from kmgr.grid.envelope import Applied, Rejected
from kmgr.grid.port import Grid
from kmgr.grid.queries import settings
from kmgr.ids import DesktopId, TemplateId
from kmgr.provision import disks, firmware, identity, seed
from kmgr.provision.arriving import Making
from kmgr.provision.causes import counts, recognise
from kmgr.provision.guest import printed, set_clock, silence
from kmgr.provision.hypervisor import DomainSpec, DomainState, Hypervisor
from kmgr.provision.lease import MARGIN_S, Lease
from kmgr.provision.model import Desktop, DesktopState, Origin, Purpose
from kmgr.provision.move_rows import cold_mark
from kmgr.provision.outfit import pending
from kmgr.provision.personal_disks import PersonalDisks
from kmgr.provision.queries import desktop as find_desktop
from kmgr.provision.shape import MadeFrom, Shape, made_from
from kmgr.provision.steps import StepFailed, in_step, words
from kmgr.provision.storm_watch import StormWatch
from kmgr.provision.timely import Blocking
from kmgr.provision.warm import Key
from kmgr.provision.warming import Order, Warming
from kmgr.templates.policy import Seed

logger = logging.getLogger(__name__)

POLL_S = 0.5
# A guest that just answered runs a small program at once; nobody waits longer for a desktop because of its name.
_NAMED_S = 10.0
# A guest that went off while it was booting is looked for less often than its agent.
_POLLS_A_LOOK = 4


@dataclass(frozen=True, slots=True)
class Personal:
    """What personal desktops need besides: the right to run, and their disks that went elsewhere or came here."""

    lease: Lease
    disks: PersonalDisks


class Work:
    """The steps on one server's desktops. `blocking` runs what touches a disk. No `personal`: none of those run."""

    def __init__(
        self,
        grid: Grid,
        hypervisor: Hypervisor,
        *,
        clock: Clock,
        shape: Shape,
        blocking: Blocking,
        personal: Personal | None = None,
        storm: StormWatch | None = None,
    ) -> None:
        self._grid = grid
        self._hypervisor = hypervisor
        self._clock = clock
        self._shape = shape
        self._blocking = blocking
        self._personal = personal
        self._storm = storm
        self._installed = firmware.Installed(shape.fittings, clock=clock)
        self._unnamed: dict[TemplateId, str] = {}
        self.warming = Warming(
            hypervisor,
            clock=clock,
            data_dir=shape.data_dir,
            display=shape.display,
            spec=lambda desktop: self._spec(desktop, self._made_from(desktop)),
            blocking=blocking,
            mode=shape.instant_clones,
        )

    async def look(self) -> None:
        """Note what kinds of machines can be made here, if it is time to look again."""
        if self._installed.is_due():
            await self._blocking(self._installed.look)

    @property
    def machines(self) -> tuple[str, ...]:
        """Return what machines can be made of here besides the usual, as the heartbeat tells it."""
        return self._installed.fittings.has

    def vitals(self) -> Mapping[str, Any]:
        """Return what the heartbeat says of how desktops come up here, and of whose guests keep the image's name."""
        unnamed = {"unnamed": dict(self._unnamed)} if self._unnamed else {}
        return {**self.warming.vitals(), **unnamed}

    def making(self) -> Making:
        """Return how desktops are made here, for one that arrives while it runs."""
        return Making(
            lambda desktop: self._spec(desktop, self._made_from(desktop)),
            lambda desktop: self._clone(desktop, self._made_from(desktop)),
        )

    async def build(self, desktop: Desktop) -> None:
        """Make the linked clone and the domain, start it, wait for its guest, and report how that ended."""
        if desktop.state is DesktopState.PLACED and not await self._report("desktop.building", desktop):
            return
        started = self._clock.monotonic()
        try:
            made = self._made_from(desktop)
            await in_step("installer", self._installers_there(made))
            origin = await self._make(desktop, made)
            # An installer has no guest agent: whoever asked for it looks at its screen.
            if not made.installers:
                if not await self._guest(desktop, started):
                    return
                if origin is Origin.COLD:
                    await self._name(desktop, made)
        except (Refused, OSError) as error:
            await self.fail(desktop, getattr(error, "step", "building"), words(error))
            return
        took = round(self._clock.monotonic() - started, 1)
        if self._storm is not None and desktop.state is DesktopState.PLACED:  # else a part of it was done before
            self._storm.booted((desktop.version, desktop.vcpus, desktop.memory_mib, origin), took)
        if await self._report("desktop.ready", desktop, origin=origin):
            logger.info("a desktop is ready", extra={"desktop": desktop.name, "took_s": took, "origin": origin})

    async def warm(self, desktop: Desktop, key: Key) -> None:
        """Save a memory that desktops like this one can be restored from."""
        with self._grid.view() as db:
            limit_s = settings(db)["build_timeout_s"]
        backing = await self._blocking(lambda: self._shape.backing(desktop.version))
        if backing is not None:
            spec = self._spec(desktop, self._made_from(desktop))
            await self.warming.make(Order(key, spec, desktop.version, backing, limit_s))

    async def boot_again(self, desktop: Desktop) -> None:
        """Report that a standby boots again; refused if somebody has got it by now, who keeps it."""
        if await self._report("desktop.building", desktop):
            logger.info("a standby is off and boots again", extra={"desktop": desktop.name})

    async def restart(self, desktop: Desktop, *, edited: bool = False) -> None:
        """Power a desktop on again, on the disk that it has; first undo what a person `edited` in its domain."""
        if await self._is_a_part(desktop):
            return
        if not await self._blocking(self._shape.disk(desktop.id).exists):
            await self.fail(desktop, "run", "its disk is gone from this server: somebody removed it by hand")
            return
        try:
            desktop, made = await self._outfitted(desktop)
            if edited:
                await self._hypervisor.redefine(self._spec(desktop, made))
            await self._start(desktop)
        except Refused as error:
            await self.fail(desktop, "start", error.message)
            return
        logger.info("a desktop was powered on again", extra={"desktop": desktop.name})

    async def wake(self, desktop: Desktop) -> None:
        """Let a desktop that slept go on, and tell it the time."""
        if await self._is_a_part(desktop):
            return
        await self._start(desktop)
        logger.info("a desktop that slept goes on", extra={"desktop": desktop.name})
        try:
            await set_clock(self._hypervisor, self._clock, desktop.id)
        except Refused as error:  # it works all the same; most guests ask the network for the time
            logger.info("a desktop was not told the time", extra={"desktop": desktop.name, "cause": error.message})

    async def _is_a_part(self, desktop: Desktop) -> bool:
        """Tell whether a domain is only what had arrived of a desktop when its server was lost, and remove that."""
        if self._personal is None:
            return False
        personal = self._personal.disks
        if not await self._blocking(lambda: personal.awaits(desktop)):
            return False
        await self._hypervisor.remove(desktop.id)  # the next round gives it its disk
        logger.warning(
            "a part of a desktop was removed: it starts from its safe copy", extra={"desktop": desktop.name}
        )
        return True

    async def sleep(self, desktop: Desktop) -> None:
        """Have a standby sleep until it is claimed."""
        await self._hypervisor.suspend(desktop.id)
        if not self._still_wanted(desktop, DesktopState.READY):  # claimed meanwhile: whoever looks next wakes it
            await self.wake(desktop)

    async def revive(self, desktop: Desktop) -> None:
        """Define a personal desktop's domain anew and start it: on its own disk, or on its safe copy that is here."""
        if self._personal is None:
            raise Unavailable("this server cannot run personal desktops")
        self._check_lease(desktop)
        try:
            as_of = await in_step("safe copy", self._personal.disks.bring(desktop))
            if not await self._blocking(self._shape.disk(desktop.id).exists):
                await self.fail(desktop, "run", "its disk is gone from this server: somebody removed it by hand")
                return
            desktop, made = await self._outfitted(desktop, has_domain=False)
            await in_step("domain", self._hypervisor.define(self._spec(desktop, made)))
            await in_step("start", self._start(desktop))
        except (Refused, OSError) as error:
            await self.fail(desktop, getattr(error, "step", "run"), words(error))
            return
        logger.info("a personal desktop goes on here", extra={"desktop": desktop.name, "as_of": as_of})
        if as_of is not None:
            await self._personal.disks.tell(desktop, as_of)

    async def remove(self, desktop: DesktopId, why: str, retired: Desktop | None = None) -> None:
        """Remove domain, clone and what lies around them; of a retired one this is reported."""
        await self._hypervisor.remove(desktop)
        await self._blocking(lambda: self._clean(desktop, retired=retired is not None))
        logger.info("a desktop was removed", extra={"desktop": desktop, "why": why})
        if retired is not None:
            await self._report("desktop.removed", retired)

    async def remove_stray(self, desktop: DesktopId) -> None:
        """Remove what no record explains. The log is asked first: this server's copy of the state may be behind."""
        asked = {"desktop": desktop, "server": self._grid.server}
        answer = await self._grid.propose("desktop.stray", asked, by=self._grid.server)
        if isinstance(answer, Applied) and not answer.values["wanted"]:
            await self.remove(desktop, "it does not belong to this server (any more)")

    async def fail(self, desktop: Desktop, step: str, cause: str) -> None:
        """Report a desktop as broken, with the step and the cause."""
        logger.warning("a desktop is broken", extra={"desktop": desktop.name, "step": step, "cause": cause})
        trouble = recognise(step, cause)
        await self._report(
            "desktop.failed", desktop, step=step, cause=cause, trouble=trouble, against=counts(trouble)
        )

    async def _make(self, desktop: Desktop, made: MadeFrom) -> Origin:
        """Have its domain run, restored or booting."""
        observed = {status.desktop: status for status in await self._hypervisor.domains()}
        known = observed.get(desktop.id)
        # One that is provisional was being restored when this daemon ended: nobody knows how far it got.
        kept = known is not None and known.generation == desktop.generation and not known.provisional
        if known is not None and kept and known.state is DomainState.RUNNING:
            return Origin.COLD  # an attempt before this one got so far
        if known is not None and known.provisional:
            await self._hypervisor.remove(desktop.id)
        if not kept and await self.warming.restored(desktop, self._spec(desktop, made)):
            return Origin.WARM
        if not kept or not await self._blocking(self._shape.disk(desktop.id).exists):
            await in_step("linked clone", self._blocking(lambda: self._clone(desktop, made)))
        await in_step("seed", self._seeded(desktop, made))
        spec = self._spec(desktop, made)  # not before the clone, which looks again for what its machine needs
        await in_step("domain", self._hypervisor.define(spec))
        if known is not None and kept and known.edited:
            await in_step("domain", self._hypervisor.redefine(spec))
        await in_step("start", self._start(desktop))
        return Origin.COLD

    async def _outfitted(self, desktop: Desktop, *, has_domain: bool = True) -> tuple[Desktop, MadeFrom]:
        """Give a desktop that is to be started what its template says by now; return both as they are then."""
        made = self._made_from(desktop)
        await self._seeded(desktop, made)
        if made.template is None or not pending(desktop, made.template):
            return desktop, made
        try:
            if not await self._report("desktop.outfitted", desktop):
                return desktop, made
        except KmgrError as error:  # it starts with what it had rather than not at all
            logger.info("a desktop starts as it was", extra={"desktop": desktop.name, "cause": error.message})
            return desktop, made
        with self._grid.view() as db:
            desktop = find_desktop(db, desktop.id) or desktop
            made = made_from(db, desktop)
        if has_domain:
            await self._hypervisor.redefine(self._spec(desktop, made))
        logger.info("a desktop has what its template says now", extra={"desktop": desktop.name})
        return desktop, made

    async def _seeded(self, desktop: Desktop, made: MadeFrom) -> None:
        """Write the disk for the guest's first boot and its firmware's variables, where its template wants them."""
        of = made.template
        data = seed.disk(desktop, of.policy, template=of.name) if of is not None else b""
        if data:
            await self._blocking(lambda: disks.write_whole(self._shape.seed(desktop.id), data))
        await self._blocking(lambda: self._provide(desktop, made))

    async def _start(self, desktop: Desktop) -> None:
        self._check_lease(desktop)
        await self._hypervisor.start(desktop.id)

    async def _installers_there(self, made: MadeFrom) -> None:
        there = await self._blocking(lambda: [self._shape.backing(iso) is not None for iso in made.installers])
        if not all(there):
            which = "ISO with its drivers" if there[0] else "ISO that it is installed from"
            raise Refused(f"the {which} is not on this server: wait until it is, and try again")

    def _check_lease(self, desktop: Desktop) -> None:
        """Raise `Unavailable` unless this server may run it, and for long enough to have it started."""
        if not desktop.personal:
            return
        if self._personal is None or not self._personal.lease.holds(MARGIN_S):
            raise Unavailable(self._personal.lease.why_not if self._personal else "no personal desktops run here")
        with self._grid.view() as db:
            leaves = cold_mark(db, desktop.id)
        if leaves:
            raise Unavailable(f"desktop {desktop.name} is being shut down, to go on on another server")
        if not self._personal.lease.covers(desktop):
            raise Unavailable(
                f"desktop {desktop.name} has gone on elsewhere, or was made anew: nothing is started here"
            )

    def _clone(self, desktop: Desktop, made: MadeFrom) -> None:
        backing = self._shape.backing(desktop.version)
        if backing is None:
            raise Refused("its golden image is not on this server any more")
        disks.make_overlay(self._shape.disk(desktop.id), backing)
        self._provide(desktop, made)

    def _provide(self, desktop: Desktop, made: MadeFrom) -> None:
        """Have the firmware variables of a desktop that starts by UEFI lie beside its disk; blocks."""
        fittings = self._installed.before(made.machine)
        firmware.provide(self._shape.variables(desktop.id), fittings, made.machine, made.variables)

    def _made_from(self, desktop: Desktop) -> MadeFrom:
        with self._grid.view() as db:
            return made_from(db, desktop)

    async def _guest(self, desktop: Desktop, started: float) -> bool:
        """Wait until the guest answers; False if nobody wants this desktop any more."""
        with self._grid.view() as db:
            limit_s = settings(db)["build_timeout_s"]
        polls = 0
        while not await self._hypervisor.answers(desktop.id):
            if self._clock.monotonic() - started > limit_s:
                why = await silence(self._hypervisor, desktop.id) or (
                    "does the golden image boot, and does it run the QEMU guest agent? Its serial console is in "
                    f"{self._shape.log(desktop.id)}"
                )
                raise StepFailed("guest", f"the guest did not answer within {limit_s} s of its start: {why}")
            polls += 1
            if polls % _POLLS_A_LOOK == 0:
                await self._check_running(desktop)
            await self._clock.sleep(POLL_S)
            if not self._still_wanted(desktop):
                return False
        return True

    async def _name(self, desktop: Desktop, made: MadeFrom) -> None:
        """Give a guest that booted its name, as a restored one gets it; one that does not take it is no worse."""
        # A version is made of what is edited: it must not carry a name. A seed says the name itself.
        if desktop.purpose is Purpose.EDIT or made.template is None or made.policy.seed is not Seed.NONE:
            return
        program = identity.naming(desktop.name)
        try:
            said = await printed(self._hypervisor, self._clock, desktop.id, program, limit_s=_NAMED_S)
            why = identity.misnamed(desktop.name, identity.answer(said))
        except Refused as error:
            why = error.message
        if why:
            self._unnamed[desktop.template] = why
            logger.info("a desktop keeps the name of its image", extra={"desktop": desktop.name, "cause": why})
        else:
            self._unnamed.pop(desktop.template, None)

    async def _check_running(self, desktop: Desktop) -> None:
        states = {status.desktop: status.state for status in await self._hypervisor.domains()}
        if states.get(desktop.id) is not DomainState.RUNNING:
            raise StepFailed(
                "guest",
                "the guest went off before it answered: does the golden image boot? "
                f"Its serial console is in {self._shape.log(desktop.id)}",
            )

    def _still_wanted(self, desktop: Desktop, state: DesktopState | None = None) -> bool:
        with self._grid.view() as db:
            now = find_desktop(db, desktop.id)
        return (
            now is not None
            and (now.server, now.generation) == (desktop.server, desktop.generation)
            and (now.state is not DesktopState.RETIRED if state is None else now.state is state)
        )

    def _clean(self, desktop: DesktopId, *, retired: bool) -> None:
        if self._personal is not None and (retired or not self._personal.disks.set_aside(desktop)):
            self._personal.disks.forget(desktop)
        disks.remove_overlay(self._shape.disk(desktop))
        log, seeded = self._shape.log(desktop), self._shape.seed(desktop)
        # virtlogd keeps former parts of a long log beside it: .0, .1 and so on.
        for leftover in (self._shape.display(desktop), log, *log.parent.glob(f"{log.name}.*"), seeded):
            leftover.unlink(missing_ok=True)

    async def _report(self, command: str, desktop: Desktop, **more: Any) -> bool:
        body: Mapping[str, Any] = {
            "desktop": desktop.id,
            "generation": desktop.generation,
            "server": self._grid.server,
            **more,
        }
        outcome = await self._grid.propose(command, body, by=self._grid.server)
        if isinstance(outcome, Rejected):
            logger.info("a report came too late", extra={"desktop": desktop.name, "cause": outcome.detail})
            return False
        return True

    def _spec(self, desktop: Desktop, made: MadeFrom) -> DomainSpec:
        return self._shape.spec(desktop, made, self._installed.fittings)
