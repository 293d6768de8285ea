"""The copies on this server's disks: takes what other servers mirror here, and turns a copy into a disk.

`copies/<desktop>/<generation>/` holds one copy (`mirror_copy`). Cycles into it
come over the stream `copy`; only one at a time, and a new one ends the former,
whose server may have lost its connection without our noticing. A copy whose files
were removed or became shorter is distrusted: the cycle brings all that is missing.
"""

import asyncio
import errno
import logging
import re
import shutil
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from kmgr.clock import Clock
from kmgr.errors import Conflict, KmgrError, NotFound, Refused, Unavailable
from kmgr.grid.handlers import error_body
from kmgr.grid.port import Accept, Requests, Stream
from kmgr.ids import DesktopId, ServerId
from kmgr.replica import mirror_wire as wire
from kmgr.replica.background import at_length, background, to_the_end
from kmgr.replica.images import Images, Measure, disk_error, room
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.mirror_copy import Copy
from kmgr.replica.mirror_held import MARK, Points, stamp_of
from kmgr.replica.mirror_promote import Doubtful, Promotion, promote
from kmgr.replica.mirror_state import Identity, identity_from
from kmgr.replica.mirror_take import Taking
from kmgr.replica.mirror_wire import Kind

logger = logging.getLogger(__name__)

T = TypeVar("T")
Seed = Callable[[DesktopId], Path | None]
Admit = Callable[[ServerId, DesktopId, int], Awaitable[bool]]

_GOOD_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_LAST_WORDS_S = 10.0
# So many copies are read over at once before they are started, and for so long, the waiting included.
READ_AT_ONCE = 2
READ_S = 20.0


def no_seed(_desktop: DesktopId) -> Path | None:
    """Return nothing: no former disk lies here."""
    return None


async def everybody(_server: ServerId, _desktop: DesktopId, _generation: int) -> bool:
    """Admit cycles from any server of the grid."""
    return True


