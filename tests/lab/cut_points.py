"""A daemon that dies at the k-th thing it does, and another one that has to make sense of what it left.

Every call that leaves the process counts twice: before and after it took effect. At
the k-th of those moments a `Cut` is raised, which nothing in kmgr may catch, and
from then on nothing that the old daemon still tries has any effect. Hypervisor,
disks and log go on as they are.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kmgr.grid.envelope import Outcome
from kmgr.ids import DesktopId, VersionId
from kmgr.provision import warm_files
from kmgr.provision.agent import ProvisionAgent, Shape
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.lease import Lease
from kmgr.provision.personal_disks import PersonalDisks
from kmgr.provision.queries import desktops
from kmgr.provision.timely import at_once
from kmgr.provision.warm import sleepers
from kmgr.provision.work import Personal
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.mirror_fake import FakeCopyStore, FakeDisks
from kmgr.templates.queries import templates
from tests.lab.provision import A, Desk, settle

T = TypeVar("T")


class Cut(BaseException):
    """The process is killed."""


class Knife:
    """Counts the moments at which a daemon can die; it dies at number `at` (0: never).

    `world` tells what the daemon would leave behind; moments at which it does the same and leaves the same are alike.
    """

    def __init__(self, at: int = 0, *, world: Callable[[], object] = lambda: None) -> None:
        self.at = at
        self.moments = 0
        self.dead = False
        self.told: dict[object, int] = {}
        self._world = world

    def moment(self, what: str) -> None:
        """Die, if it is time or long over."""
        self.moments += 1
        self.dead = self.dead or self.moments == self.at
        if self.dead:
            raise Cut
        self.told.setdefault((what, self._world()), self.moments)

    async def around(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do something that leaves the process."""
        self.moment(f"before {what}")
        result = await work()
        self.moment(f"after {what}")
        return result


class Cuttable:
    """Anything with async methods, under the knife."""

    def __init__(self, inner: Any, knife: Knife) -> None:
        self._inner = inner
        self._knife = knife

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def call(*values: Any, **named: Any) -> Any:
            return await self._knife.around(name, lambda: found(*values, **named))

        return call


class CuttableGrid:
    """The grid as a daemon under the knife sees it: what it proposes may be applied without it hearing of it."""

    def __init__(self, inner: Any, knife: Knife) -> None:
        self._inner = inner
        self._knife = knife

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def propose(self, type: str, body: Mapping[str, Any], **named: Any) -> Outcome:
        """Propose, if it still lives."""
        return await self._knife.around(type, lambda: self._inner.propose(type, body, **named))


class _Store(FakeCopyStore):
    """Copies that become files, since overlays are files here."""

    async def promote(
        self, desktop: DesktopId, generation: int, target: Path, *, accepted: Collection[str] = ()
    ) -> CopyPoint:
        point = await super().promote(desktop, generation, target, accepted=accepted)
        target.touch()  # noqa: ASYNC240 - there are no threads here
        return point


