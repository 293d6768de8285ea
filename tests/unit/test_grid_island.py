"""The port that goes on without a majority: what it passes on, does by itself, refuses, and how it changes over."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kmgr.errors import InvariantBroken, Unavailable
from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.island import IslandGrid
from kmgr.grid.island_rules import Move
from kmgr.grid.settle import SETTLE, Fact, IslandRule, settling, spelled
from kmgr.ids import CommandId
from kmgr.provision.queries import desktops
from kmgr.registry import APPLIERS, ISLAND, SCHEMAS
from tests.lab.people import SERVERS, Office
from tests.lab.state import State

T = TypeVar("T")
A, B, C = SERVERS


class Lab:
    """Three servers; the first one may become an island. `broken` is raised by the next work on its disk."""

    def __init__(self, folder: Path) -> None:
        (folder / "office").mkdir()
        self.office = Office(folder / "office")
        self.broken: OSError | None = None
        self.grid = IslandGrid(
            self.office.grid,
            folder=folder / "island",
            schemas=SCHEMAS,
            appliers=APPLIERS,
            rules=ISLAND,
            clock=self.office.clock,
            blocking=self.blocking,
        )

    async def blocking(self, work: Callable[[], T], /) -> T:
        await asyncio.sleep(0)
        if self.broken is not None:
            error, self.broken = self.broken, None
            raise error
        return work()

    async def open(self) -> None:
        await self.office.open()
        self.desktop = await self.office.standby()
        await self.grid.start()

    async def alone(self) -> None:
        """Take the others away until the first one goes on by itself."""
        self.office.log.cut_off |= {B, C}
        await self.looks(12)
        assert self.grid.status().island

    async def together(self) -> None:
        """Bring them back until all is settled."""
        self.back()
        await self.looks(3)
        assert not self.grid.status().island

    def back(self) -> None:
        self.office.log.cut_off.clear()
        self.office.log.deliver()

    async def looks(self, seconds: int) -> list[Move]:
        found = []
        for _ in range(seconds * 2):
            found.append(await self.grid.look())
            await self.office.clock.advance(0.5)
        return found

    async def ask(self, type: str, **body: Any) -> Outcome:
        return await self.grid.propose(type, body, by="test")

    async def claim(self, user: str = "anna") -> Outcome:
        return await self.ask("desktop.claim", user=user, template="tpl-office")

    def users(self) -> list[str | None]:
        with self.grid.view() as db:
            return [d.user for d in desktops(db)]

    def lines(self) -> int:
        with self.office.grid.view() as db:
            return int(next(db.query("select count(*) as n from events"))["n"])


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await lab.open()
    yield lab
    await lab.grid.stop()
    lab.office.close()


async def test_with_a_majority_it_only_passes_on(lab: Lab) -> None:
    assert await lab.ask("setting.set", name="login_tries", value=9) == Applied({"before": 8})
    assert isinstance(await lab.claim(), Applied)
    assert lab.grid.status() == lab.office.grid.status()
    await lab.grid.barrier()
    assert set(await lab.looks(2)) == {Move.STAY}


async def test_alone_it_leads_itself_and_says_so(lab: Lab) -> None:
    await lab.alone()
    status = lab.grid.status()
    assert (status.leader, status.majority, status.is_leader) == (A, False, True)
    assert status.island_since is not None
    assert status.applied > lab.office.grid.status().applied
    told = lab.grid.vitals()
    assert told["extra"] == {"island": True}
    assert "goes on by itself" in told["problems"][0]
    await lab.grid.barrier()
    await lab.together()
    assert lab.grid.vitals() == {"problems": [], "extra": {"island": False}}


async def test_what_was_waiting_for_the_log_is_done_by_the_island(lab: Lab) -> None:
    asked = asyncio.Event()

    async def never(*_: Any, **__: Any) -> Outcome:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    lab.office.grid.propose = never  # type: ignore[method-assign]
    waiting, impatient = asyncio.create_task(lab.claim()), asyncio.create_task(lab.claim("berta"))
    await asked.wait()
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    await lab.alone()
    outcome = await asyncio.wait_for(waiting, 5)
    assert isinstance(outcome, Applied)
    assert outcome.values["desktop"] == lab.desktop
    del lab.office.grid.propose
    await lab.together()
    assert lab.users() == ["anna"]


async def test_a_change_that_comes_while_it_hands_over_waits_and_is_made_by_the_log(lab: Lab) -> None:
    await lab.alone()
    await lab.claim()
    lab.back()
    real, begun, go_on = lab.office.grid.propose, asyncio.Event(), asyncio.Event()

    async def slow(type: str, body: Any, **more: Any) -> Outcome:
        if type == SETTLE:
            begun.set()
            await go_on.wait()
        return await real(type, body, **more)

    lab.office.grid.propose = slow  # type: ignore[method-assign]
    looking = asyncio.create_task(lab.looks(3))
    await begun.wait()
    change = asyncio.create_task(lab.ask("setting.set", name="login_tries", value=9))
    login = asyncio.create_task(lab.ask("session.close_all", name="anna"))
    late = asyncio.create_task(lab.grid.propose("session.close_all", {"name": "x"}, by="x", timeout_s=0.01))
    with pytest.raises(Unavailable, match="telling the grid"):
        await late
    assert not change.done()
    go_on.set()
    await looking
    assert await change == Applied({"before": 8})
    assert isinstance(await login, Applied)
    assert not lab.grid.status().island
    del lab.office.grid.propose


async def test_a_change_that_comes_right_after_the_start_waits_for_the_majority_that_is_there(lab: Lab) -> None:
    await lab.alone()
    await lab.claim()
    await lab.grid.stop()
    lab.back()
    await lab.grid.start()
    assert lab.grid.status().island
    change = asyncio.create_task(lab.ask("setting.set", name="login_tries", value=9))
    await lab.looks(3)
    assert await asyncio.wait_for(change, 1) == Applied({"before": 8})


async def test_a_change_that_comes_right_after_the_start_is_refused_if_no_majority_comes(lab: Lab) -> None:
    await lab.alone()
    await lab.grid.stop()
    await lab.grid.start()
    change = asyncio.create_task(lab.ask("setting.set", name="login_tries", value=9))
    hasty = asyncio.create_task(lab.grid.propose("setting.set", {"name": "x"}, by="x", timeout_s=2))
    await lab.looks(4)
    assert not change.done()
    with pytest.raises(Unavailable, match="Try again"):
        await asyncio.wait_for(hasty, 1)
    await lab.looks(8)
    with pytest.raises(Unavailable, match="does not reach a majority") as refused:
        await asyncio.wait_for(change, 1)
    assert refused.value.code == "island"


async def test_who_waits_for_a_change_is_woken_by_the_island_and_by_each_changeover(lab: Lab) -> None:
    began = lab.grid.status().applied
    entering = asyncio.create_task(lab.grid.changed(began, timeout_s=60))
    await lab.alone()
    alone = await asyncio.wait_for(entering, 1)
    assert alone > began
    waiting = asyncio.create_task(lab.grid.changed(alone, timeout_s=60))
    await asyncio.sleep(0)
    for user in ("anna", "berta", "carl", "dora", "emil"):
        await lab.ask("login.failed", name=user, tries=8, wait_s=60)
    assert await asyncio.wait_for(waiting, 1) > alone
    high = lab.grid.status().applied
    leaving = asyncio.create_task(lab.grid.changed(high, timeout_s=60))
    await lab.together()
    low = await asyncio.wait_for(leaving, 1)
    # The log's index is smaller than the island's: whoever comes late with that one is not kept waiting.
    assert low < high
    assert await asyncio.wait_for(lab.grid.changed(high, timeout_s=60), 1) == low
    in_vain = asyncio.create_task(lab.grid.changed(low, timeout_s=2))
    await lab.office.clock.advance(0)
    await lab.office.clock.advance(3)
    assert await asyncio.wait_for(in_vain, 1) == low


async def test_what_changes_nothing_is_no_fact(lab: Lab) -> None:
    await lab.alone()
    await lab.claim("anna")
    again = await lab.claim("anna")
    assert isinstance(again, Applied)
    assert not again.values["new"]
    assert isinstance(await lab.claim("berta"), Rejected)
    assert isinstance(await lab.ask("login.failed", name="anna", tries=8, wait_s=60), Applied)
    assert isinstance(await lab.ask("session.expire"), Applied)
    before = lab.lines()
    await lab.together()
    # One line about the claim, one about the end.
    assert lab.lines() == before + 2


async def test_a_word_that_nobody_knows_is_a_bug_and_one_that_must_wait_is_named(lab: Lab) -> None:
    await lab.alone()
    with pytest.raises(InvariantBroken):
        await lab.ask("no.such")
    with pytest.raises(Unavailable, match="Nothing was changed") as refused:
        await lab.ask("server.drain", server=A)
    assert refused.value.code == "island"


async def test_what_cannot_be_noted_is_not_done(lab: Lab) -> None:
    await lab.alone()
    outbox = lab.grid._outbox
    assert outbox is not None
    pages = outbox._db.execute("pragma page_count").fetchone()[0]
    outbox._db.execute(f"pragma max_page_count = {pages}")
    big = {"name": "anna", "display_name": "A" * 20_000, "groups": [], "role": "user", "source": "corp"}
    where = {"address": "", "server": A, "expires_at": 10**15}
    with pytest.raises(Unavailable, match="Is its disk full"):
        await lab.ask("session.open", hash="h", **big, **where)
    with lab.grid.view() as db:
        assert list(db["sessions"].rows) == []
    outbox._db.execute("pragma max_page_count = 100000")
    assert isinstance(await lab.ask("session.open", hash="h", **big, **where), Applied)
    await lab.together()
    with lab.office.grids[1].view() as db:
        assert [row["hash"] for row in db["sessions"].rows] == ["h"]


async def test_a_server_that_cannot_copy_its_state_says_so_and_tries_again(lab: Lab) -> None:
    lab.office.log.cut_off |= {B, C}
    await lab.looks(7)
    lab.broken = OSError(28, "No space left on device")
    for _ in range(3):
        if await lab.grid.look() is Move.ENTER:
            break
        await lab.office.clock.advance(1)
    assert not lab.grid.status().island
    assert "cannot go on by itself" in lab.grid.vitals()["problems"][0]
    await lab.looks(2)
    assert lab.grid.status().island
    assert "cannot go on by itself" not in lab.grid.vitals()["problems"][0]


async def test_who_asked_may_go_and_the_change_is_made_all_the_same(lab: Lab) -> None:
    await lab.alone()
    asking = asyncio.create_task(lab.claim())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    for _ in range(5):
        await asyncio.sleep(0)
    assert lab.users() == ["anna"]
    await lab.together()
    assert lab.users() == ["anna"]


def settled_on(state: State, facts: list[Fact], server: str = "srv-a", over: int | None = None) -> Outcome:
    body = {"server": server, "outbox": "o", "facts": [spelled(f) for f in facts], "connected": [], "over": over}
    return state.do(SETTLE, **body)


def fact(type: str, n: int = 1, **body: Any) -> Fact:
    return Fact(Command(type, CommandId(f"cmd-{n}"), 5, "anna", body), Applied({"x": 1}), (("k", "s", "t"),), None, n)


def test_a_server_that_hands_over_is_up_again_in_the_same_moment() -> None:
    state = State()
    server = state.server("a", "lost")
    assert settled_on(state, [], over=0) == Applied({"n": 0})
    assert [s.state.value for s in state.view().servers] == ["up"]
    state.become(server, "removed")
    assert isinstance(settled_on(state, []), Rejected)
    assert isinstance(settled_on(state, [], server="srv-nobody"), Rejected)


def test_a_fact_that_this_version_does_not_know_stops_it() -> None:
    state = State()
    state.server("a")
    with pytest.raises(InvariantBroken, match="install a newer"):
        settled_on(state, [fact("no.such")])


def test_a_command_that_an_island_did_is_answered_when_it_is_sent_again() -> None:
    state = State()
    state.server("a")
    state.db.execute("insert into outcomes (id, idx, outcome) values ('older', 41, '{}')")
    seen: list[str] = []
    rule = IslandRule(settle=lambda _, command, __, ___: seen.append(command.type))
    apply = settling({"desktop.ready": rule})
    body: dict[str, Any] = {"server": "srv-a", "outbox": "o", "connected": [], "over": None}
    for _ in range(2):
        facts = [spelled(fact("desktop.ready", 1)), spelled(fact("desktop.ready", 2))]
        outcome = apply(state.db, Command(SETTLE, CommandId("s"), 9, "a", {**body, "facts": facts}))
        assert outcome == Applied({"n": 2})
    found = {row["id"]: (row["idx"], row["outcome"]) for row in state.db["outcomes"].rows}
    assert found["cmd-1"] == (42, '{"ok":{"x":1}}')
    assert set(found) == {"older", "cmd-1", "cmd-2"}
    texts = [row["text"] for row in state.db["events"].rows]
    assert texts == ["t (a was cut off)"] * 2
    assert seen == []
