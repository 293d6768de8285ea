"""Personal desktops that cannot be moved while they run leave a draining server all the same, and nothing is lost."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import pytest

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.cold_moves import SHUT_DOWN_S
from kmgr.provision.drain_rows import leaving
from kmgr.provision.hypervisor import DomainSpec, DomainState
from kmgr.provision.model import Copy, CopyState, Desktop, DesktopState
from kmgr.provision.queries import copies
from kmgr.replica.mirror import CopyPoint
from kmgr.users.broker import Ready
from tests.lab.whole_grid import Lab, Simulated

MINUTE = 60.0


class Stuck(Lab):
    """A grid with Anna's desktop, which has a safe copy and no live move can move. Somebody is logged on in it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.users = ["anna"]
        self.desktop = DesktopId("")
        self.saves = 0
        self.went_on: list[tuple[str, str]] = []
        self.most_running = 0
        for server in self.servers:
            server.hypervisor.guest = lambda *_: {"value": [{"user": name} for name in self.users]}
            server.migrations.fail = {"traits": "its memory changes too fast"}

    async def begin(self) -> None:
        await self.create(kind="personal", standby=1)
        await self.until(self._is_given, 60)
        self.desktop, self.home = self.anna().id, self.anna().server
        await self.until(lambda: self.copies_of(CopyState.READY), 60)
        (copy,) = self.copies_of(CopyState.READY)
        self.refuge = copy.server
        self._watch_last_words()
        await self.wait(5)

    async def _is_given(self) -> bool:
        return isinstance(await self.open("anna"), Ready)

    def anna(self) -> Desktop:
        return next(desktop for desktop in self.desktops() if desktop.user == "anna")

    def copies_of(self, *states: CopyState) -> list[Copy]:
        with self.alive()[0].grid.view() as db:
            return [copy for copy in copies(db, desktop=self.anna().id) if copy.state in states]

    async def wait(self, seconds: float) -> None:
        """Let time pass; whoever runs writes, and never two do."""
        for _ in range(round(seconds * 10)):
            await self.clock.advance(0.1)
            where = [server for server in self.servers if self.runs(server)]
            self.most_running = max(self.most_running, len(where))
            for server in where:
                self.saves += 1
                self.disks.write(server.disk(self.desktop), f"save {self.saves}")

    def runs(self, server: Simulated) -> bool:
        domain = server.hypervisor._domains.get(self.desktop)
        return domain is not None and domain.state is DomainState.RUNNING

    def where(self) -> list[ServerId]:
        return [server.id for server in self.servers if self.runs(server)]

    async def until(self, holds: Callable[[], object], seconds: float) -> None:
        for _ in range(round(seconds * 2)):
            told = holds()
            if await told if hasattr(told, "__await__") else told:
                return
            await self.wait(0.5)
        raise AssertionError(f"not within {seconds} s")

    async def drain(self, *, minutes: int | None = None) -> None:
        await self.do("server.drain", server=self.home)
        if minutes is not None:
            await self.do("drain.notice", server=self.home, minutes=minutes)

    def told(self) -> bool:
        with self.alive()[0].grid.view() as db:
            return self.anna().id in leaving(db)

    def goes(self) -> bool:
        return self.anna().moving_to == self.refuge

    async def leave(self) -> None:
        """Have it leave at this very moment, as the leader does once nobody is logged on."""
        anna = self.anna()
        key = {"desktop": anna.id, "generation": anna.generation, "server": anna.server, "target": self.refuge}
        seen = {"connected_at": anna.connected_at, "disconnected_at": anna.disconnected_at}
        await self.do("drain.leave", **key, **seen, left=True)

    def _watch_last_words(self) -> None:
        """Note what the disk said that it went on from, and what was written last by then."""
        store = self.at(self.refuge).store
        promote = store.promote

        async def watched(
            desktop: DesktopId, generation: int, target: Path, *, accepted: Collection[str] = ()
        ) -> CopyPoint:
            point = await promote(desktop, generation, target, accepted=accepted)
            self.went_on.append((self.disks.content[target], f"save {self.saves}"))
            return point

        store.promote = watched  # type: ignore[method-assign]

    async def arrives(self, seconds: float = 60) -> None:
        """Wait until it runs where its copy was; all that was written before must be there."""
        await self.until(lambda: self.where() == [self.refuge], seconds)
        ((has, last),) = self.went_on
        assert has == last
        assert self.anna().server == self.refuge
        assert self.anna().state is DesktopState.IN_USE
        assert self.most_running == 1


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Stuck]:
    lab = Stuck(tmp_path)
    await lab.begin()
    yield lab
    await lab.close()


async def test_at_the_moment_that_was_told_it_is_shut_down_and_goes_on_with_all_that_was_written(lab: Stuck) -> None:
    await lab.drain(minutes=2)
    await lab.until(lab.told, 60)
    began = lab.clock.monotonic()
    await lab.wait(30)
    assert (lab.where(), lab.anna().moving_to) == ([lab.home], None), "it is not its time yet"
    await lab.arrives(120)
    assert lab.clock.monotonic() - began > 60
    assert lab.anna().generation == 2
    texts = lab.texts("desktop")
    assert any("is told that desktop" in text and "is shut down and goes on elsewhere" in text for text in texts)
    assert any("it came from" in text for text in texts)
    # What it left is kept until there is another copy, and then nothing is.
    await lab.until(lambda: [c.generation for c in lab.copies_of(CopyState.READY)] == [2], 120)
    await lab.wait(15)
    assert [copy.state for copy in lab.copies_of(*CopyState)] == [CopyState.READY]
    assert lab.at(lab.home).domains() == []


