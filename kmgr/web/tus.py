"""The words of resumable uploads (tus 1.0): headers in, values out; and the statuses that it prescribes."""

import base64
import binascii
from collections.abc import Mapping

from kmgr.errors import Refused
from kmgr.replica.manifest import LARGEST_BYTES
from kmgr.templates.arrivals import Checksum

VERSION = "1.0.0"
CHECKSUMS = {"sha1": 20, "sha256": 32}
OFFER = {
    "Tus-Resumable": VERSION,
    "Tus-Version": VERSION,
    "Tus-Extension": "creation,creation-defer-length,checksum,termination,expiration",
    "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
    "Tus-Max-Size": str(LARGEST_BYTES),
}
MEDIA = "application/offset+octet-stream"
_MOST_METADATA = 8192


class WrongVersion(Refused):
    """The other side speaks another version of the protocol."""

    code = "tus_version"
    http_status = 412


class WrongMedia(Refused):
    """What came is no piece of an upload."""

    code = "media"
    http_status = 415


class TooLong(Refused):
    """More came than was announced."""

    code = "too_long"
    http_status = 413


class WrongPiece(Refused):
    """A piece does not have the checksum that was sent with it."""

    code = "checksum"
    http_status = 460


def check_version(headers: Mapping[str, str]) -> None:
    """Raise `WrongVersion` unless version 1.0.0 is spoken."""
    if headers.get("Tus-Resumable") != VERSION:
        raise WrongVersion(f"This address speaks tus {VERSION}: send the header Tus-Resumable: {VERSION}.")


def length_of(headers: Mapping[str, str]) -> int | None:
    """Return how long an upload will be, None if that is told later."""
    if headers.get("Upload-Defer-Length") == "1" and "Upload-Length" not in headers:
        return None
    return number(headers, "Upload-Length")


def number(headers: Mapping[str, str], name: str) -> int:
    """Return a header that is a whole number."""
    value = headers.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise Refused(f"The header {name} must be a whole number.", code="bad_header")
    return int(value)


def metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """Return what is told about an upload: `key base64,key base64`."""
    found: dict[str, str] = {}
    told = headers.get("Upload-Metadata", "")
    try:
        for pair in told[:_MOST_METADATA].split(",") if told else ():
            key, _, value = pair.strip().partition(" ")
            found[key] = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise Refused("The header Upload-Metadata must be pairs of a key and base64.", code="bad_header") from None
    return found


def spelled(told: Mapping[str, str]) -> str:
    """Spell metadata as a header."""
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in told.items() if value)


def checksum_of(headers: Mapping[str, str]) -> Checksum | None:
    """Return what a piece must hash to, None if that was not sent."""
    told = headers.get("Upload-Checksum")
    if told is None:
        return None
    algorithm, _, value = told.partition(" ")
    try:
        digest = base64.b64decode(value, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != CHECKSUMS.get(algorithm):
        raise Refused(f"The header Upload-Checksum must be {' or '.join(CHECKSUMS)} and base64.", code="bad_header")
    return Checksum(algorithm, digest)
