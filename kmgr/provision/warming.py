"""This server's saved memories: made, tried, used, deleted.

A memory is made beside the desktops: a builder that nobody will ever be given
boots, its memory is saved, two others are restored from it and compared. Only then
is it used. Whatever fails on the way makes its key `UNABLE` for a while (`warm_tries`):
desktops boot by themselves as before, and `notes` says why. Killed at any moment, what is
left is an unfinished folder and domains whose ids say that they are nobody's: both
are removed at the next look.
"""

import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.entropy import new_token
from kmgr.errors import Refused, Unavailable
from kmgr.ids import DesktopId, TemplateId, VersionId
from kmgr.provision import disks, domainxml, identity, warm, warm_files
from kmgr.provision.guest import PATIENCE_S, POLL_S, GuestFailed, printed
from kmgr.provision.hypervisor import DomainSpec, Hypervisor
from kmgr.provision.identity import Answer, Identity
from kmgr.provision.model import Desktop, Purpose
from kmgr.provision.timely import Blocking
from kmgr.provision.warm import BUILDER, Choice, Key, Standing, Warm
from kmgr.provision.warm_tries import Tries
from kmgr.templates.model import Template

logger = logging.getLogger(__name__)

# Of a server: have what could not be restored for a template tried again. body: template.
AGAIN = "clones.again"

# A guest that was just booted still starts things; a memory saved a little later needs not do them in every desktop.
SETTLE_S = 3.0
_MOST_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Order:
    """A memory to be made: for desktops like `spec`, of a version whose raw file is `backing`, within `limit_s`."""

    key: Key
    spec: DomainSpec
    version: VersionId
    backing: Path
    limit_s: float


