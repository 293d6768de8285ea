"""A safe copy that is not what was sent is never started as if it were: rot, removed and short files, a slow disk."""

import asyncio
import hashlib
import os
from array import array
from pathlib import Path

import pytest

from kmgr.errors import NotFound, Refused, Unavailable
from kmgr.replica import mirror_index, mirror_promote
from kmgr.replica import mirror_wire as wire
from kmgr.replica.grains import GRAIN
from kmgr.replica.mirror import BadCopy, CopyPoint
from kmgr.replica.mirror_receive import READ_AT_ONCE, READ_S
from tests.contract.test_mirror_of_files import cycle, opened
from tests.lab.mirrors import D1, Pair, content, qemu_io


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


async def copied(pair: Pair) -> CopyPoint:
    qemu_io(pair.a.disk, *(f"write -P {n + 10} {n * 64}k 64k" for n in range(40)))
    return await cycle(pair)


def spoil(pair: Pair, slot: int) -> None:
    with (pair.b.copy / "disk").open("r+b") as file:
        file.seek(slot * GRAIN + 77)
        file.write(b"\0\0\0")


async def refused(pair: Pair) -> str:
    """Return why a copy is not promoted; nothing lies where the disk would be."""
    with pytest.raises(BadCopy) as told:
        await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert not pair.b.disk.exists()
    return told.value.message


async def test_a_copy_that_rotted_since_its_last_cycle_is_started_only_by_a_persons_word(pair: Pair) -> None:
    point = await copied(pair)
    spoil(pair, 5)
    why = await refused(pair)
    assert "1 of its 40 places of 64 KiB" in why
    assert "byte 262144 of the disk" in why
    assert "Try again" in why
    # Others' words, or those of another day, are not what is found now.
    with pytest.raises(BadCopy):
        await pair.b.copies.promote(D1, 1, pair.b.disk, accepted={"it is bad"})
    spoil(pair, 6)
    worse = await refused(pair)
    with pytest.raises(BadCopy, match="2 of its 40"):
        await pair.b.copies.promote(D1, 1, pair.b.disk, accepted={why})
    started = await pair.b.copies.promote(D1, 1, pair.b.disk, accepted={why, worse})
    assert (started.as_of, started.bad) == (point.as_of, 2)
    # Told again, it is the same.
    assert await pair.b.copies.promote(D1, 1, pair.b.disk) == started


async def test_what_a_reading_found_to_be_bad_is_not_forgotten_when_it_must_be_quick(pair: Pair) -> None:
    await copied(pair)
    spoil(pair, 30)
    assert await pair.b.copies.verify(D1, 1) == 1
    late = mirror_promote.Promotion(
        pair.b.copy, pair.b.disk, base=lambda _: pair.b.images.path(_.version), late=lambda: True
    )
    # Nor does the long look at a bad one keep others from being started.
    with pytest.raises(mirror_promote.Doubtful):
        await asyncio.to_thread(mirror_promote.promote, late)
    async with asyncio.timeout(20):
        await asyncio.gather(*(pair.b.copies._reading.acquire() for _ in range(READ_AT_ONCE - 1)))
        assert "1 of its 40" in await refused(pair)
        assert not pair.b.copies._reading.locked()


async def test_a_large_copy_is_started_after_some_seconds_and_how_much_was_not_read_is_told(pair: Pair) -> None:
    point = await copied(pair)
    late = mirror_promote.Promotion(
        pair.b.copy, pair.b.disk, base=lambda _: pair.b.images.path(_.version), late=lambda: True
    )
    started = await asyncio.to_thread(mirror_promote.promote, late)
    assert (started.as_of, started.unread, started.bad) == (point.as_of, 40, 0)
    assert content(pair.b.disk) == content(pair.a.disk)
    assert 0 < READ_S < 30, "45 s are promised until it goes on"


