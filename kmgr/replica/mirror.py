"""The second copy of a personal desktop's own disk: the words both sides share.

One *cycle* brings the copy on another server up to one moment of the desktop's
disk. Between cycles the copy stays at its last complete point; a cycle that
breaks anywhere leaves that point as it was. Who holds a copy, and when a cycle
is due, is decided elsewhere: these ports only do it.

Errors tell what to do by their code: `wrong_base` (the other server lacks the
version under the disk, or has another), `disk_full` (no room: at which end, the
message says), `damaged` (a copy's files are no copy any more, or bytes are not what was
offered), `bad_copy` (what lies there is not what was sent), `disk` (a disk refused), else
`Unavailable`: try again later.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId, ServerId


class BadCopy(Unavailable):
    """A copy's bytes are not what was sent: nothing is started from it unless a person says so (`promote`)."""

    code = "bad_copy"


@dataclass(frozen=True, slots=True)
class CopyPoint:
    """What a finished cycle guarantees.

    `as_of` is in ms by the source's clock: all that the guest had synced before
    is in the copy. `sent_bytes` is what the cycle put on the wire, `full` says
    that it compared the whole disk, `frozen` that the guest's file systems stood still.
    Of one that became a disk, `bad` is how many of its grains were wrong and accepted,
    `unread` how many were not looked at before, for want of time.
    """

    desktop: DesktopId
    generation: int
    as_of: int
    sent_bytes: int
    full: bool
    frozen: bool
    bad: int = 0
    unread: int = 0


class Mirror(Protocol):
    """On the server whose desktop it is."""

    async def recover(self) -> None:
        """End what a killed daemon left half-done: backups under way, guests with frozen file systems. At start."""
        ...

    async def cycle(
        self, desktop: DesktopId, generation: int, disk: Path, *, to: ServerId, last: CopyPoint | None
    ) -> CopyPoint:
        """Bring the copy on server `to` up to now and return its new point, durable there.

        Running or powered off makes no difference. Sends what changed since the
        point that `to` itself says it has; without one, or when nobody knows what
        changed, everything is compared. `last` is what the caller believes: it is
        only told in the log when it turns out otherwise. One cycle per desktop at a time.
        """
        ...

    async def stop(self, desktop: DesktopId) -> None:
        """End a desktop's cycle, if one is under way, and forget what it keeps in the hypervisor for it."""
        ...

    async def run(self) -> None:
        """Go on thawing guests that did not say that they go on after a cycle; until cancelled."""
        ...

    def still(self) -> Mapping[DesktopId, int]:
        """Return whose guests have been frozen for so long that a person must know, and since when (ms)."""
        ...


class CopyStore(Protocol):
    """On the server that holds copies: `copies/<desktop>/<generation>` in its data folder."""

    async def promote(
        self, desktop: DesktopId, generation: int, target: Path, *, accepted: Collection[str] = ()
    ) -> CopyPoint:
        """Make the copy's newest complete point the overlay `target`, checked, ready to be started.

        The copy itself becomes the overlay: it is gone from `held` afterwards, and
        cycles into it are refused. Doing it again returns the same point while
        `target` is there. Raises `NotFound` if there is no complete point,
        `Unavailable` with code `damaged` or `wrong_base` if it cannot be started from, and
        `BadCopy` if bytes of it are wrong, unless its message is among what a person `accepted`.
        """
        ...

    async def drop(self, desktop: DesktopId, generation: int) -> None:
        """Delete a copy; one that is gone already is fine."""
        ...

    async def held(self) -> Sequence[CopyPoint]:
        """Return the newest complete point of every copy here, by desktop and generation."""
        ...
