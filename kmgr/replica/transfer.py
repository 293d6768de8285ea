"""How blocks go from server to server, on the `Requests` port: both ends.

* call `manifest` {version, offset}: a stretch of the encoded manifest, base64, and its whole length.
* call `pieces` {version}: which pieces this server can give; `null` means all.
* stream `blocks` {version, manifest_hash}: the receiver sends piece numbers (u32),
  the source answers each with a length (u32) and that many bytes; length 0 says
  "not here". Several may be asked for ahead. The receiver ends it by closing.

Numbers are big-endian. A source serves what it is still copying as well. Nothing
a source says is believed: a manifest must have the hash in the log, blocks
theirs in the manifest. Runs in the daemon's loop; files are touched in threads.
"""

import asyncio
import base64
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from kmgr.errors import NotFound, Refused, Unavailable
from kmgr.grid.port import Accept, Requests, Stream
from kmgr.ids import ServerId, VersionId
from kmgr.replica import manifest as m
from kmgr.replica.images import Images
from kmgr.replica.model import Version
from kmgr.replica.part import Part, Whole

# As base64 this stays below the 1 MiB that an answer may have.
_STRETCH = 640 * 1024
_MOST_PIECE = m.PIECE_BLOCKS << 20
# A piece takes milliseconds; a source silent for this long is as good as dead.
SILENCE_S = 20.0

PartOf: TypeAlias = Callable[[VersionId], Part | None]


class Source:
    """Gives other servers what this one has; `part_of` finds the copies that are still under way."""

    def __init__(self, requests: Requests, images: Images, *, part_of: PartOf) -> None:
        self._images = images
        self._part_of = part_of
        requests.serve("manifest", self._manifest)
        requests.serve("pieces", self._pieces)
        requests.serve_stream("blocks", self._blocks)

    async def _manifest(self, _peer: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        version, offset = _version(body), body.get("offset", 0)
        if not isinstance(offset, int) or offset < 0:
            raise Refused("offset must be a whole number from 0")
        data = await asyncio.to_thread(self._images.manifest_bytes, version)
        return {"total": len(data), "data": base64.b64encode(data[offset : offset + _STRETCH]).decode()}

    async def _pieces(self, _peer: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        version = _version(body)
        part = self._part_of(version)
        if part is not None:
            have = part.have
            return {"pieces": base64.b64encode(have.to_bytes(-(-have.bit_length() // 8), "little")).decode()}
        if await asyncio.to_thread(self._images.path(version).exists):
            return {"pieces": None}
        raise NotFound(f"version {version} is not on this server")

    async def _blocks(self, _peer: ServerId, body: Mapping[str, Any], accept: Accept) -> None:
        version = _version(body)
        manifest = await asyncio.to_thread(self._images.manifest, version)
        reader: Part | Whole | None = self._part_of(version)
        if reader is None:
            reader = await asyncio.to_thread(Whole, self._images, version, manifest)
        try:
            stream = await accept()
            while number := await _number(stream.reader):
                piece = int.from_bytes(number)
                if piece >= manifest.pieces:
                    raise Refused(f"version {version} has no piece {piece}")
                data = await asyncio.to_thread(reader.read, piece)
                stream.writer.write(len(data).to_bytes(4))
                stream.writer.write(data)
                await stream.writer.drain()
        finally:
            if isinstance(reader, Whole):
                reader.close()


async def fetch_manifest(requests: Requests, server: ServerId, version: Version) -> bytes:
    """Return a version's manifest from another server; raise `Refused` if it isn't what the log says."""
    most = m.most_bytes(version.used_bytes, version.block_bytes)
    data, total = b"", 1
    while len(data) < total:
        answer = await requests.call(server, "manifest", {"version": version.id, "offset": len(data)})
        total = answer.get("total", 0)
        stretch = _unpacked(answer.get("data"))
        if not isinstance(total, int) or not 0 < total <= most or not stretch:
            raise Refused(f"server {server} sent a manifest of version {version.id} that cannot be right")
        data += stretch
    if m.manifest_hash(data) != version.manifest_hash:
        raise Refused(f"server {server} sent another manifest of version {version.id} than the log names")
    return data


async def fetch_pieces(requests: Requests, server: ServerId, version: VersionId, *, count: int) -> int:
    """Return the set of pieces that another server can give."""
    answer = await requests.call(server, "pieces", {"version": version}, timeout_s=5.0)
    told = answer.get("pieces")
    everything = (1 << count) - 1
    return everything if told is None else int.from_bytes(_unpacked(told), "little") & everything


async def open_blocks(requests: Requests, server: ServerId, version: Version) -> Stream:
    """Open the stream on which pieces are asked for."""
    return await requests.open(server, "blocks", {"version": version.id, "manifest_hash": version.manifest_hash})


def ask(stream: Stream, piece: int) -> None:
    """Ask for a piece; answers come in the order of asking."""
    stream.writer.write(piece.to_bytes(4))


async def answered(stream: Stream) -> bytes:
    """Return the next answer, empty if the source hasn't that piece; raise `Unavailable` if none comes."""
    try:
        async with asyncio.timeout(SILENCE_S):
            length = int.from_bytes(await stream.reader.readexactly(4))
            if length > _MOST_PIECE:
                raise Unavailable(f"a piece of {length} bytes was announced; no piece is that large")
            return await stream.reader.readexactly(length)
    except TimeoutError:
        raise Unavailable(f"no block came for {SILENCE_S:g} s") from None
    except (OSError, EOFError) as error:
        raise Unavailable(f"the stream of blocks broke: {error}") from error


async def _number(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readexactly(4)
    except asyncio.IncompleteReadError:
        return b""


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