class Copies:
    """The `CopyStore` of this server.

    `seed` finds a former overlay of a desktop, whose grains need not travel; `admit`
    tells whether a server may send cycles of a desktop's generation.
    """

    def __init__(
        self,
        requests: Requests,
        images: Images,
        *,
        clock: Clock,
        seed: Seed = no_seed,
        admit: Admit = everybody,
        measure: Measure = room,
    ) -> None:
        self._images = images
        self._clock = clock
        self._seed = seed
        self._admit = admit
        self._measure = measure
        self._folder = images.data_dir / "copies"
        self._folder.mkdir(parents=True, exist_ok=True)
        # A lock lives as long as somebody has it or waits for it.
        self._alone: WeakValueDictionary[tuple[DesktopId, int], asyncio.Lock] = WeakValueDictionary()
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._points = Points(self._folder)
        self._again: _Again | None = None
        self._taking: dict[tuple[DesktopId, int], Stream] = {}
        for unfinished in self._folder.glob("*/*.new"):
            shutil.rmtree(unfinished, ignore_errors=True)
        requests.serve_stream(wire.STREAM, self._take)

    # -- CopyStore -------------------------------------------------------------------------------------------------

    async def promote(
        self, desktop: DesktopId, generation: int, target: Path, *, accepted: Collection[str] = ()
    ) -> CopyPoint:
        """Make the newest point of a copy an overlay at `target`."""
        until = self._clock.monotonic() + READ_S
        wanted = Promotion(
            self._of(desktop, generation), target, self._base, lambda: self._clock.monotonic() >= until, accepted
        )
        async with self._exclusively(desktop, generation):
            self._close_again()
            try:
                try:
                    async with self._reading:
                        return await _through(promote, wanted)
                except Doubtful:
                    return await to_the_end(at_length(promote, replace(wanted, thorough=True)))
            except OSError as error:
                raise disk_error(error, doing=f"making a disk of the copy of desktop {desktop}") from error

    async def drop(self, desktop: DesktopId, generation: int) -> None:
        """Delete a copy."""
        folder = self._of(desktop, generation)
        async with self._exclusively(desktop, generation):
            self._close_again()
            await _through(_delete, folder)

    async def held(self) -> Sequence[CopyPoint]:
        """Return the newest complete point of every copy."""
        return await asyncio.to_thread(self._points.look)

    def distrusted(self) -> frozenset[DesktopId]:
        """Return whose copies here were known to be bad when `held` was last asked."""
        return self._points.distrusted()

    # -- beyond it -------------------------------------------------------------------------------------------------

    async def verify(self, desktop: DesktopId, generation: int) -> int:
        """Read a copy, return how many of its grains have gone bad; if any, the next cycle compares everything."""
        folder = self._of(desktop, generation)
        async with self._exclusively(desktop, generation):
            return await _through(_verify, folder)

    async def verify_some(self, desktop: DesktopId, generation: int, first: int, most: int) -> tuple[int, int]:
        """Read at most so many grains of a copy from `first` on; a cycle under way goes before: `Unavailable`.

        Returns where to go on (0: it is through) and how many were bad: if any, the next cycle compares everything.
        """
        folder, lock = self._of(desktop, generation), self._lock(desktop, generation)
        if lock.locked():
            raise Unavailable(f"the copy of desktop {desktop} is being updated", code="busy")
        async with lock:
            again, self._again = self._again, None
            read = background(_verify_some, again, folder, first, most)
            self._again, after, wrong = await to_the_end(read, undo=_let_go)
            return after, wrong

    def _close_again(self) -> None:
        """Let go of the copy that is being read again: what is deleted must give its room back."""
        again, self._again = self._again, None
        if again is not None:
            again.copy.close()

    async def used_bytes(self, desktop: DesktopId, generation: int) -> int:
        """Return how much room a copy takes on the disk."""
        folder = self._of(desktop, generation)
        files = await asyncio.to_thread(lambda: [file.stat().st_blocks for file in folder.glob("*")])
        return sum(files) * 512

    # -- cycles ----------------------------------------------------------------------------------------------------

    async def _take(self, peer: ServerId, body: Mapping[str, Any], accept: Accept) -> None:
        try:
            identity = identity_from(body.get("disk") or {})
        except (ValueError, AttributeError) as error:
            raise Refused(f"the request to keep a copy makes no sense: {error}") from error
        if not await self._admit(peer, identity.desktop, identity.generation):
            raise Refused(
                f"desktop {identity.desktop}, generation {identity.generation}, does not belong to server {peer}: "
                "no copy of it is taken from there"
            )
        folder = self._of(identity.desktop, identity.generation)
        await asyncio.to_thread(self._check, identity, folder)
        async with self._exclusively(identity.desktop, identity.generation):
            _check_mark(identity, folder)  # it may have become the disk while this waited
            stream = await accept()
            key = (identity.desktop, identity.generation)
            self._taking[key] = stream
            try:
                await self._cycle(stream, identity, folder)
            except (KmgrError, OSError) as error:
                told = error if isinstance(error, KmgrError) else disk_error(error, doing=_doing(identity))
                logger.info("a cycle of a copy broke", extra={"desktop": identity.desktop, "cause": told.message})
                await _last_words(stream, told)
            finally:
                self._taking.pop(key, None)

    async def _cycle(self, stream: Stream, identity: Identity, folder: Path) -> None:
        taking = await _through(self._begun, folder, identity, undo=Taking.close)
        try:
            self._spare()
            state = taking.copy.state
            hello = {
                "cycle": state.cycle if state else None,
                "still": state.still if state else None,
                "as_of": state.point.as_of if state else None,
            }
            await wire.tell(stream, Kind.HELLO, hello)
            taking.everything = bool(wire.parsed(await wire.expect(stream, Kind.BEGIN)).get("everything"))
            if not taking.everything and (state is None or state.distrusted):
                raise Refused("only changes were announced, and there is nothing here that they could change")
            await _take_all(stream, taking)
        except (KmgrError, OSError) as error:
            if _is_full(error):  # the room that a broken cycle took is given back at once: desktops need it
                await _through(taking.copy.forget)
            raise
        finally:
            await _through(taking.close)

    def _begun(self, folder: Path, identity: Identity) -> Taking:
        seed = self._seed(identity.desktop)
        return Taking(_open(folder, identity), seed=seed, spare=self._spare)

    def _check(self, identity: Identity, folder: Path) -> None:
        """Refuse what could never become a disk here."""
        self._base(identity)
        _check_mark(identity, folder)

    def _base(self, identity: Identity) -> Path:
        """Return the file of the version under a disk, if it is here and the same."""
        try:
            name = self._images.manifest_name(identity.version)
            size_bytes = self._images.path(identity.version).stat().st_size
        except (NotFound, FileNotFoundError):
            raise Unavailable(
                f"version {identity.version}, on which the disk of desktop {identity.desktop} lies, is not on this "
                "server (yet): its copy cannot be kept here",
                code="wrong_base",
            ) from None
        if name != identity.manifest_hash or size_bytes > identity.size_bytes:
            raise Refused(
                f"version {identity.version} has other contents on this server than under the disk of desktop "
                f"{identity.desktop}: a copy would not be the same disk",
                code="wrong_base",
            )
        return self._images.path(identity.version)

    def _spare(self) -> None:
        """Raise `Unavailable` if copies would take the room that running desktops need."""
        if not self._measure(self._folder).spare_bytes:
            raise disk_error(OSError(errno.ENOSPC, "full"), doing="keeping copies of desktops")

    # -- files -----------------------------------------------------------------------------------------------------

    def _of(self, desktop: DesktopId, generation: int) -> Path:
        if not _GOOD_ID.fullmatch(desktop):
            raise Refused(f"{desktop!r} is not the id of a desktop")
        return self._folder / desktop / str(generation)

    @asynccontextmanager
    async def _exclusively(self, desktop: DesktopId, generation: int) -> AsyncIterator[None]:
        """Enter alone: a cycle that is under way is ended first."""
        lock = self._lock(desktop, generation)
        if (former := self._taking.get((desktop, generation))) is not None:
            former.writer.transport.abort()
        async with lock:
            yield

    def _lock(self, desktop: DesktopId, generation: int) -> asyncio.Lock:
        return self._alone.setdefault((desktop, generation), asyncio.Lock())


