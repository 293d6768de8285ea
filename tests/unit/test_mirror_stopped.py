"""Who is stopped while a thread works on a safe copy lets go of it when the thread is through, and not before."""

import asyncio
import hashlib
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest

from kmgr.ids import DesktopId
from kmgr.replica import mirror_receive
from kmgr.replica import mirror_wire as wire
from kmgr.replica.background import background
from kmgr.replica.grains import GRAIN
from kmgr.replica.mirror_copy import Copy
from kmgr.replica.mirror_promote import Doubtful, Promotion
from kmgr.replica.mirror_take import Taking
from kmgr.replica.mirror_wire import Kind, Offer
from tests.lab.mirrors import D1, B, Pair

DATA = b"x" * GRAIN


class Gate:
    """Holds a thread up in the middle of its work."""

    def __init__(self) -> None:
        self.through = 0
        self._began, self._open = threading.Event(), threading.Event()

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def held_up(*values: Any) -> Any:
            self._began.set()
            self._open.wait(10)
            found = work(*values)
            self.through += 1
            return found

        return held_up

    async def reached(self) -> None:
        await asyncio.to_thread(self._began.wait, 10)

    async def stops(self, task: "asyncio.Task[Any]") -> bool:
        """Cancel a task; tell whether it had ended before the thread could."""
        task.cancel()
        await asyncio.sleep(0.03)
        early = task.done()
        self._open.set()
        with suppress(asyncio.CancelledError):
            await task
        return early


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path, size=4 * GRAIN)


async def test_a_cycle_that_is_stopped_closes_no_file_under_the_thread_that_writes_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    monkeypatch.setattr(Taking, "put", gate.around(Taking.put))
    port = pair.network.port(B)
    identity = asdict(pair.a.mirror._identity(D1, 1, pair.a.disk))
    stream = await port.open(B, wire.STREAM, {"disk": identity})
    await wire.expect(stream, Kind.HELLO)
    await wire.tell(stream, Kind.BEGIN, {"everything": True})
    await wire.send(stream, Kind.OFFER, wire.spell_offers([Offer(1, hashlib.sha256(DATA).digest())]))
    await wire.expect(stream, Kind.WANT)
    await wire.send(stream, Kind.DATA, DATA)
    await gate.reached()
    (task,) = port._handlers._tasks
    assert not await gate.stops(task)
    assert gate.through == 1
    stream.writer.close()
    # What it wrote is kept for the next attempt.
    copy = Copy.opened(pair.b.copy)
    assert copy.digest(1, read=True) == hashlib.sha256(DATA).digest()
    copy.close()


class Kept:
    """A copy that was opened to be read again."""

    closed = False

    def close(self) -> None:
        self.closed = True


async def test_a_reading_that_is_stopped_keeps_the_copy_for_itself_until_its_thread_is_through(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, kept = Gate(), Kept()
    again = mirror_receive._Again(pair.b.copy, (0, 0, 0), cast("Copy", kept))
    monkeypatch.setattr(mirror_receive, "_verify_some", gate.around(lambda *_: (again, 5, 0)))
    reading = asyncio.create_task(pair.b.copies.verify_some(D1, 1, 0, 5))
    await gate.reached()
    lock = pair.b.copies._lock(D1, 1)
    reading.cancel()
    await asyncio.sleep(0.03)
    assert lock.locked()
    assert not await gate.stops(reading)
    assert kept.closed
    assert not lock.locked()


@pytest.mark.parametrize("what", ["promote", "_delete"])
async def test_a_copy_that_becomes_a_disk_or_is_deleted_is_nobody_else_s_until_that_ended(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    gate = Gate()
    monkeypatch.setattr(mirror_receive, what, gate.around(lambda *_: None))
    copies = pair.b.copies
    work = copies.promote(D1, 1, pair.b.disk) if what == "promote" else copies.drop(D1, 1)
    task = asyncio.ensure_future(cast("Any", work))
    await gate.reached()
    lock = copies._lock(D1, 1)
    task.cancel()
    await asyncio.sleep(0.03)
    assert lock.locked()
    assert not await gate.stops(task)
    assert not lock.locked()


async def test_the_long_look_at_many_bad_copies_keeps_no_thread_from_images(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def looks(wanted: Promotion) -> None:
        if not wanted.thorough:
            raise Doubtful("it is known to be bad")
        go_on.wait(10)

    monkeypatch.setattr(mirror_receive, "promote", looks)
    looking = [asyncio.ensure_future(pair.b.copies.promote(D1, n, pair.b.disk)) for n in range(1, 7)]
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(background(divmod, 7, 2), 2) == (3, 1)
    go_on.set()
    await asyncio.gather(*looking)


async def test_a_former_disk_is_looked_for_and_opened_by_a_thread(pair: Pair) -> None:
    looked: list[threading.Thread] = []

    def seed(_desktop: DesktopId) -> Path:
        looked.append(threading.current_thread())
        return pair.b.disk

    pair.b.copies._seed = seed
    await pair.a.mirror.cycle(D1, 1, pair.a.disk, to=B, last=None)
    (thread,) = looked
    assert thread is not threading.current_thread()