async def test_when_nobody_is_logged_on_in_it_no_notice_is_needed(lab: Stuck) -> None:
    await lab.drain()
    await lab.wait(2 * MINUTE)
    assert lab.where() == [lab.home], "somebody works on it"
    lab.users = []
    await lab.arrives(60)


async def test_whoever_looks_at_its_screen_keeps_it(lab: Stuck) -> None:
    lab.users = []
    anna = lab.anna()
    await lab.do("desktop.connected", desktop=anna.id, generation=anna.generation, server=anna.server)
    await lab.drain()
    await lab.wait(2 * MINUTE)
    assert lab.where() == [lab.home]
    await lab.do("desktop.disconnected", desktop=anna.id, generation=anna.generation, server=anna.server)
    await lab.arrives(60)


async def test_whoever_logs_on_before_it_is_shut_down_keeps_it(lab: Stuck) -> None:
    await lab.drain()
    await lab.leave()
    await lab.wait(30)
    assert (lab.where(), lab.anna().generation, lab.anna().moving_to) == ([lab.home], 1, None)
    assert any("somebody has logged on in it" in text for text in lab.texts("desktop"))


async def test_undrained_before_the_moment_it_stays(lab: Stuck) -> None:
    await lab.drain(minutes=2)
    await lab.until(lab.told, 60)
    await lab.do("server.undrain", server=lab.home)
    await lab.wait(5 * MINUTE)
    assert (lab.where(), lab.anna().generation) == ([lab.home], 1)


async def test_undrained_while_it_shuts_down_it_stays_too(lab: Stuck) -> None:
    lab.at(lab.home).hypervisor.ignores.add(lab.anna().id)
    lab.users = []
    await lab.drain()
    await lab.until(lab.goes, 90)
    await lab.do("server.undrain", server=lab.home)
    await lab.wait(MINUTE)
    assert (lab.where(), lab.anna().generation, lab.anna().moving_to) == ([lab.home], 1, None)
    assert any("stays where it is" in text for text in lab.texts("desktop"))


async def test_one_that_does_not_shut_down_is_cut_off_only_after_the_moment_that_was_told(lab: Stuck) -> None:
    lab.at(lab.home).hypervisor.ignores.add(lab.anna().id)
    lab.users = []
    await lab.drain()
    await lab.until(lab.goes, 90)
    await lab.wait(SHUT_DOWN_S + 10)
    assert (lab.where(), lab.anna().generation) == ([lab.home], 1), "nobody was told"
    lab.users = ["anna"]
    await lab.do("drain.notice", server=lab.home, minutes=1)
    await lab.arrives(2 * SHUT_DOWN_S + 5 * MINUTE)


async def test_without_a_whole_copy_elsewhere_it_stays_and_nobody_is_told(lab: Stuck) -> None:
    for server in lab.servers:
        if server.id not in (lab.home, lab.refuge):
            server.room = {**server.room, "disk_free_mib": 0}
    await lab.wait(5)
    await lab.do("server.drain", server=lab.refuge)
    await lab.drain(minutes=1)
    await lab.wait(3 * MINUTE)
    assert (lab.where(), lab.told()) == ([lab.home], False)


async def test_when_its_copy_cannot_be_reached_it_goes_on_here_and_is_tried_again(lab: Stuck) -> None:
    lab.users = []
    lab.at(lab.home).mirror.fail = Unavailable("the other server cannot be reached")
    await lab.drain()
    await lab.until(lambda: any("cannot be reached" in text for text in lab.texts("desktop")), 120)
    await lab.until(lambda: lab.where() == [lab.home], 10)
    assert lab.anna().generation == 1
    lab.at(lab.home).mirror.fail = None
    await lab.arrives(2 * MINUTE)


async def test_a_start_that_was_asked_of_the_hypervisor_before_loses_nothing(lab: Stuck) -> None:
    home = lab.at(lab.home)
    home.mirror.takes_s = 2.0
    start, begun = home.hypervisor.start, asyncio.Event()

    async def slow(desktop: DesktopId) -> None:
        begun.set()
        await lab.clock.sleep(1.0)
        await start(desktop)

    await lab.drain()
    home.hypervisor.start = slow  # type: ignore[method-assign]
    home.hypervisor.power_off(lab.desktop)
    await lab.until(begun.is_set, 10)
    await lab.leave()
    await lab.arrives()


async def test_a_start_that_was_on_its_way_before_is_not_asked_of_the_hypervisor(lab: Stuck) -> None:
    home = lab.at(lab.home)
    home.mirror.takes_s = 2.0
    define, begun = home.hypervisor.define, asyncio.Event()

    async def slow(spec: DomainSpec) -> None:
        begun.set()
        await lab.clock.sleep(3.0)
        await define(spec)

    await lab.drain()
    home.hypervisor.define = slow  # type: ignore[method-assign]
    await home.hypervisor.remove(lab.desktop)
    await lab.until(begun.is_set, 10)
    await lab.leave()
    before = lab.saves
    await lab.arrives()
    assert lab.most_running == 1
    assert before < lab.saves


@pytest.mark.parametrize("after_tenths", range(0, 45, 5))
async def test_killed_at_any_moment_the_next_daemon_goes_on(lab: Stuck, after_tenths: int) -> None:
    lab.users = []
    lab.at(lab.home).mirror.takes_s = 1.0
    await lab.drain()
    await lab.until(lab.goes, 90)
    await lab.wait(after_tenths / 10)
    home = lab.at(lab.home)
    await home.stop()
    await lab.wait(0.5)
    await home.start()
    await lab.arrives(3 * MINUTE)
    await lab.until(lambda: lab.copies_of(CopyState.READY), 2 * MINUTE)
