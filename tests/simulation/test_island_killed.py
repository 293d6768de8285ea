"""Killed at every step of going on alone and of handing over: started again, it ends as if nothing had happened.

A step is a piece of work on a disk or a word to the log; each is cut off before
and after it was done. Whoever had asked for something asks again, with the same id.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kmgr.clock import Clock
from kmgr.errors import OutcomeUnknown
from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.island import IslandGrid
from kmgr.grid.local import LocalGrid, LocalLog
from kmgr.grid.queries import events
from kmgr.grid.settle import SETTLE
from kmgr.ids import CommandId
from kmgr.registry import APPLIERS, ISLAND, SCHEMAS
from tests.lab.people import SERVERS, Office

T = TypeVar("T")
# Desktops (id, name, state, user), sessions, and what the history says of the island.
End = tuple[list[tuple[Any, ...]], list[str], list[str]]
A, B, C = SERVERS


class Killed(BaseException):
    """The daemon is gone."""


class Knife:
    """Cuts at one of the steps, before or after it is done; once."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.at = at
        self.after = after
        self.steps = 0
        self.cut = False

    def __call__(self, step: Callable[[], T]) -> T:
        number, self.steps = self.steps, self.steps + 1
        if number != self.at:
            return step()
        self.cut = True
        if self.after:
            step()
        raise Killed

    async def blocking(self, work: Callable[[], T], /) -> T:
        return self(work)


class Wounded(LocalGrid):
    """A log that may be cut off at what an island tells it."""

    knife: Knife
    log: LocalLog
    unsure = False
    # At which word of an island the majority is lost again, and whether that word was heard.
    lost_at = (-1, False)
    words = 0

    async def propose(
        self,
        type: str,
        body: Mapping[str, Any],
        *,
        by: str,
        id: CommandId | None = None,
        timeout_s: float = 10.0,
    ) -> Outcome:
        if type != SETTLE:
            return await super().propose(type, body, by=by, id=id, timeout_s=timeout_s)
        number, self.words = self.words, self.words + 1
        if number == self.lost_at[0]:
            if self.lost_at[1]:
                await super().propose(type, body, by=by, id=id, timeout_s=timeout_s)
            self.log.cut_off |= {B, C}
            raise OutcomeUnknown("the majority went")
        if not self.knife.after:
            self.knife(lambda: None)
            return await super().propose(type, body, by=by, id=id, timeout_s=timeout_s)
        outcome = await super().propose(type, body, by=by, id=id, timeout_s=timeout_s)
        if self.unsure:
            self.unsure = False
            raise OutcomeUnknown("the leader died")
        self.knife(lambda: None)
        return outcome


