"""What each version takes on this server's disk, and how much of that it shares with others."""

import asyncio
from collections.abc import Collection, Mapping

from kmgr.clock import Clock
from kmgr.ids import VersionId
from kmgr.replica.disk import allocated_bytes
from kmgr.replica.images import Images
from kmgr.replica.shared import shared_bytes

# A version's own file never changes, but what it shares does when others come and go.
AGAIN_S = 600.0


class Footprint:
    """Remembers the last measures."""

    def __init__(self, images: Images, clock: Clock) -> None:
        self._images = images
        self._clock = clock
        self._measured: dict[VersionId, tuple[float, int, int]] = {}
        self._last: frozenset[VersionId] = frozenset()

    async def measure(self, here: Collection[VersionId]) -> None:
        """Measure what is new, and everything again after a change or a while."""
        now, versions = self._clock.monotonic(), frozenset(here)
        changed, self._last = versions != self._last, versions
        self._measured = {version: told for version, told in self._measured.items() if version in versions}
        for version in sorted(versions):
            known = self._measured.get(version)
            if known is None or changed or now - known[0] >= AGAIN_S:
                path = self._images.path(version)
                taken = await asyncio.to_thread(allocated_bytes, path)
                shared = await asyncio.to_thread(shared_bytes, path)
                self._measured[version] = (now, taken, min(taken, shared))

    def of(self, version: VersionId) -> Mapping[str, int]:
        """Return the last measures for the heartbeat."""
        _, taken, shared = self._measured.get(version, (0.0, 0, 0))
        return {"taken_bytes": taken, "shared_bytes": shared}
