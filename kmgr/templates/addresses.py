"""What may be fetched from where, and what an answer means.

The server makes these requests, so an address given by a person must not reach
what only the server itself can: its own loopback, link-local (where clouds keep
their secrets), and its own addresses. Other private networks are allowed: that is
where people keep their images. A setting lets administrators allow the rest.

Pure: no I/O, no clock.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urljoin, urlsplit

from kmgr.errors import Refused, Unavailable

MOST_REDIRECTS = 5
_NAT64 = ip_network("64:ff9b::/96")
# No file is longer than twenty digits can say, whatever an answer says.
_RANGE = re.compile(r"bytes ([0-9]{1,20})-([0-9]{1,20})/([0-9]{1,20})")
_LENGTH = re.compile(r"[0-9]{1,20}")
# Of a line without white space around it. Nothing in it may be read in two ways: lines can be very long.
_SUM = re.compile(r"(?:SHA256 \((?P<named>[^)]*)\) = )?(?P<sum>[0-9a-fA-F]{64})(?:[ \t]+\*?(?P<name>\S.*))?")


def check_url(url: str) -> None:
    """Raise `Refused` unless this is an address that can be fetched."""
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise Refused(f"{url!r} is not an address: write it like https://example.org/office.qcow2") from None
    if parts.scheme not in ("http", "https"):
        raise Refused(
            f"{url!r} cannot be fetched, only http and https can: get the file by other means and upload it",
            code="bad_url",
        )
    if not good or parts.username or parts.password:
        raise Refused(
            f"{parts.hostname or url!r}: an address must have a host, and no name or password", code="bad_url"
        )


def redirected(url: str, to: str) -> str:
    """Return where an answer sends us; raise `Refused` if it should not."""
    try:
        target = urljoin(url, to)
    except ValueError:
        raise Refused(f"the address leads on to {to[:200]!r}, which is none", code="bad_url") from None
    check_url(target)
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
        raise Refused(
            "the address leads from https to http, where anybody on the way could change the file: give the address "
            "that it leads to, with a SHA-256"
        )
    return target


def address_problem(address: str, *, own: Collection[str]) -> str:
    """Return why an IP address may not be connected to, empty if it may."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None and (problem := address_problem(str(inner), own=own)):
            return problem
    if found.is_loopback or found.is_unspecified or str(found) in own:
        return f"{found} is this server itself"
    if found.is_link_local:
        return f"{found} is link-local"
    if found.is_multicast or (found.is_reserved and found not in _NAT64) or str(found) == "255.255.255.255":
        return f"{found} is no address of a server"
    return ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to a request for a file from some byte on."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Begin:
    """Its body is the file from `at` on; `size_bytes` is the whole's, None if it does not say."""

    at: int
    size_bytes: int | None
    etag: str


def judge(answer: Answer, *, start: int, etag: str) -> Begin | None:
    """Return what a good answer's body is, None if the file must be fetched from its beginning; raise otherwise."""
    headers, status = answer.headers, answer.status
    if headers.get("content-encoding", "identity") != "identity":
        raise Refused(
            "that server sends the file packed although it was asked not to: get it by other means and upload it"
        )
    mark = headers.get("etag", "") if not headers.get("etag", "").startswith("W/") else ""
    if status == 206:
        found = _RANGE.fullmatch(headers.get("content-range", ""))
        if not found or int(found[1]) != start or (etag and mark != etag):
            return None
        return Begin(start, int(found[3]), mark)
    if status == 200:
        length = headers.get("content-length", "")
        return Begin(0, int(length) if _LENGTH.fullmatch(length) else None, mark)
    if status == 416:
        return None
    if status >= 500 or status == 429:
        raise Unavailable(f"that server answered {status}", code="remote")
    raise Refused(f"that server answered {status}: is the address right, and open to everybody?", code="remote")


def sum_in(text: str, file_name: str) -> str:
    """Return the SHA-256 that a file of checksums has for a name (or its only one); raise `Refused` if none."""
    found = [one for line in text.splitlines() if (one := _SUM.fullmatch(line.strip()))]
    named = [one for one in found if (one["named"] or one["name"] or "").rpartition("/")[2] == file_name]
    chosen = named or (found if len(found) == 1 and not (found[0]["named"] or found[0]["name"]) else [])
    if not chosen:
        raise Refused(
            f"the file of checksums has no SHA-256 for {file_name}: give the SHA-256 itself, or the file of "
            "checksums that belongs to this address",
            code="checksum",
        )
    return str(chosen[0]["sum"]).lower()
