"""The second copy of a disk that is powered off: real overlays, judged by QEMU, broken in every way."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import SystemClock
from kmgr.errors import Conflict, KmgrError, NotFound, Refused, Unavailable
from kmgr.grid.port import Stream
from kmgr.grid.requests import GridRequests
from kmgr.ids import DesktopId, ServerId
from kmgr.replica import mirror_wire as wire
from kmgr.replica.grains import GRAIN
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.mirror_receive import Copies
from kmgr.replica.mirror_send import DiskMirror
from kmgr.replica.mirror_state import Identity
from kmgr.replica.mirror_wire import Kind, Offer
from kmgr.replica.overlay_file import OverlayFile
from tests.lab.mirrors import D1, V1, A, B, MirrorServer, Pair, content, is_clean, qemu_img, qemu_io
from tests.lab.wires import Wires


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


async def cycle(pair: Pair, last: CopyPoint | None = None) -> CopyPoint:
    await pair.clock.advance(1)
    return await pair.a.mirror.cycle(D1, 1, pair.a.disk, to=B, last=last)


def identity(pair: Pair) -> Identity:
    return pair.a.mirror._identity(D1, 1, pair.a.disk)


async def opened(pair: Pair, *, everything: bool) -> tuple[Stream, dict[str, Any]]:
    """Speak the protocol by hand, as a server that is broken or hostile would."""
    stream = await pair.network.port(B).open(B, wire.STREAM, {"disk": asdict(identity(pair))})
    hello = wire.parsed(await wire.expect(stream, Kind.HELLO))
    await wire.tell(stream, Kind.BEGIN, {"everything": everything})
    return stream, hello


async def test_a_copy_becomes_the_same_disk(pair: Pair) -> None:
    qemu_io(
        pair.a.disk,
        "write -P 1 0 4k",
        "write -P 2 1M 300k",
        "write -z 3M 256k",
        "write -P 3 5M 128k",
        "discard 5M 64k",
        "write -P 4 13108900 700",
    )
    wanted = content(pair.a.disk)
    point = await cycle(pair)
    assert point.full
    assert point.as_of == pair.clock.now_ms()
    assert await pair.b.copies.held() == (point,)

    promoted = await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert promoted == point
    assert is_clean(pair.b.disk)
    assert content(pair.b.disk) == wanted
    qemu_io(pair.b.disk, "write -P 9 0 200k", "write -P 9 8M 1M")
    assert is_clean(pair.b.disk)


async def test_the_next_cycle_sends_what_changed_and_a_disk_at_rest_costs_nothing(pair: Pair) -> None:
    qemu_io(pair.a.disk, "write -P 1 0 4M")
    first = await cycle(pair)
    assert first.sent_bytes > 4 << 20
    still = await cycle(pair, first)
    assert still.as_of > first.as_of
    assert still.sent_bytes < 100
    qemu_io(pair.a.disk, "write -P 2 64k 64k", "write -P 1 1M 64k")
    changed = await cycle(pair, still)
    assert GRAIN < changed.sent_bytes < 2 * GRAIN
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == content(pair.a.disk)


async def test_what_the_disk_gave_up_is_given_up_in_the_copy(pair: Pair) -> None:
    qemu_io(pair.a.disk, "write -P 1 0 4M")
    await cycle(pair)
    pair.a.make_disk()
    qemu_io(pair.a.disk, "write -P 5 1M 64k")
    await cycle(pair)
    assert (pair.b.copy / "disk").stat().st_size <= 3 * GRAIN + 4 * (1 << 20)
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == content(pair.a.disk)


async def test_a_cycle_that_broke_leaves_the_former_point_and_is_not_paid_twice(pair: Pair) -> None:
    qemu_io(pair.a.disk, "write -P 1 0 1M")
    first, former = await cycle(pair), content(pair.a.disk)
    qemu_io(pair.a.disk, *(f"write -P {n + 10} {n * 64}k 64k" for n in range(180)))

    passed = 0

    async def cut(count: int) -> None:
        nonlocal passed
        passed += count
        if passed > 6 << 20:
            raise Unavailable("the wire was cut")

    pair.a.mirror._slow = cut
    with pytest.raises(Unavailable, match="cut"):
        await cycle(pair, first)
    pair.a.mirror._slow = lambda _: asyncio.sleep(0)
    assert await pair.b.copies.held() == (first,)
    second = await cycle(pair, first)
    assert second.sent_bytes < 180 * GRAIN - (3 << 20)
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == content(pair.a.disk) != former


async def test_a_cycle_that_broke_is_never_promoted(pair: Pair) -> None:
    qemu_io(pair.a.disk, "write -P 1 0 1M")
    await cycle(pair)
    former = content(pair.a.disk)
    stream, _ = await opened(pair, everything=False)
    data = os.urandom(GRAIN)
    await wire.send(stream, Kind.OFFER, wire.spell_offers([Offer(2, hashlib.sha256(data).digest()), Offer(3, b"")]))
    await wire.expect(stream, Kind.WANT)
    await wire.send(stream, Kind.DATA, data)
    stream.writer.close()
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == former


async def test_without_a_complete_cycle_there_is_nothing_to_promote(pair: Pair) -> None:
    stream, hello = await opened(pair, everything=True)
    assert hello["as_of"] is None
    stream.writer.close()
    with pytest.raises(NotFound, match="never complete"):
        await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert not pair.b.disk.exists()
    assert await pair.b.copies.held() == ()


async def test_bytes_that_are_not_what_was_offered_are_refused(pair: Pair) -> None:
    qemu_io(pair.a.disk, "write -P 1 0 1M")
    first = await cycle(pair)
    former = content(pair.a.disk)
    stream, _ = await opened(pair, everything=False)
    await wire.send(stream, Kind.OFFER, wire.spell_offers([Offer(0, hashlib.sha256(b"a").digest())]))
    assert wire.parse_wants(await wire.expect(stream, Kind.WANT), 1) == [True]
    await wire.send(stream, Kind.DATA, bytes(GRAIN))
    with pytest.raises(Refused, match="other bytes") as told:
        await wire.expect(stream, Kind.DONE)
    assert told.value.code == "damaged"
    stream.writer.close()
    assert await pair.b.copies.held() == (first,)
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == former


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.OFFER, wire.spell_offers([Offer(5, b""), Offer(5, b"")])),
        (Kind.OFFER, wire.spell_offers([Offer(201, b"")])),
        (Kind.OFFER, b"short"),
        (Kind.DATA, bytes(GRAIN)),
        (Kind.COMMIT, b"[]"),
        (Kind.COMMIT, b"{}"),
        (Kind.COMMIT, b"\xff"),
        (Kind.COMMIT, b'{"as_of": 1e999, "sent_bytes": 1, "full": true, "frozen": true, "cycle": "", "still": ""}'),
        (Kind.HELLO, b"{}"),
    ],
)
async def test_what_makes_no_sense_ends_the_cycle_and_changes_nothing(pair: Pair, kind: Kind, payload: bytes) -> None:
    first = await cycle(pair)
    stream, _ = await opened(pair, everything=False)
    await wire.send(stream, kind, payload)
    with pytest.raises(Refused):
        while True:
            await wire.receive(stream)
    stream.writer.close()
    assert await pair.b.copies.held() == (first,)


async def test_a_copy_of_changes_alone_is_refused_where_nothing_is(pair: Pair) -> None:
    stream, _ = await opened(pair, everything=False)
    with pytest.raises(Refused, match="nothing here"):
        await wire.receive(stream)
    stream.writer.close()


async def test_without_the_same_image_there_is_no_copy(pair: Pair) -> None:
    pair.b.images.remove(V1)
    with pytest.raises(Unavailable, match="not on this server") as absent:
        await cycle(pair)
    assert absent.value.code == "wrong_base"
    pair.b.give_image(seed=2)
    with pytest.raises(Refused, match="other contents") as other:
        await cycle(pair)
    assert other.value.code == "wrong_base"
    assert await pair.b.copies.held() == ()


async def test_a_copy_whose_image_went_is_not_promoted(pair: Pair) -> None:
    point = await cycle(pair)
    pair.b.images.remove(V1)
    with pytest.raises(Unavailable) as told:
        await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert told.value.code == "wrong_base"
    pair.b.give_image()
    assert await pair.b.copies.promote(D1, 1, pair.b.disk) == point


async def test_promoting_again_changes_nothing_and_the_copy_takes_no_more_cycles(pair: Pair) -> None:
    qemu_io(pair.a.disk, "write -P 1 0 1M")
    point = await cycle(pair)
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    qemu_io(pair.b.disk, "write -P 7 0 4k")
    running = content(pair.b.disk)
    assert await pair.b.copies.promote(D1, 1, pair.b.disk) == point
    assert content(pair.b.disk) == running
    assert await pair.b.copies.held() == ()
    with pytest.raises(Conflict, match="has become its disk"):
        await cycle(pair)
    await pair.b.copies.drop(D1, 1)
    await pair.b.copies.drop(D1, 1)
    assert list((pair.b.folder / "copies").iterdir()) == []


async def test_a_disk_that_is_there_is_never_replaced(pair: Pair) -> None:
    await cycle(pair)
    pair.b.make_disk()
    with pytest.raises(Conflict, match="is there already"):
        await pair.b.copies.promote(D1, 1, pair.b.disk)


async def test_a_promotion_cut_off_before_the_disk_has_its_name_is_done_again(pair: Pair) -> None:
    qemu_io(pair.a.disk, "write -P 1 0 1M")
    point = await cycle(pair)
    (pair.b.disk.parent).rmdir()
    with pytest.raises(Unavailable):
        await pair.b.copies.promote(D1, 1, pair.b.disk)
    pair.b.disk.parent.mkdir()
    assert await pair.b.copies.promote(D1, 1, pair.b.disk) == point
    assert content(pair.b.disk) == content(pair.a.disk)


async def test_a_server_that_comes_back_gets_what_differs_from_its_former_disk(pair: Pair) -> None:
    qemu_io(pair.a.disk, *(f"write -P {n + 10} {n * 64}k 64k" for n in range(100)))
    await cycle(pair)
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    qemu_io(pair.a.disk, "write -P 200 0 192k")  # what the lost server wrote after the last cycle
    qemu_io(pair.b.disk, "write -P 201 1M 64k")  # what the desktop wrote since
    former = pair.a.folder / "kept-aside.qcow2"
    pair.a.disk.rename(former)
    pair.a.seed[D1] = former
    before = content(former)

    back = await pair.b.mirror.cycle(D1, 2, pair.b.disk, to=pair_a(pair), last=None)
    assert 4 * GRAIN < back.sent_bytes < 5 * GRAIN
    assert content(former) == before
    await pair.a.copies.promote(D1, 2, pair.a.disk)
    assert content(pair.a.disk) == content(pair.b.disk)


def pair_a(pair: Pair) -> Any:
    return next(server for server in pair.network.ports if server != B)


async def test_a_copy_that_went_bad_is_noticed_and_mended_by_the_next_cycle(pair: Pair) -> None:
    qemu_io(pair.a.disk, "write -P 1 0 4M")
    first = await cycle(pair)
    with (pair.b.copy / "disk").open("r+b") as file:
        file.seek(5 * GRAIN + 77)
        file.write(b"\0\0\0")
    assert await pair.b.copies.verify(D1, 1) == 1
    mended = await cycle(pair, first)
    assert mended.full
    assert GRAIN < mended.sent_bytes < 2 * GRAIN + 64 * 40
    assert await pair.b.copies.verify(D1, 1) == 0
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == content(pair.a.disk)


async def test_a_desktop_started_in_the_middle_ends_the_cycle(pair: Pair) -> None:
    first = await cycle(pair)
    qemu_io(pair.a.disk, "write -P 1 0 1M")
    pair.a.off.on = [False, True]
    with pytest.raises(Unavailable, match="was started"):
        await cycle(pair, first)
    assert await pair.b.copies.held() == (first,)


async def test_a_second_cycle_into_a_copy_ends_one_whose_server_is_silent(pair: Pair) -> None:
    silent, _ = await opened(pair, everything=True)
    point = await cycle(pair)
    assert await pair.b.copies.held() == (point,)
    assert await silent.reader.read(1) == b""
    silent.writer.close()


async def test_two_cycles_of_a_desktop_at_once_are_refused(pair: Pair) -> None:
    one, other = await asyncio.gather(cycle(pair), cycle(pair), return_exceptions=True)
    assert isinstance(other, Unavailable)
    assert isinstance(one, CopyPoint)


async def test_stopping_ends_the_cycle_under_way(pair: Pair) -> None:
    qemu_io(pair.a.disk, "write -P 1 0 4M")
    reached = asyncio.Event()

    async def wait(_: int) -> None:
        reached.set()
        await asyncio.Event().wait()

    pair.a.mirror._slow = wait
    task = asyncio.create_task(cycle(pair))
    await reached.wait()
    await pair.a.mirror.stop(D1)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await pair.b.copies.held() == ()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Return server b's folder with a small file system for its copies."""
    folder = tmp_path / "b" / "copies"
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this needs the right to mount a small file system")
    yield tmp_path
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_is_named_and_leaves_the_former_point(small: Path) -> None:
    pair = Pair(small)
    qemu_io(pair.a.disk, "write -P 1 0 1M")
    first, former = await cycle(pair), content(pair.a.disk)
    qemu_io(pair.a.disk, *(f"write -P {n + 10} {n * 64}k 64k" for n in range(190)))
    with pytest.raises(Unavailable, match="disk is full") as told:
        await cycle(pair, first)
    assert told.value.code == "disk_full"
    assert await pair.b.copies.held() == (first,)
    with pytest.raises(KmgrError) as again:
        await cycle(pair, first)
    assert again.value.code == "disk_full"
    qemu_io(pair.a.disk, "discard 64k 12000k")
    second = await cycle(pair, first)
    assert await pair.b.copies.held() == (second,)
    await pair.b.copies.promote(D1, 1, pair.b.disk)
    assert content(pair.b.disk) == content(pair.a.disk) != former


