"""Decide from which of many servers to draw a version at a time.

Nobody draws from everybody: a hundred servers with ninety-nine streams each would spend their
time with news. Each draws from a few, chosen by a hash of both names, so that the choices of all
together are spread evenly and any piece is a few hands away. A source that has nothing
missing here gives way to one that was not tried.

Pure.
"""

import zlib
from collections.abc import Collection, Sequence

from kmgr.ids import ServerId

# Sources that a receiver draws from, and receivers that a source serves, per version.
DRAWN = 8
SERVED = 12


def to_open(own: str, able: Sequence[ServerId], drawing: Collection[ServerId]) -> list[ServerId]:
    """Return the sources to open a stream to now: `able` in order of preference, those being drawn from apart."""
    return [server for server in ranked(own, able) if server not in drawing][: max(0, DRAWN - len(drawing))]


def to_leave(
    able: Collection[ServerId], drawing: Collection[ServerId], useless: Collection[ServerId]
) -> list[ServerId]:
    """Return sources to leave because others, not tried, may be of more use."""
    untried = len(set(able) - set(drawing))
    if len(drawing) < DRAWN or not untried:
        return []
    return sorted(set(useless) & set(drawing))[: max(1, min(untried, DRAWN // 4))]


def ranked(own: str, servers: Sequence[ServerId]) -> list[ServerId]:
    """Return servers in an order of this receiver's own; the first, which surely has the version, stays first."""
    return [*servers[:1], *sorted(servers[1:], key=lambda server: (zlib.crc32(f"{own} {server}".encode()), server))]