class Story:
    """A server that is cut off, works, and comes back; `tell` repeats each part until nobody is killed in it."""

    def __init__(self, folder: Path, knife: Knife) -> None:
        self.folder = folder
        self.knife = knife
        self.office = Office(folder / "office")
        self.grid = self._wounded(self.office.clock, self.office.log)
        self.island = self._made()

    def _wounded(self, clock: Clock, log: LocalLog) -> Wounded:
        # Another store for the same server: the office's own stays beside and is never asked.
        self.office.grids[0].close()
        grid = Wounded(A, path=self.folder / "office" / A, appliers=APPLIERS, schemas=SCHEMAS, clock=clock, log=log)
        grid.knife, grid.log = self.knife, log
        self.office.grids[0] = self.office.grid = grid
        return grid

    def _made(self) -> IslandGrid:
        return IslandGrid(
            self.grid,
            folder=self.folder / "island",
            schemas=SCHEMAS,
            appliers=APPLIERS,
            rules=ISLAND,
            clock=self.office.clock,
            blocking=self.knife.blocking,
        )

    async def tell(self) -> None:
        """Be cut off, work, come back."""
        await self.work_alone()
        self.reunite()
        await self.until(island=False)

    async def tell_of_a_second_loss(self) -> None:
        """Be cut off, work, lose the majority again while handing over, work on, come back."""
        await self.work_alone()
        self.reunite()
        while not self.office.log.cut_off:
            await self.island.look()
            await self.office.clock.advance(0.5)
        await self.office.clock.advance(10)
        for _ in range(3):
            await self.island.look()
            await self.office.clock.advance(5)
        with self.island.view() as db:
            assert {s["hash"] for s in db["sessions"].rows} == {"h"}
            used = {d["id"]: d["user"] for d in db["desktops"].rows_where("state = 'in_use'")}
            assert used == {self.first: "anna"}
        await self.ask("cmd-8", "desktop.claim", user="carl", template="tpl-office")
        self.reunite()
        await self.until(island=False)

    def reunite(self) -> None:
        """Let everybody hear everybody."""
        self.office.log.cut_off.clear()
        self.office.log.deliver()

    async def work_alone(self) -> None:
        """Be cut off and do one thing of each kind."""
        await self.office.open()
        self.first, self.second = await self.office.standby(), await self.office.standby()
        await self.office.give("", "everyone")
        await self.alive(self.island.start)
        self.office.log.cut_off |= {B, C}
        await self.until(island=True)
        anna = {"name": "anna", "display_name": "Anna", "groups": [], "role": "user", "source": "corp"}
        where = {"address": "10.0.0.1", "server": A, "expires_at": self.office.clock.now_ms() + 10**9}
        await self.ask("cmd-1", "session.open", hash="h", **anna, **where)
        await self.ask("cmd-2", "desktop.claim", user="anna", template="tpl-office")
        await self.ask("cmd-3", "desktop.claim", user="berta", template="tpl-office")
        await self.ask("cmd-4", "desktop.release", desktop=self.second, user="berta")
        await self.ask("cmd-5", "desktop.place", desktop="dsk-new", template="tpl-office", version="ver-1", server=A)
        report = {"desktop": "dsk-new", "generation": 1, "server": A}
        await self.ask("cmd-6", "desktop.building", **report)
        await self.ask("cmd-7", "desktop.ready", **report)

    async def until(self, *, island: bool) -> None:
        for _ in range(200):
            await self.alive(self.island.look)
            if self.island.status().island is island:
                return
            await self.office.clock.advance(0.5)
        raise AssertionError(f"island is never {island}")

    async def ask(self, id: str, type: str, **body: Any) -> None:
        async def once() -> None:
            outcome = await self.island.propose(type, body, by="test", id=CommandId(id))
            assert isinstance(outcome, Applied), outcome

        await self.alive(once)

    async def alive(self, part: Callable[[], Any]) -> None:
        try:
            await part()
        except Killed:
            await self.island.stop()
            self.island = self._made()
            await self.island.start()
            if part.__name__ not in ("start", "look"):
                await part()

    def end(self) -> End:
        """Return what everybody knows in the end, and hold that all know the same."""
        found = []
        for grid in self.office.grids:
            with grid.view() as db:
                desktops = sorted((d["id"], d["name"], d["state"], d["user"]) for d in db["desktops"].rows)
                told = sorted(event.text for event in events(db, limit=1000) if "cut off" in event.text)
                rows = {t: sorted(db.execute(f"select * from {t}").fetchall()) for t in db.table_names()}  # noqa: S608
                found.append((desktops, sorted(s["hash"] for s in db["sessions"].rows), told, rows))
        assert all(other == found[0] for other in found)
        return found[0][0], found[0][1], found[0][2]

    async def close(self) -> None:
        await self.island.stop()
        self.office.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where that is: hundreds of synced files are no fun on a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


async def told(
    folder: Path,
    knife: Knife,
    *,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
    lost_at: tuple[int, bool] | None = None,
) -> End:
    monkeypatch.setattr("kmgr.grid.island.MOST_FACTS", batch)
    (folder / "office").mkdir(parents=True)
    story = Story(folder, knife)
    if lost_at is None:
        await story.tell()
    else:
        story.grid.lost_at = lost_at
        await story.tell_of_a_second_loss()
    end = story.end()
    await story.close()
    return end


@pytest.mark.parametrize("batch", [1, 3, 100])
async def test_killed_at_any_step_the_end_is_the_same(
    batch: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = Knife(-1, after=False)
    expected = await told(folder / "calm", calm, batch=batch, monkeypatch=monkeypatch)
    desktops, sessions, lines = expected
    assert sessions == ["h"]
    assert [(d[2], d[3]) for d in desktops] == [("in_use", "anna"), ("retired", "berta"), ("ready", None)]
    assert len(lines) == 5, lines
    for after in (False, True):
        for at in range(calm.steps):
            knife = Knife(at, after=after)
            found = await told(folder / f"{after}-{at}", knife, batch=batch, monkeypatch=monkeypatch)
            assert knife.cut
            assert found == expected, f"killed {'after' if after else 'before'} step {at}"


async def test_an_answer_that_never_came_is_asked_for_again_and_counts_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await told(folder / "calm", Knife(-1, after=True), batch=3, monkeypatch=monkeypatch)
    monkeypatch.setattr(Wounded, "unsure", True)
    assert await told(folder / "unsure", Knife(-1, after=True), batch=3, monkeypatch=monkeypatch) == expected


@pytest.mark.parametrize("batch", [1, 3])
async def test_losing_the_majority_again_while_handing_over_loses_and_doubles_nothing(
    batch: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = 7 if batch == 1 else 3
    ends = []
    for heard in (False, True):
        # The last word that is heard ends the island for everybody else: the next one begins with what followed.
        for at in range(words - heard):
            knife = Knife(-1, after=False)
            place = folder / f"{heard}-{at}"
            ends.append(await told(place, knife, batch=batch, monkeypatch=monkeypatch, lost_at=(at, heard)))
    assert all(end == ends[0] for end in ends)
    desktops, sessions, _ = ends[0]
    assert sessions == ["h"]
    assert [(d[2], d[3]) for d in desktops] == [
        ("in_use", "anna"),
        ("retired", "berta"),
        ("in_use", "carl"),
    ]