async def test_dirty_bitmaps_are_read_as_qemu_wrote_them(pair: Pair) -> None:
    disk = pair.a.disk
    qemu_io(disk, "write -P 1 0 1M")
    qemu_img("bitmap", "--add", "--enable", str(disk), "kmgr-one")
    qemu_img("bitmap", "--add", "--disable", str(disk), "other")
    qemu_io(disk, "write -P 2 3M 100k", "write -P 3 0 512", "write -P 2 13108000 512")
    with OverlayFile(disk) as overlay:
        one, other = sorted(overlay.bitmaps(), key=lambda bitmap: bitmap.name)
        assert (one.name, one.whole, one.granularity) == ("kmgr-one", True, GRAIN)
        assert (other.name, other.whole) == ("other", False)
        dirty = {offset // GRAIN for offset, _ in overlay.dirty(one)}
    assert dirty == {0, 48, 49, 200}


def test_what_is_no_disk_of_ours_is_refused(pair: Pair, tmp_path: Path) -> None:
    for made in (["-f", "qcow2", "-o", "cluster_size=128k"], ["-f", "qcow2", "-o", "compat=0.10"], ["-f", "raw"]):
        file = tmp_path / "strange"
        qemu_img("create", "-q", *made, str(file), "10M")
        with pytest.raises(Refused), OverlayFile(file):
            pass
    with pytest.raises(NotFound), OverlayFile(tmp_path / "absent"):
        pass


async def test_a_disk_on_something_else_is_not_copied(pair: Pair, tmp_path: Path) -> None:
    alone = tmp_path / "alone.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(alone), "10M")
    with pytest.raises(Refused, match="lies on nothing"):
        await pair.a.mirror.cycle(D1, 1, alone, to=B, last=None)


async def test_cycles_are_taken_only_from_the_server_whose_desktop_it_is(pair: Pair) -> None:
    async def admit(server: ServerId, desktop: DesktopId, number: int) -> bool:
        return (server, desktop, number) != (A, D1, 1)

    Copies(pair.network.port(B), pair.b.images, clock=pair.clock, admit=admit)
    with pytest.raises(Refused, match="does not belong to server srv-a"):
        await cycle(pair)
    assert await pair.a.mirror.cycle(D1, 2, pair.a.disk, to=B, last=None) == (await pair.b.copies.held())[0]


async def test_it_goes_over_the_wires_of_the_grid_as_well(pair: Pair, tmp_path: Path) -> None:
    wires, clock = Wires(tmp_path / "wires"), SystemClock()
    ports = [wires.port(server) for server in (A, B)]
    for port in ports:
        await wires.start(port)
    requests = [GridRequests(port, clock=clock) for port in ports]
    try:
        Copies(requests[1], pair.b.images, clock=clock)
        mirror = DiskMirror(requests[0], pair.a.images, pair.a.off, clock=clock)
        qemu_io(pair.a.disk, *(f"write -P {n + 10} {n * 64}k 64k" for n in range(190)))
        point = await mirror.cycle(D1, 1, pair.a.disk, to=B, last=None)
        assert await pair.b.copies.held() == (point,)
        pair.b.images.remove(V1)
        with pytest.raises(Unavailable) as told:
            await mirror.cycle(D1, 1, pair.a.disk, to=B, last=point)
        assert told.value.code == "wrong_base"
        pair.b.give_image()
        with (pair.b.copy / "index").open("r+b") as index:
            index.write(b"nonsense")
        with pytest.raises(Unavailable, match="damaged") as told:
            await pair.b.copies.promote(D1, 1, pair.b.disk)
        assert told.value.code == "damaged"
        again = await mirror.cycle(D1, 1, pair.a.disk, to=B, last=point)
        assert again.sent_bytes > 190 * GRAIN, "what is no copy any more is made anew"
    finally:
        for each in requests:
            each.close()
        await wires.stop()


def test_unfinished_copies_are_swept_at_start(pair: Pair) -> None:
    left = pair.b.folder / "copies" / D1 / "3.new"
    left.mkdir(parents=True)
    MirrorServer(pair.b.folder, pair.network.port(B), pair.clock)
    assert not left.exists()
