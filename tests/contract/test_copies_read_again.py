"""Safe copies are read again a little at a time: what went bad is told and mended, and a cycle goes before."""

from pathlib import Path

import pytest

from kmgr.errors import Unavailable
from kmgr.replica.copies_again import AGAIN_S, STRETCH, CopiesAgain
from kmgr.replica.grains import GRAIN
from kmgr.replica.scrub import Rules
from tests.lab.mirrors import D1, B, Pair, content, qemu_io

DAY_S = 86_400


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    # Two stretches and a bit of changed grains.
    return Pair(tmp_path, size=700 * GRAIN)


def again(pair: Pair, days: int = 7) -> CopiesAgain:
    return CopiesAgain(
        pair.b.copies, folder=pair.b.folder / "copies", rules=lambda: Rules(days, mib_s=16), clock=pair.clock
    )


async def copied(pair: Pair) -> None:
    qemu_io(pair.a.disk, f"write -P 7 0 {(2 * STRETCH + 3) * GRAIN}")
    await cycle(pair)


async def cycle(pair: Pair) -> None:
    await pair.clock.advance(1)
    await pair.a.mirror.cycle(D1, 1, pair.a.disk, to=B, last=None)
    # The other side has said so, and is done with it in a moment.
    async with pair.b.copies._lock(D1, 1):
        pass


def spoil(pair: Pair, slot: int) -> None:
    with (pair.b.copy / "disk").open("r+b") as file:
        file.seek(slot * GRAIN)
        byte = file.read(1)
        file.seek(slot * GRAIN)
        file.write(bytes([byte[0] ^ 1]))


async def passed(scrub: CopiesAgain) -> int:
    """Read until nothing is due; return in how many stretches."""
    stretches = 0
    while await scrub.step():
        stretches += 1
    return stretches


async def test_each_copy_is_read_through_once_in_so_many_days_also_by_another_daemon(pair: Pair) -> None:
    await copied(pair)
    assert await passed(again(pair)) == 3
    scrub = again(pair)
    assert await passed(scrub) == 0
    await pair.clock.advance(7 * DAY_S - 10)
    assert await passed(scrub) == 0
    await pair.clock.advance(20)
    assert await passed(scrub) == 3
    assert scrub.problems({}) == ()
    await pair.clock.advance(8 * DAY_S)
    assert await passed(again(pair, days=0)) == 0


async def test_what_went_bad_is_told_and_the_next_cycle_mends_it(pair: Pair) -> None:
    await copied(pair)
    wanted = content(pair.a.disk)
    scrub = again(pair)
    for slot in (5, STRETCH + 9):
        spoil(pair, slot)
    assert await passed(scrub) == 3
    (problem,) = scrub.problems({D1: "own-1"})
    assert "own-1 had gone bad in 2 places" in problem
    await cycle(pair)
    # It is read again soon, and the word is taken back.
    await pair.clock.advance(AGAIN_S + 1)
    assert await passed(scrub) == 3
    assert scrub.problems({}) == ()
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == wanted


async def test_a_cycle_under_way_goes_before_and_a_copy_that_goes_is_no_trouble(pair: Pair) -> None:
    await copied(pair)
    scrub = again(pair)
    async with pair.b.copies._exclusively(D1, 1):
        with pytest.raises(Unavailable, match="being updated"):
            await scrub.step()
    assert await scrub.step() == STRETCH * GRAIN
    await pair.b.copies.drop(D1, 1)
    assert await passed(scrub) == 0
    assert await pair.b.copies.held() == ()


async def test_which_are_known_to_be_bad_is_told_until_a_cycle_has_compared_them(pair: Pair) -> None:
    await copied(pair)
    spoil(pair, 5)
    assert await passed(again(pair)) == 3
    await pair.b.copies.held()
    assert pair.b.copies.distrusted() == {D1}
    await cycle(pair)
    await pair.b.copies.held()
    assert pair.b.copies.distrusted() == frozenset()


async def test_one_that_lost_a_file_is_told_and_keeps_no_other_from_being_read(pair: Pair) -> None:
    await copied(pair)
    scrub = again(pair)
    (pair.b.copy / "disk").unlink()
    assert await scrub.step() == 0
    (problem,) = scrub.problems({D1: "own-1"})
    assert "safe copy of own-1 had lost a file, or its index was damaged, on this disk" in problem
    assert await passed(scrub) == 0
    await cycle(pair)
    await pair.clock.advance(AGAIN_S + 1)
    assert await passed(scrub) == 3
    assert scrub.problems({}) == ()


async def test_a_clock_that_was_set_back_keeps_no_copy_from_being_read(pair: Pair) -> None:
    await copied(pair)
    assert await passed(again(pair)) == 3
    pair.clock.set_back(400 * DAY_S)
    assert await passed(again(pair)) == 3
