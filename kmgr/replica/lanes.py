"""The streams on which a copy draws pieces, one lane for each source.

`choose` decides from which servers, `fetch` what from whom. A lane takes what comes and has it verified and
written in a thread; one whose source breaks or lies ends, and the others do its work. A source that broke is tried
again after a pause, one that lied is not.

Runs in the daemon's loop.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kmgr.clock import Clock
from kmgr.errors import KmgrError, NotFound, Unavailable
from kmgr.grid.port import Requests
from kmgr.ids import ServerId, VersionId
from kmgr.replica import choose, frames, transfer, zstd
from kmgr.replica import manifest as m
from kmgr.replica.background import background
from kmgr.replica.budget import Budget
from kmgr.replica.fetch import Ask, Fetch, all_pieces
from kmgr.replica.frames import Buffers, Frame, Inlet, Kind
from kmgr.replica.model import Version
from kmgr.replica.pace import Pace
from kmgr.replica.part import Part, WrongBytes
from kmgr.replica.progress import Rate

logger = logging.getLogger(__name__)


class _Busy(Exception):
    """The source serves as many as it may."""


@dataclass(slots=True, eq=False)
class _Lane:
    """One source: its stream once it stands, what it owes in the order of asking, when it was heard and spoken to."""

    task: asyncio.Task[None] | None = None
    inlet: Inlet | None = None
    owed: deque[tuple[int, int]] = field(default_factory=deque)
    heard: float = 0.0
    spoke: float = 0.0


class Liars(dict[ServerId, str]):
    """Who sent wrong bytes of a version, and what was wrong."""

    def accuse(self, server: ServerId, cause: str, *, version: VersionId) -> None:
        """Note it; nothing is asked of this server any more."""
        self[server] = cause
        logger.warning(
            "a server sent wrong bytes of an image", extra={"server": server, "version": version, "cause": cause}
        )


class Lanes:
    """Draws what `part` lacks from the servers that `sources` names, beginning at `place` (a share of all pieces)."""

    def __init__(
        self,
        version: Version,
        part: Part,
        *,
        requests: Requests,
        clock: Clock,
        sources: Callable[[], Sequence[ServerId]],
        liars: Liars,
        place: float,
        pace: Pace,
        budget: Budget,
    ) -> None:
        self.received = self.twice = self._kept = 0
        self._version = version
        self._part = part
        self._requests = requests
        self._clock = clock
        self._sources = sources
        self._liars = liars
        self._place = place
        self._pace = pace
        self._budget = budget
        self._fetch = Fetch(
            part.manifest.pieces,
            have=part.have,
            start=int(place * part.manifest.pieces),
            cost=lambda piece: part.missing(piece).bit_count() * part.manifest.block_bytes,
        )
        self._buffers = Buffers(m.PIECE_BYTES)
        self._lanes: dict[ServerId, _Lane] = {}
        self._paused: dict[ServerId, float] = {}
        self._tries: dict[ServerId, int] = {}
        self._moved = asyncio.Event()
        self._unsynced = 0
        self._flushing: asyncio.Task[None] | None = None
        self._rate = Rate()

    def rate(self) -> int:
        """Return how many bytes come per second."""
        return self._rate.now(self._clock.monotonic())

    def giving(self) -> tuple[ServerId, ...]:
        """Return the servers that owe something now."""
        return tuple(server for server in self._fetch.sources if self._lanes.get(server, _Lane()).owed)

    async def fill(self, *, unsynced: int = 0) -> None:
        """Return once every piece is here; raise what prevented it. So many pieces were written before, unsynced."""
        self._unsynced = unsynced
        looking = asyncio.create_task(self._keep_looking())
        try:
            await self._draw(looking)
        finally:
            looking.cancel()
            tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(looking, *tasks, return_exceptions=True)
            self._lanes.clear()
            if self._flushing is not None:
                self._flushing.cancel()

    async def _draw(self, looking: asyncio.Task[None]) -> None:
        seen = self._clock.monotonic()
        while not self._fetch.done:
            now = self._clock.monotonic()
            if self._fetch.reachable or self._unheard():
                seen = now
            elif now - seen > self._pace.patience_s:
                raise Unavailable("no server that has the rest of it can be reached")
            await self._moves(min(self._pace.look_s, self._ask_all(now) or self._pace.look_s))
            self._collect()
            if looking.done():
                looking.result()

    def _unheard(self) -> bool:
        """Tell whether some source was just asked for the first time and may still answer that it has the rest."""
        heard = self._fetch.sources
        return any(server not in self._tries and server not in heard for server in self._lanes)

    def _ask_all(self, now: float) -> float:
        """Ask every source for as much as it may owe; return how long to wait if the budget is spent."""
        for server, lane in self._lanes.items():
            if lane.inlet is None:
                continue
            # One that owes something, or has not even said what it has: nobody may be there any more.
            awaited = lane.owed or server not in self._fetch.sources
            if awaited and now - lane.heard > self._pace.silence_s:
                lane.inlet.close(f"nothing came for {self._pace.silence_s:g} s")
                continue
            while not (wait_s := self._budget.wait_s(now=now)):
                ask = self._fetch.next(server, now=now)
                if ask is None:
                    break
                self._send(lane, lane.inlet, ask, now)
            if wait_s:
                return wait_s
        return 0.0

    def _send(self, lane: _Lane, inlet: Inlet, ask: Ask, now: float) -> None:
        wanted = self._part.missing(ask.piece)
        if not lane.owed:
            lane.heard = now
        lane.owed.append((ask.piece, wanted))
        lane.spoke = now
        inlet.ask(ask, wanted)
        self._budget.spend(wanted.bit_count() * self._part.manifest.block_bytes, now=now)

    async def _keep_looking(self) -> None:
        """Give sources that may have something a lane, and take it from those that have nothing (left)."""
        while True:
            now = self._clock.monotonic()
            self._paused = {server: until for server, until in self._paused.items() if until > now}
            self._stay(now)
            able = [server for server in self._sources() if server not in self._paused]
            useless = [server for server in self._lanes if not self._fetch.useful(server)]
            for server in choose.to_leave(able, self._lanes, useless):
                if (inlet := self._lanes[server].inlet) is not None:
                    inlet.close("others may have more")
            for server in choose.to_open(str(self._place), able, self._lanes):
                self._lanes[server] = lane = _Lane()
                lane.task = asyncio.create_task(self._lane(server, lane))
            until = min([now + self._pace.look_s, *self._paused.values()])
            await self._clock.sleep(max(self._pace.look_s / 20, until - now))

    def _stay(self, now: float) -> None:
        """Keep our places at sources of which nothing is wanted just now."""
        for lane in self._lanes.values():
            if lane.inlet is not None and now - lane.spoke >= self._pace.here_s:
                lane.inlet.stay()
                lane.spoke = now

    async def _lane(self, server: ServerId, lane: _Lane) -> None:
        """Take what one source sends until the copy is done or the source fails."""
        try:
            lane.inlet = inlet = await self._open(server)
            lane.heard = self._clock.monotonic()
            while True:
                frame = await inlet.next()
                lane.heard = self._clock.monotonic()
                await self._take(server, lane, frame)
                inlet.done_with(frame)
                self._moved.set()
        except WrongBytes as error:
            self._liars.accuse(server, str(error), version=self._version.id)
        except (NotFound, _Busy):
            # A source that has nothing yet, or no hand free, rests a little, each time longer.
            self._rest(server, self._pace.look_s)
        except (KmgrError, OSError) as error:
            # A source that cannot read its own disk is out of use, not this server's disk.
            if lane.inlet is not None and getattr(error, "code", "").startswith("disk"):
                raise
            self._rest(server, self._pace.pause_s)
            logger.info(
                "a source of an image broke off",
                extra={"server": server, "version": self._version.id, "cause": str(error)},
            )
        finally:
            if lane.inlet is not None:
                lane.inlet.close("the copy ended")
            self._fetch.drop(server)
            self._moved.set()

    async def _open(self, server: ServerId) -> Inlet:
        pieces, buffers = self._part.manifest.pieces, self._buffers
        try:
            return await transfer.open_blocks(self._requests, server, self._version, pieces=pieces, buffers=buffers)
        except Unavailable as error:
            raise (_Busy() if error.code == "busy" else error) from error

    async def _take(self, server: ServerId, lane: _Lane, frame: Frame) -> None:
        """Do what a frame calls for."""
        fetch, pieces = self._fetch, self._part.manifest.pieces
        now = self._clock.monotonic()
        match frame.kind:
            case Kind.HAVE:
                fetch.offer(server, int.from_bytes(frame.data, "little") if frame.data else all_pieces(pieces))
                return
            case Kind.NEWS:
                fetch.gained(server, frames.numbers(frame.data, below=pieces))
                return
            case Kind.GIVEN:
                fetch.given(server, frames.numbers(frame.data, below=pieces), now=now)
                return
        piece, wanted = lane.owed.popleft() if lane.owed else (-1, 0)
        if piece != frame.piece:
            raise Unavailable(f"an answer came that was not asked for (piece {frame.piece})")
        match frame.kind:
            case Kind.LACKING:
                fetch.lacking(server, piece)
            case Kind.DECLINED:
                fetch.declined(server, piece, now=now)
            case _:
                await self._keep_blocks(server, piece, wanted, frame)

    async def _keep_blocks(self, server: ServerId, piece: int, wanted: int, frame: Frame) -> None:
        part, data = self._part, frame.data
        self.received += len(data)
        if not part.missing(piece):
            self.twice += len(data)
            self._fetch.arrived(server, piece)
            return
        if frame.kind is Kind.SQUEEZED:
            data = await background(self._expanded, piece, wanted, data)
            # What did not have to come may come of something else.
            self._budget.spend(len(frame.data) - len(data), now=self._clock.monotonic())
        await background(part.write, piece, wanted, data)
        self._kept += len(data)
        if frame.kind is Kind.SQUEEZED:
            self._buffers.give_back(data.obj)
        part.here(piece, wanted)
        self._fetch.arrived(server, piece)
        self._tries[server] = 0
        self._rate.note(self._kept, now=self._clock.monotonic())
        self._unsynced += 1
        if self._unsynced >= self._pace.flush_pieces and self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())

    def _expanded(self, piece: int, wanted: int, data: memoryview) -> memoryview:
        length = sum(length for _, length in self._part.manifest.stretches(piece, wanted))
        room = memoryview(self._buffers.take())[:length]
        try:
            zstd.expand(data, room)
        except ValueError as error:
            raise WrongBytes(f"piece {piece} of version {self._version.id}: {error}") from error
        return room

    async def _flush(self) -> None:
        count = self._unsynced
        await background(self._part.flush)
        self._unsynced -= count

    def _collect(self) -> None:
        """Forget lanes that ended; raise what only they could know (our own disk failed)."""
        for server, lane in list(self._lanes.items()):
            if lane.task is not None and lane.task.done():
                del self._lanes[server]
                lane.task.result()
        if self._flushing is not None and self._flushing.done():
            flushing, self._flushing = self._flushing, None
            flushing.result()

    async def _moves(self, timeout_s: float) -> None:
        """Wait until something arrived or a source appeared, at most `timeout_s`."""
        if not self._moved.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._moved.wait()
            except TimeoutError:
                pass
        self._moved.clear()

    def _rest(self, server: ServerId, longest_s: float) -> None:
        """Try a source again soon, but later each time it fails in a row."""
        tries = self._tries.get(server, 0)
        self._tries[server] = tries + 1
        rest_s = min(longest_s, self._pace.look_s / 20 * 2.0 ** min(tries, 10))
        self._paused[server] = self._clock.monotonic() + rest_s
