"""What was seen of a school day, and how it is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kmgr.balancer.redundancy import Redundancy
from kmgr.ids import ServerId
from kmgr.provision.model import DesktopState
from tests.lab.school_spread import Spread


@dataclass(slots=True)
class Report:
    """Counts and waiting times; seconds of virtual time."""

    servers: int
    people: int
    rounds: int = 0
    commands: int = 0
    moved: int = 0
    taken_over: int = 0
    waits: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    cuts: list[tuple[float, ServerId, int]] = field(default_factory=list)
    drained: tuple[float, ServerId, int] | None = None
    weak: list[tuple[float, str]] = field(default_factory=list)
    looks: int = 0
    left_on_drained: int = 0
    on_former: int = 0
    spread: Spread = field(default_factory=Spread)

    def waited(self, seconds: float, *, back: bool) -> None:
        """Note how long somebody waited, who comes or comes back after a loss."""
        (self.back if back else self.waits).append(seconds)

    def cut(self, at: float, server: ServerId, sessions: int) -> None:
        """Note a server's loss and how many sessions went with it."""
        self.cuts.append((at, server, sessions))

    def drain(self, at: float, server: ServerId, used: int) -> None:
        """Note a drain and how many desktops were used there."""
        self.drained = (at, server, used)

    def redundancy(self, at: float, told: Redundancy) -> None:
        """Note whether any one server could be lost."""
        self.looks += 1
        if not told.ok:
            self.weak.append((at, told.sentences[0]))

    def end(self, day: Any) -> None:
        """Look at the grid in the evening."""
        assert self.drained is not None
        self.left_on_drained = len(day.boxes[self.drained[1]].here)
        waiting = [d for d in day.desktops.values() if d.state is DesktopState.READY and d.template in day.pools]
        self.on_former = sum(d.version != "ver-2" for d in waiting)

    def words(self) -> str:
        """Tell it."""
        lines = [
            f"{self.servers} servers, {self.people} people: {self.commands} changes, {self.rounds} rounds",
            f"waiting for a desktop: {_spread(self.waits)}",
            f"back after a loss:     {_spread(self.back)}",
        ]
        lines += [f"{_clock(at)} {server} lost with {n} sessions" for at, server, n in self.cuts]
        if self.drained is not None:
            at, server, used = self.drained
            lines.append(
                f"{_clock(at)} {server} drained: {used} were used; {self.left_on_drained} left in the evening"
            )
        lines.append(f"{self.moved} moved while used, {self.taken_over} personal ones went on from their safe copy")
        lines.append(self.spread.words())
        lines.append(f"any one server could be lost at {self.looks - len(self.weak)} of {self.looks} looks")
        lines += [f"  {_clock(at)} {why}" for at, why in self.weak[:5]]
        return "\n".join(lines)


def part(values: Sequence[float], percent: int) -> float:
    """Return the value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "nobody"
    told = ", ".join(f"{percent} % within {part(values, percent):.1f} s" for percent in (50, 95, 99))
    return f"{len(values)} people, {told}, the longest {max(values):.1f} s"


def _clock(at: float) -> str:
    return f"{int(at // 3600):02d}:{int(at % 3600 // 60):02d}"
