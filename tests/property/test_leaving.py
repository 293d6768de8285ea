"""Whatever people and leaders do: who is at their desktop keeps it, and what was left long enough comes back.

The real appliers, attendance, duty and broker on one log, on a clock moved by hand.
"""

import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kmgr.ids import DesktopId
from kmgr.provision.attendance import Attendance
from kmgr.provision.idle import SETTLE_S
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.queries import desktops
from kmgr.users.broker import Broker, Ready
from kmgr.users.over import LEAST_S
from kmgr.users.over_agent import TakingBack
from tests.lab.people import SERVERS, Office, a_person

KEEP_S = 300
PEOPLE = ("anna", "ben")
STEP_S = 5


class House:
    """Three servers, two people, each with at most one desktop; they come and go as they like."""

    def __init__(self, folder: Path) -> None:
        self.office = Office(folder)
        self.clock = self.office.clock
        self.attendances = {
            server: Attendance(grid, clock=self.clock)
            for server, grid in zip(SERVERS, self.office.grids, strict=True)
        }
        self.leader = 0
        self.duty = TakingBack(self.office.grid, clock=self.clock)
        self.screens: dict[str, tuple[DesktopId, ExitStack]] = {}
        self.left_at: dict[DesktopId, float] = {}
        self.elected_at = 0.0

    async def begin(self) -> None:
        await self.office.open()
        await self.office.template("lab", policy={"keep_s": KEEP_S}, maximum=50)
        for person in PEOPLE:
            await self.office.give(person, template="tpl-lab")
        for n in range(3):
            await self.office.standby("tpl-lab", SERVERS[n])

    def of(self, person: str) -> Desktop | None:
        with self.office.grid.view() as db:
            own = [d for d in desktops(db, user=person) if d.state is DesktopState.IN_USE]  # type: ignore[arg-type]
        assert len(own) <= 1
        return own[0] if own else None

    async def do(self, what: str, who: str) -> None:
        match what:
            case "come":
                await self._come(who)
            case "go" if who in self.screens:
                desktop, screen = self.screens.pop(who)
                screen.close()
                self.left_at[desktop] = self.clock.monotonic()
            case "blink" if who in self.screens:
                desktop, screen = self.screens.pop(who)
                screen.close()
                self.screens[who] = (desktop, self._screen(desktop))
            case "elect":
                self.leader = (self.leader + 1) % len(SERVERS)
                self.duty = TakingBack(self.office.grids[self.leader], clock=self.clock)
                self.elected_at = self.clock.monotonic()
            case "wait" | "wait long":
                await self.pass_(30 if what == "wait" else KEEP_S)
        await self.pass_(STEP_S)

    async def _come(self, who: str) -> None:
        if who in self.screens:
            return
        answer = await Broker(self.office.grids[1], clock=self.clock).open(a_person(who), "lab")
        if not isinstance(answer, Ready):
            await self.office.standby("tpl-lab", SERVERS[self.leader])
            return
        self.left_at.pop(answer.desktop.id, None)
        self.screens[who] = (answer.desktop.id, self._screen(answer.desktop.id))

    def _screen(self, desktop: DesktopId) -> ExitStack:
        stack = ExitStack()
        with self.office.grid.view() as db:
            server = next(d.server for d in desktops(db) if d.id == desktop)
        stack.enter_context(self.attendances[server].open(desktop))
        return stack

    async def pass_(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            for attendance in self.attendances.values():
                await attendance.run_once()
            await self._look()
            await self.clock.advance(STEP_S, settle=1)

    async def _look(self) -> None:
        for one in await self.duty.run_once():
            at = one.desktop.id
            assert at not in {open_one for open_one, _ in self.screens.values()}, "somebody is at it"
            left = self.left_at.get(at)
            assert left is not None and self.clock.monotonic() - left >= KEEP_S, "it was taken back early"

    def close(self) -> None:
        for _, screen in self.screens.values():
            screen.close()
        self.office.close()


events = st.lists(
    st.tuples(st.sampled_from(["come", "go", "blink", "elect", "wait", "wait long"]), st.sampled_from(PEOPLE)),
    max_size=25,
)


@given(events=events)
@settings(max_examples=25, deadline=None)
def test_who_is_there_keeps_it_and_who_left_gives_it_back(events: list[tuple[str, str]]) -> None:
    async def live(folder: Path) -> None:
        house = House(folder)
        try:
            await house.begin()
            for what, who in events:
                await house.do(what, who)
            kept = {who: house.of(who) for who in house.screens}
            await house.pass_(max(KEEP_S, LEAST_S) + SETTLE_S + 3 * STEP_S)
            for who in PEOPLE:
                now = house.of(who)
                if who in house.screens:
                    assert now == kept[who], "who is there has what they had"
                else:
                    assert now is None, "what was left long enough is nobody's"
        finally:
            house.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(Path(folder)))
