"""What a mirror needs from the hypervisor: a disk that stands still for a while, although its desktop runs.

`begin` is one moment: from then on the `Lent` disk says what it said at that
moment, and changes after it are counted under the name `point`. Names given in
`points` can be counted from; after a power cut, say, none is left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId


class CountLost(Unavailable):
    """What changed since a point is not known (any more): everything must be compared."""

    code = "count_lost"


@dataclass(frozen=True, slots=True)
class Moment:
    """A disk as it was at one moment, on a socket; `bitmap` is empty unless it was begun since a point."""

    socket: Path
    export: str
    bitmap: str
    frozen: bool


class Backups(Protocol):
    """The hypervisor of this server, as far as copying disks goes."""

    async def running(self, desktop: DesktopId) -> bool:
        """Tell whether something has the desktop's disk open: true for a paused one as well."""
        ...

    async def points(self, desktop: DesktopId) -> Sequence[str]:
        """Return the points that the hypervisor knows for a running desktop, oldest first."""
        ...

    async def begin(self, desktop: DesktopId, *, since: str, point: str) -> Moment:
        """Hold a running desktop's disk at this moment; with `since` its bitmap tells what changed from there.

        File systems are frozen around it where the guest's agent answers. Without
        `since` QEMU has written all its tables down before. Raises `CountLost`
        if `since` is of no use. A moment that was begun before ends. A guest whose
        agent does not say that it thawed is asked on by `run`, and left alone here.
        """
        ...

    async def end(self, desktop: DesktopId) -> None:
        """Let the disk go; fine if nothing was begun."""
        ...

    async def keep(self, desktop: DesktopId, point: str) -> None:
        """Forget all points of a desktop but one (or all of them, if it is empty)."""
        ...

    async def recover(self) -> None:
        """End every moment that an earlier life of this daemon began, and thaw what it froze."""
        ...

    async def run(self) -> None:
        """Ask guests that were frozen, also by an earlier life, and did not say that they go on; until cancelled."""
        ...

    def still(self) -> Mapping[DesktopId, int]:
        """Return which desktops have been frozen for so long that a person must know, and since when (ms)."""
        ...
