"""What goes over the stream `copy` between a desktop's server and the one that keeps its copy.

    u8 kind, u32 length, that many bytes (big-endian)

    holder → owner  HELLO   {cycle, still, as_of}: what the copy's newest point is, nulls if it has none
    owner → holder  BEGIN   {everything}: whether all of the disk will be offered or only what changed
    owner → holder  OFFER   per grain u32 number, u8 kind (0 zeros, 1 data), 32 bytes SHA-256; ascending
    holder → owner  WANT    a bit for each grain of that offer, the first the highest of the first byte
    owner → holder  DATA    the grains wanted of the oldest offer that is still unanswered; none if none was wanted
    owner → holder  COMMIT  {as_of, full, frozen, sent_bytes, cycle, still}: the offers were all there is
    holder → owner  DONE    {}: the point is on the disk
    holder → owner  ERROR   {class, code, message}: instead of any answer; the stream ends

Several offers may be ahead of their answers. Nothing the other side says is believed.
"""

import asyncio
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from kmgr.errors import KmgrError, Refused, Unavailable
from kmgr.grid.handlers import error_from
from kmgr.grid.port import Stream
from kmgr.replica.grains import GRAIN

STREAM = "copy"
OFFERED = 32
_SILENCE_S = 60.0
_START = struct.Struct(">BI")
_OFFER = struct.Struct(">IB32s")
_MOST = OFFERED * GRAIN


class Kind(IntEnum):
    """What a message is."""

    HELLO = 1
    BEGIN = 2
    OFFER = 3
    WANT = 4
    DATA = 5
    COMMIT = 6
    DONE = 7
    ERROR = 8


@dataclass(frozen=True, slots=True)
class Offer:
    """One grain as the owner has it; `digest` is empty for one that is all zeros."""

    grain: int
    digest: bytes


async def send(stream: Stream, kind: Kind, *parts: bytes) -> int:
    """Send one message and return how many bytes it took."""
    length = sum(map(len, parts))
    stream.writer.write(_START.pack(kind, length))
    for part in parts:
        stream.writer.write(part)
    try:
        await asyncio.wait_for(stream.writer.drain(), _SILENCE_S)
    except TimeoutError:
        raise Unavailable(f"the other server took nothing for {_SILENCE_S:g} s") from None
    except OSError as error:
        raise Unavailable(f"the stream of the copy broke: {error}") from error
    return _START.size + length


async def tell(stream: Stream, kind: Kind, body: Mapping[str, Any]) -> int:
    """Send a message of JSON."""
    return await send(stream, kind, json.dumps(body, separators=(",", ":")).encode())


async def receive(stream: Stream) -> tuple[Kind, bytes]:
    """Return the next message; raise the other side's error if it is one, `Unavailable` if none comes."""
    try:
        async with asyncio.timeout(_SILENCE_S):
            number, length = _START.unpack(await stream.reader.readexactly(_START.size))
            if number not in Kind.__members__.values() or length > _MOST:
                raise Refused(f"a message of kind {number} with {length} bytes is none of a copy's")
            payload = await stream.reader.readexactly(length)
    except TimeoutError:
        raise Unavailable(f"the other server said nothing for {_SILENCE_S:g} s") from None
    except (OSError, EOFError) as error:
        raise Unavailable(f"the stream of the copy broke: {error}") from error
    kind = Kind(number)
    if kind is Kind.ERROR:
        raise _error(payload)
    return kind, payload


async def expect(stream: Stream, kind: Kind) -> bytes:
    """Return the next message, which must be of one kind."""
    got, payload = await receive(stream)
    if got is not kind:
        raise Refused(f"a message {kind.name} was due, not {got.name}: is the other server of another version?")
    return payload


def parsed(payload: bytes) -> dict[str, Any]:
    """Read a message of JSON."""
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise Refused("the other server sent a message that is not JSON") from error
    if not isinstance(value, dict):
        raise Refused("the other server sent a message that is not a JSON object")
    return value


def spell_offers(offers: Sequence[Offer]) -> bytes:
    """Return the payload of an OFFER."""
    return b"".join(_OFFER.pack(offer.grain, bool(offer.digest), offer.digest) for offer in offers)


def parse_offers(payload: bytes) -> list[Offer]:
    """Read the payload of an OFFER."""
    if not payload or len(payload) % _OFFER.size or len(payload) > OFFERED * _OFFER.size:
        raise Refused(f"{len(payload)} bytes are no offer of a copy")
    return [Offer(grain, digest if kind else b"") for grain, kind, digest in _OFFER.iter_unpack(payload)]


def spell_wants(wanted: Sequence[bool]) -> bytes:
    """Return the payload of a WANT."""
    bits = int("".join("1" if each else "0" for each in wanted).ljust(-(-len(wanted) // 8) * 8, "0"), 2)
    return bits.to_bytes(-(-len(wanted) // 8))


def parse_wants(payload: bytes, count: int) -> list[bool]:
    """Read the payload of a WANT for so many offers."""
    if len(payload) != -(-count // 8):
        raise Refused(f"{len(payload)} bytes are no answer to an offer of {count} grains")
    return [bool(payload[n >> 3] & (0x80 >> (n & 7))) for n in range(count)]


def _error(payload: bytes) -> KmgrError:
    body = parsed(payload)
    raw = body.get("error")
    return error_from(raw if isinstance(raw, dict) else {})