@pytest.mark.parametrize("name", ["disk", "sums"])
async def test_a_file_that_became_shorter_is_no_copy_to_start_from_and_comes_again(pair: Pair, name: str) -> None:
    first = await copied(pair)
    qemu_io(pair.a.disk, "write -P 99 0 64k")
    await cycle(pair, first)
    wanted = content(pair.a.disk)
    file = pair.b.copy / name
    os.truncate(file, file.stat().st_size // 2)
    assert f"{name} became shorter" in await refused(pair)
    again = await cycle(pair, first)
    assert again.full
    assert again.sent_bytes < 40 * GRAIN, "what is there need not travel"
    assert await pair.b.copies.verify(D1, 1) == 0
    started = await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert started.bad == 0
    assert content(pair.b.disk) == wanted


@pytest.mark.parametrize("name", ["disk", "sums", "index"])
async def test_a_file_that_was_removed_is_named_and_comes_again(pair: Pair, name: str) -> None:
    first = await copied(pair)
    (pair.b.copy / name).unlink()
    with pytest.raises((Unavailable, NotFound)) as told:
        await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert name in told.value.message or name == "index"
    assert not pair.b.disk.exists()
    assert not (pair.b.copy / "disk").exists() or name != "disk", "nothing was put in its place"
    again = await cycle(pair, first)
    assert again.full
    assert await pair.b.copies.verify(D1, 1) == 0
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == content(pair.a.disk)


@pytest.mark.parametrize("name", ["disk", "sums"])
async def test_cycles_of_changes_do_not_go_on_over_a_file_that_was_removed(pair: Pair, name: str) -> None:
    first = await copied(pair)
    (pair.b.copy / name).unlink()
    stream, hello = await opened(pair, everything=False)
    assert not hello["cycle"]
    assert not hello["still"]
    with pytest.raises(Refused, match="nothing here"):
        await wire.receive(stream)
    stream.writer.close()
    # Whatever was begun meanwhile, it stays known to be bad until all of it was compared.
    broken, _ = await opened(pair, everything=True)
    broken.writer.close()
    with pytest.raises((BadCopy, NotFound)):
        await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert (await cycle(pair, first)).full
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == content(pair.a.disk)


async def test_asking_what_is_held_makes_no_files_and_cuts_nothing(pair: Pair) -> None:
    first = await copied(pair)
    index = pair.b.copy / "index"
    whole = index.read_bytes()
    # A long frame that is just being appended: half of it can be read.
    state = {"point": {**_spelled(first), "as_of": first.as_of + 1}, "cycle": "kmgr-2", "still": ""}
    frame = mirror_index.spell(state, array("I", [n for grain in range(90) for n in (grain, grain + 1)]))
    with index.open("ab") as file:
        file.write(frame[:500])
    assert await pair.b.copies.held() == (first,)
    assert index.read_bytes() == whole + frame[:500]
    with index.open("ab") as file:
        file.write(frame[500:])
    (held,) = await pair.b.copies.held()
    assert held.as_of == first.as_of + 1
    (pair.b.copy / "disk").unlink()
    assert [point.as_of for point in await pair.b.copies.held()] == [held.as_of]
    assert not (pair.b.copy / "disk").exists()


async def test_without_qemu_img_or_in_time_nothing_is_started_and_that_is_said(pair: Pair, tmp_path: Path) -> None:
    await copied(pair)
    wanted = mirror_promote.Promotion(
        pair.b.copy, pair.b.disk, base=lambda _: pair.b.images.path(_.version), late=lambda: False
    )
    with pytest.raises(Unavailable, match="qemu-utils") as told:
        await asyncio.to_thread(mirror_promote.promote, wanted, program=str(tmp_path / "none"))
    assert told.value.code == "no_qemu_img"
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    with pytest.raises(Unavailable, match="overloaded") as told:
        await asyncio.to_thread(
            mirror_promote.check, pair.b.copy, pair.b.copy / "disk", program=str(slow), within_s=0
        )
    assert told.value.code == "slow"
    assert not pair.b.disk.exists()
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == content(pair.a.disk)


async def test_a_cycle_that_waited_while_the_copy_became_a_disk_leaves_nothing_behind(pair: Pair) -> None:
    first = await copied(pair)
    async with pair.b.copies._exclusively(D1, 1):
        waiting = asyncio.create_task(cycle(pair, first))
        for _ in range(200):
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)  # it looked whether there is a copy in a thread, and waits for its turn now
        await asyncio.to_thread(
            mirror_promote.promote,
            mirror_promote.Promotion(
                pair.b.copy, pair.b.disk, base=lambda _: pair.b.images.path(_.version), late=lambda: False
            ),
        )
    with pytest.raises(Refused, match="has become its disk"):
        await waiting
    assert [path.name for path in pair.b.copy.parent.iterdir()] == ["1"]


async def test_nothing_is_remembered_of_copies_that_nobody_works_on(pair: Pair) -> None:
    await copied(pair)
    await pair.b.copies.drop(D1, 1)
    assert dict(pair.b.copies._alone) == {}


def _spelled(point: CopyPoint) -> dict[str, object]:
    return {name: getattr(point, name) for name in ("desktop", "generation", "as_of", "sent_bytes", "full", "frozen")}


@pytest.mark.parametrize("which", [2, -1])
async def test_an_index_that_rotted_never_leads_back_to_a_point_that_is_written_over(pair: Pair, which: int) -> None:
    last = await copied(pair)
    for fill in (1, 2, 3):
        qemu_io(pair.a.disk, f"write -P {fill} 0 640k", f"write -P {fill + 50} {fill}M 64k")
        last = await cycle(pair, last)
    # A broken cycle has taken the places that the last point gave back.
    qemu_io(pair.a.disk, "write -P 200 0 640k")
    stream, _ = await opened(pair, everything=False)
    fresh = [bytes([n]) * GRAIN for n in range(201, 211)]
    offers = [wire.Offer(n, hashlib.sha256(data).digest()) for n, data in enumerate(fresh)]
    await wire.send(stream, wire.Kind.OFFER, wire.spell_offers(offers))
    await wire.expect(stream, wire.Kind.WANT)
    await wire.send(stream, wire.Kind.DATA, *fresh)
    stream.writer.close()
    async with pair.b.copies._lock(D1, 1):
        pass
    index = pair.b.copy / "index"
    frames = [frame.end for frame in mirror_index.frames(index.read_bytes())]
    assert len(frames) == 5
    with index.open("r+b") as file:
        file.seek(frames[which] - 40)
        byte = file.read(1)
        file.seek(frames[which] - 40)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Unavailable, match="index") as told:
        await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert told.value.code == "damaged"
    assert not pair.b.disk.exists()
    assert (await cycle(pair, last)).full
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == content(pair.a.disk)


async def test_a_copy_of_before_its_length_was_noted_is_one_all_the_same(pair: Pair) -> None:
    last = await copied(pair)
    with (pair.b.copy / "sums").open("r+b") as file:
        file.write(bytes(32))
    assert await pair.b.copies.verify(D1, 1) == 0
    await cycle(pair, last)
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == content(pair.a.disk)
