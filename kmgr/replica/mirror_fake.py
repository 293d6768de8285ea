"""Mirror and copies in memory, for tests and simulations: they ship, and obey the same contract.

`FakeDisks` stands for all servers: what each desktop's disk says (`write`), who
holds which copy, and who cannot be reached (`down`). A file is never touched.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kmgr.clock import Clock
from kmgr.errors import KmgrError, NotFound, Unavailable
from kmgr.ids import DesktopId, ServerId
from kmgr.replica.mirror import BadCopy, CopyPoint


@dataclass(slots=True)
class FakeDisks:
    """Every server's disks. `content` is by path of the overlay, `copies` by server, desktop and generation."""

    content: dict[Path, str] = field(default_factory=dict)
    copies: dict[tuple[ServerId, DesktopId, int], tuple[CopyPoint, str]] = field(default_factory=dict)
    down: set[ServerId] = field(default_factory=set)

    def write(self, disk: Path, content: str) -> None:
        """A guest writes."""
        self.content[disk] = content


class FakeMirror:
    """Copies at once; `fail` is the error that the next cycles end with, `frozen` whether guests' agents answer.

    `hanging` are desktops whose guests stand still, and since when.
    """

    def __init__(self, disks: FakeDisks, clock: Clock) -> None:
        self._disks = disks
        self._clock = clock
        self.fail: KmgrError | None = None
        self.frozen = True
        self.cycles = 0
        self.stopped: list[DesktopId] = []
        self.recovered = 0
        self.hanging: dict[DesktopId, int] = {}

    async def recover(self) -> None:
        """Count it."""
        self.recovered += 1

    async def run(self) -> None:
        """Nobody is thawed by itself."""

    def still(self) -> Mapping[DesktopId, int]:
        """Return who stands still."""
        return self.hanging

    async def cycle(
        self, desktop: DesktopId, generation: int, disk: Path, *, to: ServerId, last: CopyPoint | None
    ) -> CopyPoint:
        """Copy what the disk says now."""
        self.cycles += 1
        if self.fail is not None:
            raise self.fail
        if to in self._disks.down:
            raise Unavailable(f"server {to} cannot be reached")
        key = (to, desktop, generation)
        known = self._disks.copies.get(key)
        content = self._disks.content.get(disk, "")
        sent = len(content) if known is None or known[1] != content else 0
        point = CopyPoint(desktop, generation, self._clock.now_ms(), sent, full=known is None, frozen=self.frozen)
        self._disks.copies[key] = (point, content)
        return point

    async def stop(self, desktop: DesktopId) -> None:
        """Note it."""
        self.stopped.append(desktop)


class FakeCopyStore:
    """One server's copies; `fail` is the error that the next promotions end with, `bad` says which went bad, how."""

    def __init__(self, disks: FakeDisks, server: ServerId) -> None:
        self._disks = disks
        self._server = server
        self._promoted: dict[tuple[DesktopId, int, Path], CopyPoint] = {}
        self.fail: KmgrError | None = None
        self.bad: dict[DesktopId, str] = {}

    async def promote(
        self, desktop: DesktopId, generation: int, target: Path, *, accepted: Collection[str] = ()
    ) -> CopyPoint:
        """Let `target` say what the copy says; the copy is gone then."""
        if self.fail is not None:
            raise self.fail
        again = self._promoted.get((desktop, generation, target))
        if again is not None:
            return again
        bad = self.bad.get(desktop)
        if bad is not None and bad not in accepted:
            raise BadCopy(bad)
        copy = self._disks.copies.pop((self._server, desktop, generation), None)
        if copy is None:
            raise NotFound(f"there is no complete copy of desktop {desktop}, generation {generation}, on this server")
        self._disks.content[target] = copy[1]
        point = self._promoted[desktop, generation, target] = replace(copy[0], bad=int(bad is not None))
        return point

    async def drop(self, desktop: DesktopId, generation: int) -> None:
        """Forget the copy."""
        self._disks.copies.pop((self._server, desktop, generation), None)

    async def held(self) -> Sequence[CopyPoint]:
        """Return the points of this server's copies."""
        mine = sorted((key, copy[0]) for key, copy in self._disks.copies.items() if key[0] == self._server)
        return tuple(point for _, point in mine)
