"""Files on their way: what is acknowledged stays, what is wrong is refused, what is forgotten expires."""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Conflict, KmgrError, NotFound, Refused, Unavailable
from kmgr.replica.images import Images, Room
from kmgr.templates import arriving
from kmgr.templates.arrivals import Arrivals, Checksum
from kmgr.templates.arriving import Arrival, Way
from kmgr.templates.sink import Sink

MIB = 1 << 20
GIB = 1 << 30
DATA = bytes(range(256)) * 1024 + bytes(300_000) + b"the end"


def arrival(id: str = "arr-1", **more: Any) -> Arrival:
    plain: dict[str, Any] = {"way": Way.UPLOAD, "image_name": id, "by": "anna", "created_at": 1, "touched_at": 1}
    return Arrival(id=id, **{**plain, "size_bytes": len(DATA), **more})


class Bench:
    """One server's arrivals, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.room = Room(free_bytes=100 * GIB, total_bytes=200 * GIB)
        self.clock = ManualClock()
        self.images = Images(folder, measure=lambda _: self.room)
        self.start()

    def start(self) -> None:
        self.all = Arrivals(self.images, self.clock, keep_hours=lambda: 24)
        self.all.load()

    def new(self, id: str = "arr-1", **more: Any) -> Arrival:
        now = self.clock.now_ms()
        return replace(arrival(id, **more), created_at=now, touched_at=now)

    def left(self) -> list[str]:
        return sorted(file.name for file in self.images.tmp.iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def pieces(data: bytes, *, then: BaseException | None = None) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 50_000):
        yield data[start : start + 50_000]
    if then is not None:
        raise then


async def test_an_upload_that_breaks_off_goes_on_where_it_was_also_after_a_kill(bench: Bench) -> None:
    await bench.all.create(bench.new())
    with pytest.raises(ConnectionResetError):
        await bench.all.append("arr-1", 0, pieces(DATA[:200_000], then=ConnectionResetError()))
    assert bench.all.get("arr-1").offset == 200_000
    bench.start()
    assert bench.all.get("arr-1").offset == 200_000
    # What a kill left behind the acknowledged bytes counts for nothing.
    with bench.all.path("arr-1").open("ab") as file:
        file.write(b"x" * 999_999)
    with pytest.raises(Conflict) as caught:
        await bench.all.append("arr-1", 199_999, pieces(DATA[199_999:]))
    assert caught.value.code == "wrong_offset"
    done = await bench.all.append("arr-1", 200_000, pieces(DATA[200_000:]))
    assert done.complete
    assert bench.all.path("arr-1").read_bytes() == DATA


async def test_more_than_was_announced_is_refused_before_and_while_it_comes(bench: Bench) -> None:
    await bench.all.create(bench.new())
    with pytest.raises(Refused) as caught:
        await bench.all.append("arr-1", 0, pieces(b""), length=len(DATA) + 1)
    assert caught.value.code == "too_long"
    with pytest.raises(Refused) as caught:
        await bench.all.append("arr-1", 0, pieces(DATA + b"more"))
    assert caught.value.code == "too_long"
    assert bench.all.path("arr-1").stat().st_size <= len(DATA)


async def test_a_piece_with_a_wrong_checksum_leaves_no_trace(bench: Bench) -> None:
    await bench.all.create(bench.new())
    half = len(DATA) // 2
    right = Checksum("sha1", hashlib.sha1(DATA[:half]).digest())  # noqa: S324
    wrong = Checksum("sha256", hashlib.sha256(b"other").digest())
    assert (await bench.all.append("arr-1", 0, pieces(DATA[:half]), checksum=right)).offset == half
    with pytest.raises(Refused) as caught:
        await bench.all.append("arr-1", half, pieces(DATA[half:]), checksum=wrong)
    assert (caught.value.code, bench.all.get("arr-1").offset) == ("checksum", half)
    with pytest.raises(ConnectionResetError):
        await bench.all.append("arr-1", half, pieces(DATA[half:-9], then=ConnectionResetError()), checksum=right)
    assert bench.all.get("arr-1").offset == half


async def test_what_was_begun_while_the_clock_was_ahead_expires_all_the_same(bench: Bench) -> None:
    await bench.all.create(bench.new())
    bench.clock.set_back(400 * 24 * 3600)
    await bench.all.sweep()
    await bench.clock.advance(23 * 3600)
    await bench.all.sweep()
    assert len(bench.all.all()) == 1
    await bench.clock.advance(2 * 3600)
    await bench.all.sweep()
    assert (bench.all.all(), bench.left()) == ((), [])


async def test_a_whole_file_is_not_touched_any_more_for_it_may_have_become_an_image(bench: Bench) -> None:
    await bench.all.create(bench.new())
    await bench.all.append("arr-1", 0, pieces(DATA))
    path = bench.all.path("arr-1")
    path.chmod(0o444)
    os.utime(path, ns=(1, 1))
    assert (await bench.all.append("arr-1", len(DATA), pieces(b""), length=0)).complete
    with pytest.raises(Refused, match="longer than the") as caught:
        await bench.all.append("arr-1", len(DATA), pieces(b"more"))
    assert caught.value.code == "too_long"
    told = path.stat()
    assert (told.st_mtime_ns, told.st_mode & 0o777, path.read_bytes()) == (1, 0o444, DATA)


@pytest.mark.parametrize("when", ["while it comes", "before it is hashed"])
async def test_a_file_that_was_removed_is_named_and_its_import_can_begin_again(bench: Bench, when: str) -> None:
    await bench.all.create(bench.new(sha256=hashlib.sha256(DATA).hexdigest()))
    await bench.all.append("arr-1", 0, pieces(DATA[:100_000]))
    if when == "before it is hashed":
        await bench.all.append("arr-1", 100_000, pieces(DATA[100_000:]))
        bench.start()
    bench.all.path("arr-1").unlink()
    with pytest.raises(NotFound, match="was removed from this server's disk: begin the import again"):
        if when == "before it is hashed":
            await bench.all.check_whole("arr-1")
        else:
            await bench.all.append("arr-1", 100_000, pieces(DATA[100_000:]))
    assert (bench.all.all(), bench.left()) == ((), [])
    await bench.all.create(bench.new())


@pytest.mark.parametrize("killed", [False, True])
async def test_a_whole_file_that_is_not_the_promised_one_is_refused(bench: Bench, killed: bool) -> None:
    for one, sha256 in (("arr-1", hashlib.sha256(DATA).hexdigest()), ("arr-2", hashlib.sha256(b"").hexdigest())):
        await bench.all.create(bench.new(one, sha256=sha256))
        await bench.all.append(one, 0, pieces(DATA[:100_000]))
        if killed:
            bench.start()
        await bench.all.append(one, 100_000, pieces(DATA[100_000:]))
    await bench.all.check_whole("arr-1")
    with pytest.raises(Refused, match="SHA-256 differs"):
        await bench.all.check_whole("arr-2")


async def test_a_new_sender_takes_over_from_one_whose_connection_hangs(bench: Bench) -> None:
    await bench.all.create(bench.new())

    async def hangs() -> AsyncIterator[bytes]:
        yield DATA[:70_000]
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    first = asyncio.create_task(bench.all.append("arr-1", 0, hangs()))
    await begun.wait()
    assert bench.all.sent_now("arr-1")
    known = await bench.all.settle("arr-1")
    assert known.offset == 70_000
    with pytest.raises(Conflict) as caught:
        await first
    assert caught.value.code == "taken_over"
    assert (await bench.all.append("arr-1", 70_000, pieces(DATA[70_000:]))).complete


async def test_what_nobody_goes_on_with_expires(bench: Bench) -> None:
    await bench.all.create(bench.new())
    await bench.clock.advance(23 * 3600)
    await bench.all.append("arr-1", 0, pieces(DATA[:10]))
    await bench.clock.advance(23 * 3600)
    await bench.all.sweep()
    assert bench.all.get("arr-1").offset == 10
    await bench.clock.advance(3601)
    await bench.all.sweep()
    with pytest.raises(NotFound):
        bench.all.get("arr-1")
    assert bench.left() == []


async def test_the_reserve_holds_before_the_first_byte_and_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.room = Room(free_bytes=3 * GIB, total_bytes=100 * GIB)  # one of them is the reserve
    await bench.all.create(bench.new("arr-1", size_bytes=GIB + 1))
    with pytest.raises(Unavailable, match="too small"):
        await bench.all.create(bench.new("arr-2", size_bytes=GIB))
    await bench.all.create(bench.new("arr-3", size_bytes=GIB - 1))
    monkeypatch.setattr("kmgr.templates.arrivals.NOTE_BYTES", 100_000)
    bench.room = Room(free_bytes=GIB, total_bytes=100 * GIB)
    with pytest.raises(Unavailable) as caught:
        await bench.all.append("arr-1", 0, pieces(DATA))
    assert caught.value.code == "disk_full"
    assert bench.all.get("arr-1").offset == 100_000


@pytest.mark.parametrize(
    ("new", "code", "words"),
    [
        (arrival("arr-9", image_name="arr-1"), "name_taken", "is being uploaded as arr-1 by anna: 25 %"),
        (arrival("arr-9"), "too_many", "4 imports under way"),
        (arrival("arr-9", by="ben", size_bytes=17 << 40), "refused", "cannot be taken"),
        (arrival("arr-9", by="ben", size_bytes=0), "refused", "cannot be taken"),
        (arrival("arr-9", by="ben", sha256="abc"), "refused", "64 hexadecimal"),
        (arrival("arr-9", by="ben", image_name=" "), "refused", "not a name"),
    ],
)
def test_what_speaks_against_a_new_one_is_told(new: Arrival, code: str, words: str) -> None:
    known = [arrival(f"arr-{n}", size_bytes=400, offset=100) for n in range(1, 5)]
    with pytest.raises(KmgrError) as caught:
        arriving.check_new(new, known, spare_bytes=10 * GIB)
    assert caught.value.code == code
    assert words in caught.value.message


def test_who_comes_back_with_the_same_file_is_known() -> None:
    known = arrival(fingerprint="f")
    same = {"by": "anna", "image_name": "arr-1", "fingerprint": "f", "size_bytes": len(DATA)}
    assert arriving.same_file(known, **same)  # type: ignore[arg-type]
    for change in ({"by": "ben"}, {"fingerprint": ""}, {"fingerprint": "g"}, {"size_bytes": 1}, {"image_name": "x"}):
        assert not arriving.same_file(known, **{**same, **change})  # type: ignore[arg-type]


async def test_zeros_take_no_room_and_records_that_are_none_are_removed(bench: Bench) -> None:
    await bench.all.create(bench.new(size_bytes=8 * MIB))
    await bench.all.append("arr-1", 0, pieces(bytes(8 * MIB)))
    assert bench.all.path("arr-1").stat().st_blocks == 0
    for name, data in (("arr-2.part", b"x"), ("arr-3.json", b"{"), ("arr-4.json", b'{"offset": -1}')):
        (bench.images.tmp / name).write_bytes(data)
    bench.start()
    assert bench.left() == ["arr-1.json", "arr-1.part"]
    assert arriving.decode(arriving.encode(bench.all.get("arr-1"))) == bench.all.get("arr-1")


async def test_a_length_may_be_told_at_the_end(bench: Bench) -> None:
    await bench.all.create(bench.new(size_bytes=None))
    await bench.all.append("arr-1", 0, pieces(DATA))
    with pytest.raises(Refused):
        await bench.all.set_size("arr-1", len(DATA) - 1)
    assert (await bench.all.set_size("arr-1", len(DATA))).complete
    with pytest.raises(Conflict):
        await bench.all.set_size("arr-1", len(DATA) + 1)


def held_open(path: Path) -> int:
    """Return how often this process has a file open, deleted or not."""
    return sum(found.startswith(str(path)) for found in map(_where, Path("/proc/self/fd").iterdir()))


def _where(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


async def test_a_disk_on_which_nothing_can_be_noted_is_told_and_the_file_is_let_go(bench: Bench) -> None:
    await bench.all.create(bench.new())
    part = bench.all.path("arr-1")
    (bench.images.tmp / "arr-1.new").mkdir()
    with pytest.raises(Unavailable) as caught:
        await bench.all.append("arr-1", 0, pieces(DATA))
    assert caught.value.code == "disk"
    assert held_open(part) == 0, "the room of one that is given up would never be free"


async def test_who_takes_over_waits_until_the_disk_is_done_with_what_came_before(bench: Bench) -> None:
    await bench.all.create(bench.new())
    part, record = bench.all.path("arr-1"), bench.images.tmp / "arr-1.new"

    async def hangs() -> AsyncIterator[bytes]:
        yield DATA[:70_000]
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    os.mkfifo(record)  # as on a very slow disk: nothing is written there before somebody reads
    first = asyncio.create_task(bench.all.append("arr-1", 0, hangs()))
    await begun.wait()
    tasks = [asyncio.create_task(bench.all.settle("arr-1"))]
    while bench.all.get("arr-1").offset < 70_000:  # noqa: ASYNC110 - there is no event for that
        await asyncio.sleep(0.01)
    # Its connection is gone as well, and the next one asks.
    first.cancel()
    tasks.append(asyncio.create_task(bench.all.settle("arr-1")))
    await asyncio.sleep(0.05)
    ended, held = [task.done() for task in (first, *tasks)], held_open(part)
    reading = os.open(record, os.O_RDONLY | os.O_NONBLOCK)
    await asyncio.wait({first, *tasks})
    os.close(reading)
    assert (ended, held) == ([False] * 3, 1)
    assert held_open(part) == 0
    assert [task.result().offset for task in tasks] == [70_000] * 2
    with pytest.raises((KmgrError, asyncio.CancelledError)):
        first.result()
    record.unlink()
    assert (await bench.all.append("arr-1", 70_000, pieces(DATA[70_000:]))).complete
    assert part.read_bytes() == DATA


async def test_of_two_that_take_over_in_the_same_moment_only_one_goes_on(bench: Bench) -> None:
    await bench.all.create(bench.new())

    async def hangs(data: bytes) -> AsyncIterator[bytes]:
        yield data
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    first = asyncio.create_task(bench.all.append("arr-1", 0, hangs(DATA[:70_000])))
    await begun.wait()
    second = asyncio.create_task(bench.all.append("arr-1", 70_000, hangs(b"")))
    third = asyncio.create_task(bench.all.append("arr-1", 70_000, pieces(DATA[70_000:])))
    assert (await third).complete
    await asyncio.wait({first, second}, timeout=5)
    for former in (first, second):
        with pytest.raises(Conflict, match="another connection goes on"):
            former.result()
    assert bench.all.path("arr-1").read_bytes() == DATA
    assert held_open(bench.all.path("arr-1")) == 0


class Slow(Sink):
    """One on a disk that takes its time."""

    def __init__(self, path: Path) -> None:
        path.touch()
        super().__init__(path, 0)
        self.at_it = threading.Event()
        self.go_on = threading.Event()

    def _write(self, data: bytes) -> None:
        self.at_it.set()
        self.go_on.wait()
        super()._write(data)


async def test_what_is_cancelled_in_the_middle_of_a_writing_is_written_first(tmp_path: Path) -> None:
    sink, data = Slow(tmp_path / "arr-1.part"), bytes(range(256)) * 8192
    adding = asyncio.create_task(sink.add(data))
    await asyncio.to_thread(sink.at_it.wait)
    adding.cancel()
    await asyncio.sleep(0.05)
    still_at_it = not adding.done()
    sink.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert still_at_it, "the end could be cut off under a thread that writes there"
    await sink.sync()
    sink.close()
    assert sink.written == len(data)
    assert (tmp_path / "arr-1.part").read_bytes() == data
