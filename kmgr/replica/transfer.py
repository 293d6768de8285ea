"""How blocks go from server to server, on the `Requests` port: the source's end, and the questions of the other.

* call `manifest` {version, offset}: a stretch of the encoded manifest, base64, and its whole length.
* stream `blocks` {version, manifest_hash}: see `frames`.

A source serves what it is still copying as well, and tells at once what it got. Of what it has all of, it gives
each piece to one receiver before any to two (`deal`). It serves a bounded number at a time: the others will have
it from those. On a slow link pieces go compressed if that pays (`squeeze`). Nothing a source says is believed: a
manifest must have the hash in the log, blocks theirs in the manifest. Runs in the daemon's loop; files are touched
in threads.
"""

import asyncio
import base64
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from kmgr.clock import Clock
from kmgr.errors import Refused, Unavailable
from kmgr.grid.port import Accept, Requests, Stream
from kmgr.ids import ServerId, VersionId
from kmgr.replica import frames, zstd
from kmgr.replica import manifest as m
from kmgr.replica.background import background, to_the_end
from kmgr.replica.blocks import Data
from kmgr.replica.budget import Budget
from kmgr.replica.choose import SERVED
from kmgr.replica.deal import Deal
from kmgr.replica.fetch import MOST_ASKS, listed
from kmgr.replica.frames import Buffers, Inlet, Kind
from kmgr.replica.images import Images
from kmgr.replica.manifest_file import Incoming
from kmgr.replica.model import Version
from kmgr.replica.outlet import SLICE, Outlet
from kmgr.replica.part import Part, Whole
from kmgr.replica.squeeze import Link, Squeeze
from kmgr.whole import is_whole, must_be

logger = logging.getLogger(__name__)

# As base64 this stays below the 1 MiB that an answer may have.
_STRETCH = 640 * 1024
# News go with the next answer; where there is none to send, they rest this long after the last ones.
# Each costs two servers more than a hundredth of a piece does; this is far less than a piece takes at 1 Gbit/s.
NEWS_S = 0.02

PartOf: TypeAlias = Callable[[VersionId], Part | None]


