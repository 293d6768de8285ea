"""How far the reading-again of this server's versions is: what is remembered across restarts, and what comes next.

Pure: the time is an argument.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kmgr.ids import VersionId
from kmgr.whole import is_whole

_DAY_MS = 86_400_000


@dataclass(slots=True)
class Pass:
    """One version: the next block to read, when the last pass ended, and what was found.

    `bad` blocks are wrong and could not be put right. `mended` were, in this pass and in the one before;
    `first_byte` is where the first of all these lies.
    """

    next: int = 0
    done_at: int = 0
    bad: list[int] = field(default_factory=list)
    mended: int = 0
    mended_before: int = 0
    first_byte: int = 0

    @property
    def found(self) -> int:
        """How many blocks have gone bad in this pass and the last one."""
        return len(self.bad) + max(self.mended, self.mended_before)

    def note(self, index: int, *, offset: int, mended: bool) -> None:
        """Remember that a block had gone bad."""
        if not self.found or offset < self.first_byte:
            self.first_byte = offset
        if mended:
            self.mended += 1
        elif index not in self.bad:
            self.bad.append(index)

    def end(self, now_ms: int) -> None:
        """Note that every block was read."""
        self.next, self.done_at = 0, now_ms
        self.mended_before, self.mended = self.mended, 0


@dataclass(slots=True)
class Passes:
    """All versions on this server."""

    of: dict[VersionId, Pass] = field(default_factory=dict)
    asked: list[VersionId] = field(default_factory=list)

    def keep(self, here: Collection[VersionId], now_ms: int) -> None:
        """Forget versions that are gone; a new one was verified when it came, so it counts as read now."""
        self.of = {version: one for version, one in self.of.items() if version in here}
        self.asked = [version for version in self.asked if version in here]
        for version in sorted(here):
            one = self.of.setdefault(version, Pass(done_at=now_ms))
            one.done_at = min(one.done_at, now_ms)  # a clock that was wrong once must not put it off for years

    def ask(self, version: VersionId) -> None:
        """Let a version be read next: somebody was sent wrong bytes of it."""
        if version in self.of and version not in self.asked:
            self.asked.append(version)

    def due(self, *, days: int, now_ms: int) -> VersionId | None:
        """Return the version to read on in, if one is due: what was asked for, what was begun, what waits longest."""
        if self.asked:
            return self.asked[0]
        if not days:
            return None
        begun = [version for version, one in self.of.items() if one.next]
        waiting = [version for version, one in self.of.items() if now_ms - one.done_at >= days * _DAY_MS]
        for some in (begun, waiting):
            if some:
                return min(some, key=lambda version: (self.of[version].done_at, version))
        return None

    def ended(self, version: VersionId, now_ms: int) -> None:
        """Note that all of a version was read."""
        self.of[version].end(now_ms)
        self.asked = [one for one in self.asked if one != version]


def spelled(passes: Passes) -> Mapping[str, Any]:
    """Return what is remembered, as JSON."""
    return {version: asdict(one) for version, one in sorted(passes.of.items())}


def read(told: Any) -> Passes:
    """Return what was remembered; whatever is no record of ours is forgotten: it only costs another reading."""
    found: dict[VersionId, Pass] = {}
    if isinstance(told, Mapping):
        for version, one in told.items():
            if isinstance(one, Mapping) and (record := _pass(one)) is not None:
                found[VersionId(str(version))] = record
    return Passes(found)


def _pass(told: Mapping[str, Any]) -> Pass | None:
    bad = told.get("bad", [])
    if not isinstance(bad, Sequence) or not all(is_whole(one) for one in bad):
        return None
    numbers = {name: told.get(name, 0) for name in ("next", "done_at", "mended", "mended_before", "first_byte")}
    return Pass(bad=list(bad), **numbers) if all(is_whole(one) for one in numbers.values()) else None
