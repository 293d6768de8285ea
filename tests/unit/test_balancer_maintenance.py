"""Draining and removing with a guard: refused with reasons, forced on record, never on an old view of the grid."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kmgr.balancer.maintenance import by_name, carry_out, weigh
from kmgr.balancer.redundancy import Drain, Remove
from kmgr.clock import ManualClock
from kmgr.daemon.maintenance_door import operations
from kmgr.errors import Conflict, NotFound, OutcomeUnknown, Refused
from kmgr.grid.envelope import Outcome
from kmgr.grid.local import LocalGrid, LocalLog
from kmgr.grid.queries import events, server
from kmgr.grid.vitals import Board
from kmgr.ids import CommandId, ServerId
from kmgr.provision.drain_rows import notices
from kmgr.registry import APPLIERS, SCHEMAS

A, B, C = IDS = [ServerId(f"srv-{letter}") for letter in "abc"]


class Racing(LocalGrid):
    """Something else happens in the moment between the decision and its command."""

    meanwhile: tuple[str, Mapping[str, Any]] | None = None
    left: int | None = None  # after so many proposals its leader is gone

    async def propose(
        self,
        type: str,
        body: Mapping[str, Any],
        *,
        by: str,
        id: CommandId | None = None,
        timeout_s: float = 10.0,
    ) -> Outcome:
        """Let it happen first, once."""
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise OutcomeUnknown("nobody leads")
        first, self.meanwhile = self.meanwhile, None
        if first is not None:
            await super().propose(first[0], first[1], by="somebody")
        return await super().propose(type, body, by=by, id=id, timeout_s=timeout_s)


@pytest.fixture
async def grid(tmp_path: Path) -> AsyncIterator[Racing]:
    clock, log = ManualClock(), LocalLog()
    grids = [Racing(s, path=tmp_path / s, appliers=APPLIERS, schemas=SCHEMAS, clock=clock, log=log) for s in IDS]
    for name in IDS:
        where = {"grid_address": f"{name}:1", "web_address": f"{name}:2", "version": "", "fingerprint": ""}
        await grids[0].propose("server.add", {"server": name, "name": name[4:], **where}, by="test")
        await grids[0].propose("server.up", {"server": name}, by="test")
    yield grids[0]
    for one in grids:
        one.close()


def last(grid: Racing, subject: ServerId) -> str:
    with grid.view() as db:
        return events(db, subject=subject)[0].text


async def test_what_makes_nothing_worse_is_done_at_once(grid: Racing) -> None:
    await carry_out(grid, Board(), Drain(C), by="root", clock=ManualClock())
    assert last(grid, C) == "c drains: it is given no new desktops"


async def test_what_makes_it_worse_is_refused_and_then_forced_on_record(grid: Racing) -> None:
    with pytest.raises(Refused, match="only 2 servers vote") as caught:
        await carry_out(grid, Board(), Remove(C), by="root", clock=ManualClock())
    assert caught.value.code == "unsafe"
    assert last(grid, C) == "c is up for the first time"
    await carry_out(grid, Board(), Remove(C), by="root", force=True, clock=ManualClock())
    assert last(grid, C).startswith("c was removed from the grid, although: only 2 servers vote (a, b)")


async def test_a_decision_on_an_old_view_is_rejected_even_if_forced(grid: Racing) -> None:
    grid.meanwhile = ("server.lost", {"server": B})
    with pytest.raises(Conflict, match="a server went or came in this moment"):
        await carry_out(grid, Board(), Drain(C), by="root", force=True, clock=ManualClock())
    with grid.view() as db:
        found = server(db, C)
    assert found is not None
    assert found.state == "up"
    assert weigh(grid, Board(), Drain(C), clock=ManualClock()).running == (A, C)


async def test_servers_are_named_as_people_name_them(grid: Racing) -> None:
    assert by_name(grid, "b") == by_name(grid, B) == B
    with pytest.raises(NotFound, match="there is no server 'x' in this grid; there are a, b, c"):
        by_name(grid, "x")


async def test_the_terminal_may_do_the_same(grid: Racing) -> None:
    door = operations(grid, Board(), clock=ManualClock())
    await door["drain"]({"server": "b"})
    await door["undrain"]({"server": "b"})
    assert last(grid, B) == "b drains no longer"
    with pytest.raises(Refused, match="force it"):
        await door["remove"]({"server": "b"})
    await door["remove"]({"server": "b", "force": True})
    assert "although" in last(grid, B)


async def test_a_notice_is_given_with_the_drain_and_goes_with_it(grid: Racing) -> None:
    board, clock = Board(), ManualClock()
    with pytest.raises(Refused, match="minutes of a notice must be a whole number from 0"):
        await carry_out(grid, board, Drain(B), by="anna", force=True, notice_minutes=-1, clock=clock)
    assert state_of(grid, B) == "up", "what is refused leaves nothing half done"
    door = operations(grid, board, clock=clock)
    with pytest.raises(Refused, match="minutes of a notice must be a whole number from 0"):
        await door["drain"]({"server": "b", "force": True, "notice_minutes": "5"})
    await door["drain"]({"server": "b", "force": True, "notice_minutes": 30})
    with grid.view() as db:
        assert set(notices(db)) == {B}
    assert last(grid, B) == "whoever works on b and cannot be moved is told to leave within 30 min"
    await door["undrain"]({"server": "b"})
    with grid.view() as db:
        assert notices(db) == {}


async def test_a_drain_and_its_notice_are_one_change(grid: Racing) -> None:
    grid.left = 1
    await carry_out(grid, Board(), Drain(B), by="root", force=True, notice_minutes=30, clock=ManualClock())
    assert state_of(grid, B) == "draining"
    with grid.view() as db:
        assert set(notices(db)) == {B}
    grid.left = 1
    await carry_out(grid, Board(), Drain(B), by="root", force=True, notice_minutes=60, clock=ManualClock())
    assert last(grid, B).endswith("told to leave within 60 min"), "again: the new time counts"


def state_of(grid: Racing, which: ServerId) -> str:
    with grid.view() as db:
        found = server(db, which)
    assert found is not None
    return str(found.state)