class Source:
    """Gives other servers what this one has; `part_of` finds the copies that are still under way."""

    def __init__(
        self,
        requests: Requests,
        images: Images,
        *,
        part_of: PartOf,
        clock: Clock | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._images = images
        self._part_of = part_of
        self._clock = clock
        self._budget = budget or Budget()
        self._deals: dict[VersionId, Deal] = {}
        self._servings: dict[VersionId, list[_Serving]] = {}
        self._sent: dict[VersionId, int] = {}
        self._link = Link()
        self._buffers = Buffers(m.PIECE_BYTES)
        self._squeezes: dict[VersionId, Squeeze] = {}
        requests.serve("manifest", self._manifest)
        requests.serve_stream("blocks", self._blocks)

    def sent(self) -> Mapping[VersionId, int]:
        """Return how many bytes of each version went to other servers since this daemon started."""
        return dict(self._sent)

    async def _manifest(self, _peer: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        version, offset = _version(body), body.get("offset", 0)
        if not is_whole(offset):
            raise Refused(f"offset {must_be(offset)}")
        data, total = await background(self._images.manifest_stretch, version, offset, _STRETCH)
        return {"total": total, "data": base64.b64encode(data).decode()}

    async def _blocks(self, peer: ServerId, body: Mapping[str, Any], accept: Accept) -> None:
        version = _version(body)
        servings = self._servings.setdefault(version, [])
        for silent in self._silent(servings):
            silent.dismiss()
        if sum(not one.dismissed for one in servings) >= SERVED:
            raise Unavailable(f"version {version} is given to {SERVED} servers already", code="busy")
        serving = _Serving(self, peer, version)
        servings.append(serving)
        try:
            await serving.prepare()
            await serving.serve(await accept())
        finally:
            servings.remove(serving)
            serving.close()

    def _silent(self, servings: list["_Serving"]) -> list["_Serving"]:
        """Return the receivers that have not said anything for long: nobody may be there any more."""
        if self._clock is None:
            return []
        now = self._clock.monotonic()
        return [one for one in servings if now - one.heard >= frames.SILENT_S and not one.dismissed]

    def now(self) -> float:
        """Return the time by which silence is counted."""
        return self._clock.monotonic() if self._clock else 0.0

    def _deal(self, version: VersionId) -> Deal:
        return self._deals.setdefault(version, Deal())


class _Serving:
    """One receiver that draws one version from this server."""

    def __init__(self, source: Source, peer: ServerId, version: VersionId) -> None:
        self._source = source
        self._images = source._images
        self._peer = peer
        self._version = version
        self._deal: Deal | None = None
        self._part: Part | None = None
        self._whole: Whole | None = None
        self._news: list[int] = []
        self._asked: deque[tuple[int, int, int]] = deque()
        self._something = asyncio.Event()
        self._hung_up = False
        self._small: list[bytes] = []
        self._resting: asyncio.TimerHandle | None = None
        self._outlet: Outlet | None = None
        self._stream: Stream | None = None
        self.heard = source.now()
        self.dismissed = False

    async def prepare(self) -> None:
        """Find what there is to give; raise `NotFound` if nothing is."""
        self._manifest = await background(self._images.manifest, self._version)
        self._part = self._source._part_of(self._version)
        if self._part is None:
            await self._open_whole()
        else:
            self._part.listeners.add(self._gained)

    async def _open_whole(self) -> None:
        self._whole = await background(Whole, self._images, self._version, self._manifest)
        self._deal = self._source._deal(self._version)
        self._deal.joins(self._peer)

    def close(self) -> None:
        """Let go of the files."""
        if self._resting is not None:
            self._resting.cancel()
        if self._part is not None:
            self._part.listeners.discard(self._gained)
        if self._whole is not None:
            self._whole.close()
        if self._deal is not None:
            self._deal.leaves(self._peer)
            if not self._deal.receivers:
                self._source._deals.pop(self._version, None)

    def dismiss(self) -> None:
        """Hang up on a receiver that is silent."""
        if self._stream is not None:
            logger.info("a receiver of an image fell silent", extra={"server": self._peer, "version": self._version})
            self.dismissed = True
            self._stream.writer.transport.abort()

    async def serve(self, stream: Stream) -> None:
        """Answer until the receiver hangs up."""
        self._stream, self._outlet = stream, Outlet(stream)
        self.heard = self._source.now()
        await stream.reader.readexactly(len(frames.HELLO))
        self._have()
        listening = asyncio.create_task(self._listen(stream.reader))
        try:
            while not (self._hung_up or stream.writer.transport.is_closing()):
                self._something.clear()
                if self._asked:
                    self._tell()
                    await self._answer(stream, *self._asked.popleft())
                    continue
                if self._resting is None and self._tell():
                    self._resting = asyncio.get_running_loop().call_later(NEWS_S, self._rested)
                self._write(stream)
                await self._something.wait()
            await stream.writer.drain()
            if listening.done():
                listening.result()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                question = await reader.readexactly(frames.QUESTION.size)
                self.heard = self._source.now()
                if question == frames.HELLO:
                    continue
                if len(self._asked) > 2 * MOST_ASKS:
                    raise Refused(f"more than {2 * MOST_ASKS} questions at once")
                piece, wanted, flags = frames.QUESTION.unpack(question)
                if piece >= self._manifest.pieces:
                    raise Refused(f"version {self._version} has no piece {piece}")
                self._asked.append((piece, wanted, flags))
                self._something.set()
        except asyncio.IncompleteReadError:
            pass
        finally:
            self._hung_up = True
            self._something.set()

    def _gained(self, piece: int) -> None:
        self._news.append(piece)
        self.look_up()

    def look_up(self) -> None:
        """Hear that there are news for the receiver."""
        if self._resting is None:
            self._something.set()

    def _rested(self) -> None:
        self._resting = None
        self._something.set()

    def _have(self) -> None:
        have = b""
        if self._part is not None:
            have = self._part.have.to_bytes(-(-self._manifest.pieces // 8), "little")
        self._say(Kind.HAVE, data=have)

    def _tell(self) -> bool:
        """Say the news, if there are any."""
        told = False
        if self._news:
            news, self._news = self._news, []
            self._say(Kind.NEWS, data=frames.spelled(news))
            told = True
        if self._deal is not None and (given := self._deal.news(self._peer)):
            self._say(Kind.GIVEN, data=frames.spelled(listed(given)))
            told = True
        return told

    def _say(self, kind: Kind, *, piece: int = 0, data: bytes = b"") -> None:
        """Send a small frame with the next bytes that are written: each writing costs a packet."""
        self._small.append(frames.HEAD.pack(kind, piece, len(data)) + data)

    def _write(self, stream: Stream, *more: bytes | memoryview) -> None:
        if self._small or more:
            small, self._small = self._small, []
            stream.writer.writelines((*small, *more))

    async def _answer(self, stream: Stream, piece: int, wanted: int, flags: int) -> None:
        if self._deal is not None:
            if not self._deal.asked(self._peer, piece, insist=bool(flags & frames.INSIST)):
                self._say(Kind.DECLINED, piece=piece)
                return
            for other in self._source._servings.get(self._version, ()):
                if other is not self and other._deal is not None:
                    other.look_up()
        expected = sum(length for _, length in self._manifest.stretches(piece, wanted))
        data = await self._read(piece, wanted, expected)
        if not expected or len(data) != expected:
            if data:
                logger.warning("an image's file is shorter than it should be", extra={"version": self._version})
            self._say(Kind.LACKING, piece=piece)
            return
        squeezed = await self._squeezed(data) if flags & frames.SQUEEZE else None
        if squeezed is None:
            await self._send(stream, Kind.BLOCKS, piece, data)
            self._source._buffers.give_back_unused(data)
        else:
            await self._send(stream, Kind.SQUEEZED, piece, squeezed)

    async def _squeezed(self, data: Data) -> bytes | None:
        """Return a piece compressed, or nothing where that does not pay."""
        source = self._source
        squeeze = source._squeezes.setdefault(self._version, Squeeze())
        if source._clock is None or not zstd.available() or not squeeze.tries(source._link.rate):
            return None
        began = source._clock.monotonic()
        squeezed = await background(zstd.compress, bytes(data))
        shrank = squeeze.learn(len(data), len(squeezed), source._clock.monotonic() - began)
        return squeezed if shrank else None

    async def _read(self, piece: int, wanted: int, expected: int) -> Data:
        """Return some blocks of a piece: at once if they are in memory, else by a thread."""
        room = memoryview(self._source._buffers.take())[:expected]
        if self._part is not None:
            try:
                if self._part.at_hand(piece, wanted, room):
                    return room
                return await self._from_disk(self._part, piece, wanted)
            except Unavailable:  # the copy ended: well, or it is begun anew
                self._part.listeners.discard(self._gained)
                self._part = None
                await self._open_whole()
        assert self._whole is not None  # noqa: S101 - there is always one of the two
        if self._whole.at_hand(piece, wanted, room):
            return room
        self._source._buffers.give_back_unused(room)
        return await self._from_disk(self._whole, piece, wanted)

    async def _from_disk(self, file: Part | Whole, piece: int, wanted: int) -> Data:
        """Return some blocks of a piece, none if this disk cannot read them: then that piece is lacking here."""
        try:
            return await background(file.read, piece, wanted)
        except OSError as error:
            told = {"version": self._version, "piece": piece, "cause": str(error)}
            logger.error("a piece of an image cannot be read from this disk", extra=told)
            return b""

    async def _send(self, stream: Stream, kind: Kind, piece: int, data: Data) -> None:
        self._small.append(frames.HEAD.pack(kind, piece, len(data)))
        rest = memoryview(data)
        source, outlet = self._source, self._outlet
        assert outlet is not None  # noqa: S101 - nothing is sent before there is a stream
        while rest:
            part, rest = rest[:SLICE], rest[SLICE:]
            if source._clock is None:
                self._write(stream, part)
                await stream.writer.drain()
            else:
                await self._timed(stream, part, source._clock)
                outlet.sent(len(part), now=source._clock.monotonic())
            source._sent[self._version] = source._sent.get(self._version, 0) + len(part)

    async def _timed(self, stream: Stream, part: memoryview, clock: Clock) -> None:
        """Send a part when the budget allows it, and note how long the link took."""
        link, taken = self._source._link, 0
        link.waits(now=clock.monotonic())
        try:
            wait_s = self._source._budget.spend(len(part), now=clock.monotonic())
            if wait_s:
                await clock.sleep(wait_s)
            self._write(stream, part)
            await stream.writer.drain()
            taken = len(part)
        finally:
            link.took(taken, now=clock.monotonic())


async def fetch_manifest(requests: Requests, server: ServerId, version: Version, images: Images) -> m.Manifest:
    """Bring a version's manifest from another server; raise `Refused` if it isn't what the log says.

    It goes to the disk as it comes: that of a large image is large.
    """
    most = m.most_bytes(version.used_bytes, version.block_bytes)
    incoming, total = await to_the_end(background(images.incoming, version.id), undo=Incoming.close), 1
    try:
        while incoming.length < total:
            answer = await requests.call(server, "manifest", {"version": version.id, "offset": incoming.length})
            total = answer.get("total", 0)
            stretch = _unpacked(answer.get("data"))
            if not is_whole(total, 1, most) or not stretch:
                raise Refused(f"server {server} sent a manifest of version {version.id} that cannot be right")
            if not incoming.length and (other := m.other_format(stretch[: m.HEAD_BYTES])):
                raise Unavailable(f"server {server} has version {version.id}, but {other}", code="manifest_format")
            await background(images.add_to, incoming, stretch)
        if incoming.name != version.manifest_hash:
            raise Refused(f"server {server} sent another manifest of version {version.id} than the log names")
        return await background(images.take_manifest, version.id, incoming)
    finally:
        await to_the_end(background(incoming.close))


async def open_blocks(
    requests: Requests, server: ServerId, version: Version, *, pieces: int, buffers: Buffers | None = None
) -> Inlet:
    """Open the stream on which pieces are asked for."""
    body = {"version": version.id, "manifest_hash": version.manifest_hash}
    stream = await requests.open(server, "blocks", body)
    return Inlet(stream, pieces=pieces, buffers=buffers or Buffers(m.PIECE_BYTES))


def _version(body: Mapping[str, Any]) -> VersionId:
    version = body.get("version")
    if not isinstance(version, str):
        raise Refused("the request names no version")
    return VersionId(version)


def _unpacked(text: object) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except ValueError as error:
        raise Refused("the other server's answer is not base64") from error
