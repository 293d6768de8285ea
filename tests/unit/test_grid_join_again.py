"""A join whose server of the grid died or lost touch in the middle: the next asking, anywhere, goes on with it."""

from pathlib import Path

import pytest

from kmgr.errors import OutcomeUnknown, Unavailable
from kmgr.grid import identity
from kmgr.grid.envelope import Outcome
from kmgr.grid.join import TRIES, finish_joining
from kmgr.grid.joining import Step
from kmgr.grid.port import Grid
from kmgr.grid.queries import invitations
from tests.lab.join_lab import Fresh, Office, X
from tests.lab.through import Make, Through


class Late(Through):
    """A log in which an invitation is redeemed only when that is asked for again."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._late: Make | None = None
        self._told = False

    async def change(self, type: str, make: Make) -> Outcome:
        """Hold the first one back; whoever asked learns what a server is told that lost its leader."""
        if type == "invitation.redeem":
            if not self._told:
                self._told, self._late = True, make
                raise OutcomeUnknown("the grid did not answer in time")
            if self._late is not None:
                await self._late()
        return await make()


class Broken(Through):
    """The log of a server that is cut off from the newcomer in the moment of a change, before or after it is made."""

    def __init__(self, grid: Grid, type: str, *, made: bool) -> None:
        super().__init__(grid)
        self._type = type
        self._made = made

    async def change(self, type: str, make: Make) -> Outcome:
        """End the talk at that change."""
        if type != self._type:
            return await make()
        if self._made:
            await make()
        raise ConnectionError("cut off")


async def test_any_server_finishes_what_one_that_is_gone_for_good_began(office: Office, tmp_path: Path) -> None:
    await office.beside()
    fresh = Fresh(tmp_path)
    asked = await office.asked_and_cut_off(fresh)
    await office.port.stop()
    # The daemon does this; nobody told it where else to ask.
    mine = await finish_joining(fresh.data_dir)
    assert mine is not None and mine.server == asked
    assert identity.load(fresh.data_dir) == mine


async def test_the_same_command_goes_on_although_the_server_that_it_names_is_gone(
    office: Office, tmp_path: Path
) -> None:
    await office.beside()
    fresh = Fresh(tmp_path)
    asked = await office.asked_and_cut_off(fresh)
    await office.port.stop()
    mine = (await fresh.join(office, "zoo-zoo-zoo-zoo")).identity
    assert mine.server == asked and identity.load(fresh.data_dir) == mine


async def test_where_none_of_them_answers_the_first_one_is_named_and_nothing_is_lost(
    office: Office, tmp_path: Path
) -> None:
    await office.beside()
    fresh = Fresh(tmp_path)
    await office.asked_and_cut_off(fresh)
    where = office.address
    await office.wires.stop()
    with pytest.raises(Unavailable, match=f"no server of a grid answers at {where}"):
        await finish_joining(fresh.data_dir)
    assert identity.unfinished(fresh.data_dir) is not None


async def test_a_server_that_lags_asks_the_others_before_it_knows_nobody(office: Office, tmp_path: Path) -> None:
    beside = await office.beside()
    log = office.grid._log
    fresh = Fresh(tmp_path)
    log.cut_off.add(X)
    asked = await office.asked_and_cut_off(fresh)
    with pytest.raises(Unavailable, match="majority"):
        await finish_joining(fresh.data_dir, beside)
    log.cut_off.discard(X)
    mine = await finish_joining(fresh.data_dir, beside)
    assert mine is not None and mine.server == asked


async def test_a_change_that_was_late_in_the_log_is_no_other_server_s(office: Office, tmp_path: Path) -> None:
    office.answer_through(Late(office.grid))
    phrase, fresh = await office.phrase(), Fresh(tmp_path)
    with pytest.raises(OutcomeUnknown):
        await fresh.join(office, phrase)
    assert office.names() == ["a"]
    mine = (await fresh.join(office, phrase)).identity
    assert office.names() == ["a", "b"] and office.rows()[1].id == mine.server


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("change", ["invitation.try", "invitation.proved", "invitation.redeem"])
async def test_cut_off_at_each_change_the_same_again_goes_on(
    office: Office, tmp_path: Path, change: str, made: bool
) -> None:
    phrase, fresh = await office.phrase(), Fresh(tmp_path)
    office.answer_through(Broken(office.grid, change, made=made))
    with pytest.raises(Unavailable, match=r"cut off in the middle of the join .*: do the same again"):
        await fresh.join(office, phrase)
    assert office.names() == (["a", "b"] if (change, made) == ("invitation.redeem", True) else ["a"])
    with office.grid.view() as db:
        found = invitations(db)[0]
    # A try that nobody knows the outcome of stays used; all else is as it was, and the phrase is good for more.
    lost = (change, made) in {("invitation.try", True), ("invitation.proved", False)}
    assert found.tries_left == TRIES - lost
    office.answer_through(office.grid)
    fresh.steps = []
    mine = (await fresh.join(office, phrase)).identity
    assert office.names() == ["a", "b"] and office.rows()[1].id == mine.server
    assert (Step.ASK in fresh.steps) == (found.used_by is None)
