"""Decide which servers keep which version, and in which order a server brings what it lacks.

* An image says how many servers keep its versions: all of them, or `copies`.
* Who has a desktop of a version keeps it, whatever that number says.
* Holders stay: a version moves only when too few servers have it. New keepers are
  spread by a hash of version and server, so that no server is everybody's favourite,
  and only servers with room are chosen.
* What a server has and need not keep is given up only while enough others that
  count have it undamaged. The log checks that again (`version.drop`).
* A server *counts* while it is up, draining, or away for a short time only: a restart moves nothing.

Every server decides for itself from the same state; heartbeats (room) may differ
for a moment, then at worst one copy more is made than was asked for. Pure.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kmgr.ids import ServerId, VersionId
from kmgr.replica.model import ALL_SERVERS, Holding, Uses, Version


@dataclass(frozen=True, slots=True)
class Spot:
    """A server that may keep versions. It `takes` new ones if it is up; `spare_bytes` None means unknown."""

    server: ServerId
    counts: bool
    takes: bool
    spare_bytes: int | None = None


def keepers(
    version: Version, copies: int, spots: Sequence[Spot], holdings: Iterable[Holding], needing: Collection[ServerId]
) -> frozenset[ServerId]:
    """Return the servers that should have a version."""
    if copies == ALL_SERVERS:
        return frozenset(spot.server for spot in spots)
    damaged = {one.server: one.damaged for one in holdings if one.version == version.id}
    chosen = {spot.server for spot in spots if spot.server in needing}
    counted = {spot.server for spot in spots if spot.counts}
    have = [spot for spot in spots if spot.counts and spot.server in damaged]
    can = [spot for spot in spots if spot.takes and spot.server not in damaged and _fits(version, spot)]
    order = sorted(have, key=lambda s: (damaged[s.server] > 0, _lot(version.id, s.server)))
    order += sorted(can, key=lambda s: _lot(version.id, s.server))
    for spot in order:
        # What has gone bad on its disk is no copy to rely on.
        if sum(server in counted and not damaged.get(server) for server in chosen) >= copies:
            break
        chosen.add(spot.server)
    return frozenset(chosen)


def may_drop(version: VersionId, server: ServerId, copies: int, holders: Iterable[Holding], uses: Uses) -> str:
    """Return why a server may not give a version up, empty if it may; `holders` are on servers that count."""
    if copies == ALL_SERVERS:
        return "all servers keep it"
    if uses.desktops.get(version, {}).get(server):
        return "desktops there were made from it"
    others = [one for one in holders if one.version == version and one.server != server and not one.damaged]
    if len(others) < copies:
        return f"{copies} servers should keep it, and only {len(others)} others have it"
    return ""


def order(lacking: Iterable[Version], uses: Uses, server: ServerId) -> tuple[Version, ...]:
    """Order what a server lacks: desktops here wait for it, templates use it, desktops elsewhere do, newest first."""
    return tuple(sorted(lacking, key=lambda one: (urgency(one.id, uses, server), -one.created_at, one.id)))


def urgency(version: VersionId, uses: Uses, server: ServerId) -> int:
    """Return how urgently a server needs a version: 0 is a desktop that waits for it there."""
    where = uses.desktops.get(version, {})
    if where.get(server):
        return 0
    if uses.published.get(version):
        return 1
    return 2 if where or uses.others.get(version) else 3


def spread(kept: Mapping[VersionId, Collection[ServerId]]) -> Mapping[ServerId, int]:
    """Return how many versions each server keeps."""
    found: dict[ServerId, int] = {}
    for version in sorted(kept):
        for server in sorted(kept[version]):
            found[server] = found.get(server, 0) + 1
    return found


def _fits(version: Version, spot: Spot) -> bool:
    return spot.spare_bytes is None or version.used_bytes <= spot.spare_bytes


def _lot(version: VersionId, server: ServerId) -> bytes:
    return hashlib.sha256(f"{version} {server}".encode()).digest()
