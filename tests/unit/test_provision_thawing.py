"""Guests that were frozen and do not say that they go on: asked until they do, by two means, across lives."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import NotFound, Unavailable
from kmgr.ids import DesktopId
from kmgr.provision import stillness
from kmgr.provision.stillness import UNKNOWN, Owed, Told
from kmgr.provision.thawing import Thaws

D1, D2 = DesktopId("dsk-1"), DesktopId("dsk-2")


@dataclass
class Hung:
    """Guests whose agents hang, until `answers`; `keyed` are those whose kernel lets the keys thaw."""

    clock: ManualClock
    answers: bool = False
    gone: bool = False
    broken: bool = False
    keyed: bool = False
    run: int = 4
    writes: int = 100
    asked: list[float] = field(default_factory=list)
    pressed: list[float] = field(default_factory=list)

    async def thaw(self, desktop: DesktopId) -> Told:
        self.asked.append(self.clock.monotonic())
        if self.gone:
            raise NotFound("there is no domain")
        if self.broken:
            raise Unavailable("libvirt is not answering")
        self.writes += self.keyed and bool(self.pressed)
        return Told(self.answers, self.run, self.writes)

    async def press(self, desktop: DesktopId) -> None:
        self.pressed.append(self.clock.monotonic())


@dataclass
class Lab:
    clock: ManualClock
    hung: Hung
    folder: Path
    thaws: Thaws

    def frozen(self, desktop: DesktopId = D1, *, run: int = 4) -> None:
        """What a freeze leaves whose thaw was not confirmed."""
        self.thaws.mark(desktop).write_text(stillness.spell(Owed(self.clock.now_ms(), run)))
        self.thaws.owe(desktop)

    def owed(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.frozen"))


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    clock = ManualClock()
    hung = Hung(clock)
    lab = Lab(clock, hung, tmp_path, Thaws(hung, tmp_path, clock=clock))
    task = asyncio.create_task(lab.thaws.run())
    await asyncio.sleep(0)
    yield lab
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_guest_is_asked_until_it_says_that_it_goes_on_and_never_again(lab: Lab) -> None:
    lab.frozen()
    await lab.clock.advance(5)
    assert lab.owed() == [D1]
    assert len(lab.hung.asked) > 1
    lab.hung.answers = True
    await lab.clock.advance(30)
    assert lab.owed() == []
    times = len(lab.hung.asked)
    await lab.clock.advance(300)
    assert len(lab.hung.asked) == times
    assert lab.thaws.still() == {}


async def test_it_is_asked_soon_at_first_and_every_half_minute_for_ever(lab: Lab) -> None:
    lab.frozen()
    await lab.clock.advance(600)
    pauses = [b - a for a, b in zip(lab.hung.asked, lab.hung.asked[1:], strict=False)]
    assert lab.hung.asked[0] <= 2
    assert pauses == sorted(pauses)
    assert pauses[0] <= 2
    assert {30.0} == set(pauses[-10:])


async def test_the_keys_are_pressed_when_the_agent_is_not_just_slow_and_only_twice(lab: Lab) -> None:
    lab.frozen()
    await lab.clock.advance(600)
    assert len(lab.hung.pressed) == 2
    assert 2 <= lab.hung.pressed[0] <= 10


async def test_a_disk_that_is_written_again_is_no_trouble_for_a_person_but_the_thaw_stays_owed(lab: Lab) -> None:
    lab.hung.keyed = True
    lab.frozen()
    since = lab.clock.now_ms()
    await lab.clock.advance(3)
    assert lab.thaws.still() == {}, "not yet: an agent may be slow"
    await lab.clock.advance(60)
    assert len(lab.hung.pressed) == 1, "no need for a second time"
    assert lab.thaws.still() == {}
    assert lab.owed() == [D1]
    lab.hung.keyed = False
    lab.frozen(D2)
    await lab.clock.advance(stillness.TOLD_S)
    assert lab.thaws.still() == {D2: since + 63_000}


@pytest.mark.parametrize("how", ["gone", "off", "anew"])
async def test_a_guest_that_ended_is_owed_nothing(lab: Lab, how: str) -> None:
    lab.frozen()
    lab.hung.gone = how == "gone"
    lab.hung.run = {"off": UNKNOWN, "anew": 5}.get(how, 4)
    await lab.clock.advance(5)
    assert lab.owed() == []
    assert lab.thaws.still() == {}


async def test_a_libvirt_that_is_away_settles_nothing(lab: Lab) -> None:
    lab.hung.broken = True
    lab.frozen()
    await lab.clock.advance(60)
    assert lab.owed() == [D1]
    assert list(lab.thaws.still()) == [D1]
    lab.hung.broken, lab.hung.answers = False, True
    await lab.clock.advance(31)
    assert lab.owed() == []


@pytest.mark.parametrize("note", ["", '{"since": 17', "[]", '{"since": 1, "run": 4}'])
async def test_the_next_life_of_the_daemon_goes_on_asking(tmp_path: Path, note: str) -> None:
    clock = ManualClock()
    hung = Hung(clock)
    (tmp_path / f"{D1}.frozen").write_text(note)
    thaws = Thaws(hung, tmp_path, clock=clock)
    await thaws.recover()
    assert len(hung.asked) == 1
    assert (tmp_path / f"{D1}.frozen").exists(), "it has not answered: forgetting it would freeze it for ever"
    task = asyncio.create_task(thaws.run())
    await clock.advance(15)
    assert list(thaws.still()) == [D1]
    hung.answers = True
    await clock.advance(31)
    assert not (tmp_path / f"{D1}.frozen").exists()
    task.cancel()


async def test_one_whose_mark_is_gone_is_not_asked(lab: Lab) -> None:
    lab.frozen()
    lab.thaws.mark(D1).unlink()
    lab.thaws.owe(D1)
    await lab.clock.advance(60)
    assert lab.hung.asked == []


async def test_a_disk_that_refuses_ends_the_asking_of_nobody_else(lab: Lab) -> None:
    lab.frozen()
    lab.thaws.mark(D1).unlink()
    lab.thaws.mark(D1).mkdir()  # which cannot be unlinked
    lab.hung.answers = True
    await lab.clock.advance(5)
    lab.frozen(D2)
    await lab.clock.advance(5)
    assert lab.owed() == [D1]
    assert len(lab.hung.asked) == 2


def test_what_a_person_is_told_names_the_cause_and_the_cure() -> None:
    told = stillness.sentence("office-1", 17)
    assert "office-1" in told
    assert "17 s" in told
    assert "qemu-guest-agent" in told
    assert "reset" in told
