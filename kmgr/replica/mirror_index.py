"""The index of a copy: a file of frames, of which only whole ones count.

Each frame is what one cycle changed: a JSON head and (grain, place) pairs, with
the SHA-256 of both. A frame is appended in one go and synced; one that a kill or
a power cut left half-written has no right hash, so the index simply ends before
it: the copy's former point stands. What is read back is believed no further than that.

Layout, big-endian: magic, u32 length of the head, u32 number of pairs, head,
u32 grain and u32 place for each pair, 32 bytes SHA-256 of all of it.

Pure: no I/O, no clock.
"""

import hashlib
import json
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_MAGIC = b"kmgrcopy"
_START = struct.Struct(">8sII")
_DIGEST = 32


@dataclass(frozen=True, slots=True)
class Frame:
    """One change: `pairs` holds grain, place, grain, place …; `end` is where the frame ends in the file."""

    head: Mapping[str, Any]
    pairs: "array[int]"
    end: int


def spell(head: Mapping[str, Any], pairs: "array[int]") -> bytes:
    """Return a frame."""
    text = json.dumps(head, separators=(",", ":")).encode()
    body = _START.pack(_MAGIC, len(text), len(pairs) // 2) + text + _swapped(pairs).tobytes()
    return body + hashlib.sha256(body).digest()


def frames(data: bytes) -> Iterator[Frame]:
    """Return the whole frames from the start on; whatever follows the first broken one is not looked at."""
    at, view = 0, memoryview(data)
    while len(data) - at >= _START.size:
        magic, head_bytes, count = _START.unpack_from(data, at)
        pairs_at = at + _START.size + head_bytes
        end = pairs_at + 8 * count + _DIGEST
        if magic != _MAGIC or end > len(data):
            return
        if hashlib.sha256(view[at : end - _DIGEST]).digest() != view[end - _DIGEST : end]:
            return
        pairs = array("I")
        pairs.frombytes(view[pairs_at : end - _DIGEST])
        yield Frame(json.loads(bytes(view[at + _START.size : pairs_at])), _swapped(pairs), end)
        at = end


def _swapped(values: "array[int]") -> "array[int]":
    result = array("I", values)
    if sys.byteorder == "little":
        result.byteswap()
    return result