class Table(Desk):
    """Server a of the office, on which daemons die. `personal` ones run under a lease that the table renews.

    Desktops are restored from saved memories by the mode of `instant_clones`.
    """

    def __init__(self, folder: Path, *, instant_clones: str = "never") -> None:
        self.knife = Knife()
        self.instant_clones = instant_clones
        self.copies = FakeDisks()
        self.store = _Store(self.copies, A)
        super().__init__(folder, max_builds=3)

    def restarted(self) -> ProvisionAgent:
        """Return a new daemon's agent, under the present knife."""
        knife = self.knife
        grid, store = CuttableGrid(self.grid, knife), Cuttable(self.store, knife)

        async def blocking(work: Callable[[], T], /) -> T:
            return await knife.around("disk", lambda: at_once(work))

        def backing(version: VersionId) -> Path | None:
            knife.moment("backing")
            return self.backing(version)

        def display(desktop: DesktopId) -> Path:
            knife.moment("display")
            return self.folder / "run" / f"{desktop}.vnc"

        self.lease = Lease(self.grid, clock=self.clock)
        kept = PersonalDisks(
            grid,
            store,
            Cuttable(self.hypervisor, knife),
            data_dir=self.folder,
            clock=self.clock,
            blocking=blocking,
        )
        shape = Shape(
            data_dir=self.folder,
            grid_id="grid-1",
            backing=backing,
            display=display,
            max_builds=self.max_builds,
            instant_clones=self.instant_clones,
        )
        self.agent = ProvisionAgent(
            grid,
            Cuttable(self.hypervisor, knife),
            clock=self.clock,
            shape=shape,
            blocking=blocking,
            personal=Personal(self.lease, kept),
        )
        self.kept = kept
        return self.agent

    async def round(self) -> tuple[Any, ...]:
        """Do one round, under a lease."""
        await self.lease.renew()
        done = await super().round()
        await self.kept.tidy()
        return done

    async def moments(self, seconds: float) -> list[int]:
        """Live undisturbed; return the moments that are unlike all before them."""
        self.knife = Knife(world=self.world)
        self.restarted()
        await self.live(seconds)
        return sorted(self.knife.told.values())

    async def die_at(self, moment: int, seconds: float) -> None:
        """Live until that moment."""
        self.knife = Knife(moment)
        self.restarted()
        with contextlib.suppress(Cut):
            await self.live(seconds)
        assert self.knife.dead, "it never came to that moment"
        await self.agent.stop()
        await settle()

    def world(self) -> object:
        """Return what a daemon that dies now leaves behind: records, domains, files."""
        domains = self.hypervisor._domains  # without a call that would count
        found = tuple((one, domain.spec.generation, domain.state) for one, domain in sorted(domains.items()))
        return tuple(sorted(self.states().items())), found, tuple(self.lying()), tuple(self.copies.copies)

    async def live_on(self, seconds: float) -> None:
        """Start the daemon anew, which nothing kills, and let it live."""
        self.knife = Knife()
        self.restarted()
        await self.live(seconds)

    def lying(self) -> Iterator[tuple[str, str]]:
        """Yield what lies on the disk: folder and desktop of every file."""
        for folder in ("desktops", "run"):
            for file in sorted((self.folder / folder).iterdir()):
                yield folder, file.name

    async def left_over(self) -> list[str]:
        """Say what does not belong there: domains, files and records that nothing explains, in words."""
        records = {name: self.one(name) for name in self.states()}
        domains = {status.desktop: status for status in await self.hypervisor.domains()}
        with self.grid.view() as db:
            asleep = sleepers(desktops(db), templates(db), now_ms=self.clock.now_ms())
        found = [f"domain of {desktop}, which is no desktop" for desktop in domains if desktop not in records]
        for folder, name in self.lying():
            desktop, _, kind = name.partition(".")
            if desktop not in records:
                found.append(f"{folder}/{name}, of no desktop")
            elif kind == "new":
                found.append(f"{folder}/{name}, half of a disk")
        for name, record in records.items():
            domain = domains.get(record.id)
            if record.state in ("placed", "building", "retired"):
                found.append(f"{name} is still {record.state}")
            elif record.state in ("ready", "in_use"):
                right = DomainState.PAUSED if record.id in asleep else DomainState.RUNNING
                if domain is None or domain.state is not right:
                    found.append(f"{name} is {record.state} and {domain.state if domain else 'gone'}, not {right}")
                elif domain.generation != record.generation:
                    found.append(f"{name} runs as generation {domain.generation} instead of {record.generation}")
                if not self.overlay(name).exists():
                    found.append(f"{name} has no disk")
            if domain is not None and domain.provisional:
                found.append(f"the domain of {name} is half made")
        found += [f"a saved memory {key}, half of it" for key in warm_files.unfinished(self.folder)]
        return found
