"""What a server tells the grid about its images: proposals, each with what became of it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kmgr.grid.envelope import Rejected
from kmgr.grid.port import Grid
from kmgr.ids import ServerId, VersionId
from kmgr.replica.images import Images
from kmgr.replica.model import Version

logger = logging.getLogger(__name__)


class Report:
    """Speaks for one server. Every method raises `Unavailable` while the grid cannot be told."""

    def __init__(self, grid: Grid, images: Images) -> None:
        self._grid = grid
        self._images = images

    async def here(self, version: VersionId) -> bool:
        """Tell that a version is whole on this server."""
        return await self._propose("version.here", version)

    async def gone(self, version: VersionId, why: str) -> bool:
        """Tell that a version is no longer usable on this server."""
        return await self._propose("version.gone", version, why=why)

    async def drop(self, version: VersionId) -> bool:
        """Ask to give a copy up; False if it has to stay."""
        return await self._propose("version.drop", version)

    async def repaired(self, version: Version, *, offset: int, blocks: int, sources: Sequence[ServerId]) -> None:
        """Tell that blocks had gone bad and were put right."""
        found = {"file": self._file(version), "offset": offset, "blocks": blocks, "sources": list(sources)}
        await self._propose("version.repaired", version.id, **found)

    async def damaged(self, version: Version, *, offset: int, blocks: int) -> None:
        """Tell that so many blocks are bad and cannot be put right; 0: none any more."""
        found = {"file": self._file(version), "offset": offset, "blocks": blocks}
        await self._propose("version.damaged", version.id, **found)

    async def lied(self, version: Version, liar: ServerId) -> None:
        """Tell that a server sent wrong bytes."""
        await self._propose("version.lied", version.id, liar=liar)

    def _file(self, version: Version) -> str:
        return str(self._images.path(version.id))

    async def _propose(self, type: str, version: VersionId, **more: Any) -> bool:
        body: Mapping[str, Any] = {"version": version, "server": self._grid.server, **more}
        match await self._grid.propose(type, body, by=self._grid.server):
            case Rejected(_, detail):
                logger.info("the grid refused a report about an image", extra={"type": type, "cause": detail})
                return False
            case _:
                return True