async def _through(work: Callable[..., T], *values: Any, undo: Callable[[T], object] | None = None) -> T:
    """Return what `work` returns; whoever is stopped meanwhile keeps the copy until the thread is through with it.

    Else its files would be closed under the thread, whose next bytes go wherever the same number leads by then.
    """
    return await to_the_end(asyncio.to_thread(work, *values), undo=undo)


async def _take_all(stream: Stream, taking: Taking) -> None:
    due: deque[list[wire.Offer]] = deque()
    while True:
        kind, payload = await wire.receive(stream)
        match kind:
            case Kind.OFFER:
                offers = wire.parse_offers(payload)
                wanted = await _through(taking.wanted, offers)
                await wire.send(stream, Kind.WANT, wire.spell_wants(wanted))
                if any(wanted):
                    due.append([offer for offer, want in zip(offers, wanted, strict=True) if want])
            case Kind.DATA if due:
                await _through(taking.put, due.popleft(), payload)
            case Kind.COMMIT if not due:
                await _through(taking.commit, wire.parsed(payload))
                await wire.tell(stream, Kind.DONE, {})
                return
            case _:
                raise Refused(f"a message {kind.name} was not due")


async def _last_words(stream: Stream, error: KmgrError) -> None:
    """Say why it ends, and let the other side read it: what it is still sending goes nowhere."""
    with suppress(KmgrError, OSError, TimeoutError):
        await wire.tell(stream, Kind.ERROR, error_body(error))
        async with asyncio.timeout(_LAST_WORDS_S):
            while await stream.reader.read(1 << 16):
                pass


def _is_full(error: KmgrError | OSError) -> bool:
    told = error if isinstance(error, KmgrError) else disk_error(error, doing="")
    return told.code == "disk_full"


def _check_mark(identity: Identity, folder: Path) -> None:
    if (folder / MARK).exists():
        raise Conflict(f"the copy of desktop {identity.desktop} on this server has become its disk")


def _open(folder: Path, identity: Identity) -> Copy:
    """Open a copy for a cycle, which brings what is missing of it; one that is none any more is begun anew."""
    try:
        copy = Copy.opened(folder)
    except (NotFound, Unavailable) as error:
        if folder.exists():
            logger.warning("a safe copy is made anew", extra={"folder": str(folder), "cause": error.message})
            shutil.rmtree(folder)
        return Copy.created(folder, identity)
    try:
        _judge(copy, identity)
    except BaseException:
        copy.close()
        raise
    return copy


def _judge(copy: Copy, identity: Identity) -> None:
    if lacks := copy.lacks():
        told = {"folder": str(copy.folder), "cause": lacks}
        logger.warning("a safe copy lacks a part: it is brought again", extra=told)
        copy.distrust()
    if copy.identity != identity:
        raise Refused(
            f"the copy of desktop {identity.desktop} here is of version {copy.identity.version}, not of "
            f"{identity.version}: drop it first",
            code="wrong_base",
        )


@dataclass(frozen=True, slots=True)
class _Again:
    """A copy that is being read again, stretch by stretch; `stamp` is its index as it was opened."""

    folder: Path
    stamp: tuple[int, int, int]
    copy: Copy


def _verify(folder: Path) -> int:
    _let_go(found := _verify_some(None, folder, 0, sys.maxsize))
    return found[2]


def _let_go(found: tuple["_Again | None", int, int]) -> None:
    if found[0] is not None:
        found[0].copy.close()


def _verify_some(again: "_Again | None", folder: Path, first: int, most: int) -> tuple["_Again | None", int, int]:
    """Read a stretch of the copy that is open already, if it is still what lies there; it is closed at its end."""
    try:
        stamp = _stamp(folder)
        if again is not None and (again.folder, again.stamp) != (folder, stamp):
            again.copy.close()
            again = None
        again = again or _Again(folder, stamp, Copy.opened(folder))
        after, wrong = again.copy.read_again(first, most)
        if wrong:
            logger.warning("a copy has gone bad on this disk", extra={"folder": str(folder), "grains": len(wrong)})
            again.copy.distrust()
    except BaseException:
        if again is not None:
            again.copy.close()
        raise
    if after and not wrong:
        return again, after, 0
    again.copy.close()
    return None, after, len(wrong)


def _stamp(folder: Path) -> tuple[int, int, int]:
    try:
        return stamp_of((folder / "index").stat())
    except FileNotFoundError:
        raise NotFound(f"there is no copy in {folder}") from None


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def _doing(identity: Identity) -> str:
    return f"keeping the copy of desktop {identity.desktop}"
