"""Disk files on their way to a server, as records, and what may be done with them.

An *arrival* is a file that grows here in several goes, by uploads that may break
off or by a download that may: `offset` bytes of it are on the disk for good, and
whoever goes on begins there. It ends as an import, or expires.

Pure: no I/O, no clock.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from kmgr.errors import Conflict, KmgrError, Refused, Unavailable
from kmgr.replica.manifest import LARGEST_BYTES
from kmgr.replica.model import name_problem

# Unfinished arrivals that one account may have at a time, and a server in all.
MOST_PER_ACCOUNT = 4
MOST = 16
HOUR_MS = 3_600_000

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Way(StrEnum):
    """How a file arrives."""

    UPLOAD = "upload"
    URL = "url"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One file on its way. `size_bytes` is None as long as nobody knows it; `error` says why its import waits."""

    id: str
    way: Way
    image_name: str
    by: str
    created_at: int
    touched_at: int
    notes: str = ""
    file_name: str = ""
    size_bytes: int | None = None
    fingerprint: str = ""
    sha256: str = ""
    url: str = ""
    etag: str = ""
    offset: int = 0
    error: str = ""

    @property
    def complete(self) -> bool:
        """Whether all of it is here."""
        return self.size_bytes is not None and self.offset == self.size_bytes

    @property
    def shown(self) -> str:
        """What people call it."""
        return self.file_name or ("the download" if self.way is Way.URL else "the upload")

    @property
    def percent(self) -> int:
        """How much of it is here."""
        return 100 * self.offset // self.size_bytes if self.size_bytes else 0


def encode(arrival: Arrival) -> bytes:
    """Spell an arrival for its file."""
    return json.dumps(asdict(arrival), indent=1).encode()


def decode(data: bytes) -> Arrival | None:
    """Read an arrival's file; None if it is none."""
    try:
        raw: dict[str, Any] = json.loads(data)
        known = {field.name for field in fields(Arrival)}
        found = Arrival(**{name: value for name, value in raw.items() if name in known})
        numbers = (found.created_at, found.touched_at, found.offset, found.size_bytes or 0)
        if min(numbers) < 0:
            return None
        return Arrival(**{**asdict(found), "way": Way(found.way)})
    except (ValueError, TypeError, AttributeError):
        return None


def expires_at(arrival: Arrival, *, keep_hours: int) -> int:
    """Return when (ms) an arrival is given up unless something happens to it."""
    return arrival.touched_at + keep_hours * HOUR_MS


def check_new(new: Arrival, known: Iterable[Arrival], *, spare_bytes: int) -> None:
    """Raise what speaks against a new arrival beside those there are."""
    others = tuple(known)
    if problem := name_problem(new.image_name):
        raise Refused(problem)
    if new.size_bytes is not None:
        check_size(new.size_bytes)
    if new.sha256 and not _SHA256.fullmatch(new.sha256):
        raise Refused("the SHA-256 must be 64 hexadecimal digits: copy all of it")
    for other in others:
        if other.image_name == new.image_name:
            raise _taken(other)
    if len([other for other in others if other.by == new.by]) >= MOST_PER_ACCOUNT:
        raise Conflict(
            f"you have {MOST_PER_ACCOUNT} imports under way on this server: finish or cancel one of them first",
            code="too_many",
        )
    if len(others) >= MOST:
        raise Conflict(f"this server has {MOST} imports under way: wait for one of them to end", code="too_many")
    check_room(new.size_bytes or 0, others, spare_bytes=spare_bytes)


def check_size(size_bytes: int) -> None:
    """Raise `Refused` unless a disk file may have this size."""
    if not 0 < size_bytes <= LARGEST_BYTES:
        raise Refused(f"a disk image of {size_bytes} bytes cannot be taken: 1 byte to {LARGEST_BYTES >> 40} TiB can")


def check_room(size_bytes: int, others: Iterable[Arrival], *, spare_bytes: int) -> None:
    """Raise `Unavailable` unless a file fits, beside the rest of those that were promised room before it."""
    promised = sum(other.size_bytes - other.offset for other in others if other.size_bytes is not None)
    free = max(0, spare_bytes - promised)
    if size_bytes > free or not free:
        raise Unavailable(
            f"the disk of this server is too small: {size_bytes >> 20} MiB are needed, {free >> 20} MiB may be used."
            " Make room, or import on another server",
            code="disk_full",
        )


def check_append(arrival: Arrival, offset: int, length: int | None) -> None:
    """Raise what speaks against `length` more bytes (None: nobody knows yet) from `offset` on."""
    if offset != arrival.offset:
        raise Conflict(
            f"{arrival.offset} bytes of {arrival.shown} are here, so it goes on there and not at {offset}",
            code="wrong_offset",
        )
    if arrival.size_bytes is not None and length is not None and offset + length > arrival.size_bytes:
        raise too_long(arrival)


def too_long(arrival: Arrival) -> Refused:
    """Return the refusal of more than was announced."""
    return Refused(
        f"{arrival.shown} is longer than the {arrival.size_bytes} bytes that were announced: it is another file by"
        " now. Cancel this import, and begin it again",
        code="too_long",
    )


def wrong_sum(arrival: Arrival) -> Refused:
    """Return the refusal of a whole file that is not what it should be."""
    return Refused(
        f"{arrival.shown} is not the file it should be: its SHA-256 differs from the one that was given. Nothing"
        " of it is kept; get the file anew",
        code="checksum",
    )


def same_file(arrival: Arrival, *, by: str, image_name: str, fingerprint: str, size_bytes: int | None) -> bool:
    """Tell whether somebody comes back with the file of an arrival."""
    return (
        (arrival.way, arrival.by, arrival.image_name) == (Way.UPLOAD, by, image_name)
        and bool(fingerprint)
        and arrival.fingerprint == fingerprint
        and arrival.size_bytes == size_bytes
    )


def _taken(other: Arrival) -> KmgrError:
    how = "being downloaded" if other.way is Way.URL else "being uploaded"
    return Conflict(
        f"{other.shown} is {how} as {other.image_name} by {other.by}: {other.percent} % of it are here. Wait for it,"
        " go on with that very file, cancel it in the list of imports, or choose another name",
        code="name_taken",
    )