class Warming:
    """The saved memories of this server. `display` says where a screen is, `spec` makes a desktop's domain."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        *,
        clock: Clock,
        data_dir: Path,
        display: Callable[[DesktopId], Path],
        spec: Callable[[Desktop], DomainSpec],
        blocking: Blocking,
        mode: str = "shared",
    ) -> None:
        self._hypervisor = hypervisor
        self._clock = clock
        self._data_dir = data_dir
        self._display = display
        self._spec = spec
        self._blocking = blocking
        self._mode = mode
        self._kept: dict[Key, Warm] | None = None
        self._keys: Mapping[DesktopId, Key] = {}
        self._known_keys: dict[tuple[object, ...], Key] = {}
        self._templates: Mapping[Key, frozenset[TemplateId]] = {}
        self._tries = Tries(data_dir, clock=clock, blocking=blocking)
        self._using: Counter[Key] = Counter()
        self._drawn: dict[Key, deque[str]] = {}
        self._notes: Mapping[TemplateId, str] = {}
        self.making: Key | None = None

    def vitals(self) -> Mapping[str, Any]:
        """Return what the heartbeat says of the memories here, and of templates whose desktops boot.

        `checked` are the versions of which clones were made and compared; `notes` say of a template why its desktops
        boot, `stopped` are those of which that is not tried any more.
        """
        kept = (self._kept or {}).values()
        if self._mode == "never" and not kept:
            return {}
        checked = sorted({one.version for one in kept})
        told = {"notes": dict(self._notes), "stopped": sorted(self._stopped()), "checked": checked}
        return {"warm": {"bytes": sum(one.bytes for one in kept), "n": len(kept), **told}}

    async def look(
        self,
        wanted: Sequence[Desktop],
        templates: Sequence[Template],
        *,
        absent: Collection[VersionId],
        room: int,
    ) -> Choice:
        """Delete what is of no use, and say who waits for a memory and for whom one is to be made."""
        kept = await self._loaded()
        self._keys = await self._keys_of(wanted, templates, absent)
        for key in warm.useless(kept.values(), set(self._keys.values()), templates, using=set(+self._using)):
            kept.pop(key)
            await self._blocking(lambda key=key: warm_files.remove(self._data_dir, key))  # type: ignore[misc]
            logger.info("a saved memory is not needed any more", extra={"key": key})
        standing = {key: self._standing(key) for key in self._keys.values()}
        self._notes = self._noted(wanted, templates)
        return warm.choose(wanted, self._keys, standing, room=room, doubted=self._tries.doubted)

    def key(self, desktop: DesktopId) -> Key | None:
        """Return the key of a desktop that need not boot, as of the last look."""
        return self._keys.get(desktop)

    async def try_again(self, template: TemplateId) -> None:
        """Let what failed for a template be tried again, at the next look: an administrator asks for it."""
        await self._tries.forget([key for key, of in self._templates.items() if template in of])

    async def make(self, order: Order) -> None:
        """Boot a builder, save its memory and try it; how it ended shows in the next look."""
        self.making = order.key
        started = self._clock.monotonic()
        try:
            made = await self._made(order)
        except (Refused, OSError) as error:
            await self._blocking(lambda: warm_files.remove(self._data_dir, order.key))
            await self._tries.failed(order.key, str(error))
        except Unavailable:
            raise  # nothing is wrong with it: the next look begins again
        except Exception:
            await self._tries.failed(order.key, "saving its memory failed by a bug of kmgr, see the server's log")
            raise
        else:
            (await self._loaded())[made.key] = made
            took = round(self._clock.monotonic() - started, 1)
            logger.info("a memory is saved", extra={"key": made.key, "took_s": took, "bytes": made.bytes})
        finally:
            self.making = None

    async def restored(self, desktop: Desktop, spec: DomainSpec) -> bool:
        """Make a desktop from a saved memory, ready but for the report; False: there is none, it has to boot."""
        key = self._keys.get(desktop.id)
        held = None if key is None else (await self._loaded()).get(key)
        if key is None or held is None:
            return False
        self._using[key] += 1
        where = warm_files.folder(self._data_dir, key)
        try:
            await self._restore(spec, where, key)
            await self._hypervisor.define(spec)
        except (Refused, OSError) as error:
            await self._hypervisor.remove(desktop.id)
            (await self._loaded()).pop(key, None)
            await self._blocking(lambda: warm_files.remove(self._data_dir, key))
            await self._tries.failed(key, str(error))
            return False
        finally:
            self._using[key] -= 1
        await self._tries.forget([key])
        return True

    async def clear(self, seen: Collection[DesktopId]) -> None:
        """Remove builders that nobody works on: they are left from a former life of this daemon."""
        for one in sorted(seen):
            if self.making is None or not one.startswith(f"{BUILDER}{self.making}"):
                await self._hypervisor.remove(one)
                logger.info("a builder of a former life was removed", extra={"domain": one})

    # -- making ----------------------------------------------------------------------------------------------------

    async def _made(self, order: Order) -> Warm:
        if self._mode == "shared":
            try:
                return await self._made_so(order, shared=True)
            except GuestFailed:
                raise
            except Refused as error:
                logger.warning("memory cannot be shared, each desktop gets its own", extra={"cause": error.message})
        return await self._made_so(order, shared=False)

    async def _made_so(self, order: Order, *, shared: bool) -> Warm:
        data_dir, key, memory_mib = self._data_dir, order.key, order.spec.memory_mib
        where = await self._blocking(lambda: warm_files.begin(data_dir, key, memory_mib=memory_mib, shared=shared))
        builder = self._builder(order, "", where / warm_files.DISK)
        if shared:
            builder = replace(builder, ram=str(where / warm_files.RAM))
        await self._blocking(lambda: disks.make_overlay(Path(builder.disk), order.backing))
        try:
            await self._hypervisor.define(builder)
            await self._hypervisor.start(builder.desktop)
            await self._answers(builder.desktop, order.limit_s)
            # Windows, or an agent that runs no programs: others wait for this, so it ends before anything is saved.
            await printed(self._hypervisor, self._clock, builder.desktop, identity.nothing())
            await self._clock.sleep(SETTLE_S)
            await self._hypervisor.save_warm(builder.desktop, str(where))
            await self._blocking(lambda: disks.sync(Path(builder.disk)))
            samples = await self._tried(order, where)
        finally:
            await self._gone(builder)
        made = Warm(key, order.version, order.spec.vcpus, memory_mib, samples=samples)
        return await self._blocking(lambda: warm_files.finish(data_dir, made))

    async def _tried(self, order: Order, where: Path) -> tuple[str, ...]:
        """Restore two, one after the other, and return what they drew; `Refused` if they are not each their own."""
        drawn: list[str] = []
        for number in ("1", "2"):
            spec = self._builder(order, f"-{number}", where / f"try-{number}.qcow2")
            try:
                told = await self._restore(spec, where, order.key)
            finally:
                await self._gone(spec)
                await self._blocking(lambda spec=spec: Path(spec.disk).unlink(missing_ok=True))  # type: ignore[misc]
            drawn.append(told.sample)
        return tuple(drawn)

    def _builder(self, order: Order, suffix: str, disk: Path) -> DomainSpec:
        name = DesktopId(f"{BUILDER}{order.key}{suffix}")
        return replace(
            order.spec,
            desktop=name,
            generation=0,
            name=f"warm{suffix}",
            disk=str(disk),
            display=str(self._display(name)),
            log=str(disk.with_name("console.log")),
        )

    async def _gone(self, spec: DomainSpec) -> None:
        with contextlib.suppress(Unavailable):  # then the next look removes it
            await self._hypervisor.remove(spec.desktop)
        await self._blocking(lambda: Path(spec.display).unlink(missing_ok=True))

    # -- using -----------------------------------------------------------------------------------------------------

    async def _restore(self, spec: DomainSpec, where: Path, key: Key) -> Answer:
        await self._blocking(lambda: disks.copy_overlay(Path(spec.disk), where / warm_files.DISK))
        await self._hypervisor.restore_warm(spec, str(where))
        await self._answers(spec.desktop, PATIENCE_S)
        now_s = round(self._clock.now_ms() / 1000)
        wanted = Identity(spec.name, domainxml.spec_mac(spec), new_token(), now_s)
        said = await printed(self._hypervisor, self._clock, spec.desktop, identity.program(wanted))
        told = identity.answer(said)
        drawn = self._drawn.setdefault(key, deque(maxlen=_MOST_SAMPLES))
        if found := identity.problem(wanted, told, drawn=tuple(drawn)):
            raise GuestFailed(f"a desktop restored from it is not one of its own: {found}")
        drawn.append(told.sample)
        return told

    async def _answers(self, desktop: DesktopId, limit_s: float) -> None:
        deadline = self._clock.monotonic() + limit_s
        while not await self._hypervisor.answers(desktop):
            if self._clock.monotonic() > deadline:
                raise GuestFailed(f"its guest did not answer within {limit_s:g} s")
            await self._clock.sleep(POLL_S)

    # -- standing --------------------------------------------------------------------------------------------------

    async def _loaded(self) -> dict[Key, Warm]:
        if self._kept is None:
            kept, unfinished = await self._blocking(
                lambda: (warm_files.kept(self._data_dir), warm_files.unfinished(self._data_dir))
            )
            for key in unfinished:
                await self._blocking(lambda key=key: warm_files.remove(self._data_dir, key))  # type: ignore[misc]
            await self._tries.load()
            self._kept = {one.key: one for one in kept}
            self._drawn = {one.key: deque(one.samples, maxlen=_MOST_SAMPLES) for one in kept}
        return self._kept

    async def _keys_of(
        self, wanted: Sequence[Desktop], templates: Sequence[Template], absent: Collection[VersionId]
    ) -> Mapping[DesktopId, Key]:
        able = {t.id: t for t in templates if self._mode != "never" and not warm.why_boots(t)}
        mine = [
            d
            for d in wanted
            if d.template in able and d.version not in absent and d.user is None and d.purpose is Purpose.USE
        ]
        self._templates = {}
        if not mine:
            return {}
        hardware = await self._hypervisor.hardware()
        keys: dict[DesktopId, Key] = {}
        templates_of: dict[Key, frozenset[TemplateId]] = {}
        for desktop in mine:
            shape = (desktop.version, desktop.vcpus, desktop.memory_mib, able[desktop.template], hardware)
            if shape not in self._known_keys:
                self._known_keys[shape] = warm.key(self._spec(desktop), desktop.version, hardware)
            key = keys[desktop.id] = self._known_keys[shape]
            templates_of[key] = templates_of.get(key, frozenset()) | {desktop.template}
        self._templates = templates_of
        return keys

    def _standing(self, key: Key) -> Standing:
        if self._kept is not None and key in self._kept:
            return Standing.READY
        if key == self.making:
            return Standing.MAKING
        return Standing.UNABLE if self._tries.rests(key) else Standing.MISSING

    def _stopped(self) -> frozenset[TemplateId]:
        return frozenset(one for key, of in self._templates.items() if self._tries.stopped(key) for one in of)

    def _noted(self, wanted: Sequence[Desktop], templates: Sequence[Template]) -> Mapping[TemplateId, str]:
        here = {d.template for d in wanted}
        notes = {t.id: why for t in templates if t.id in here and (why := warm.why_boots(t))}
        for desktop in wanted:
            key = self._keys.get(desktop.id)
            if key is not None and self._standing(key) is not Standing.READY and (why := self._tries.why(key)):
                notes[desktop.template] = why
        return notes
