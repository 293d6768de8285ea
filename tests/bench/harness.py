"""Figures that can be trusted on a noisy machine: medians beside a floor measured in the same run.

`build/bench*.json` is a list of {"name", "value", "unit", "n", "floor", "peer", "ratio", "asked", "held"}: `floor` is
what the same work costs without kmgr, `peer` what another tool needs for it (null: not measured), `ratio` is
value / floor, `asked` what we promise (like "≤ 1.05 × floor") and `held` whether it was so in this run.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Limit:
    """What is promised of a figure: its value, or its ratio to the floor or the peer, is no more (or no less)."""

    than: float
    of: Literal["value", "floor", "peer"] = "value"
    at_least: bool = False

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.than:g}" + ("" if self.of == "value" else f" × {self.of}")

    def held(self, figure: "Figure") -> bool | None:
        """Tell whether a figure keeps it; None if what it is compared with was not measured."""
        against = {"value": 1.0, "floor": figure.floor, "peer": figure.peer}[self.of]
        if against is None:
            return None
        return figure.value >= self.than * against if self.at_least else figure.value <= self.than * against


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured thing; `value`, `floor` and `peer` share the unit."""

    name: str
    value: float
    unit: str
    n: int
    floor: float | None = None
    peer: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    limit: Limit | None = None

    @property
    def verdict(self) -> str:
        """Say what is promised of it and whether that was held; nothing if nothing is promised."""
        held = None if self.limit is None else self.limit.held(self)
        if self.limit is None or held is None:
            return ""
        return f"{self.limit}: held" if held else f"{self.limit}: NOT HELD"


def figure(
    name: str,
    values: list[float],
    *,
    unit: str,
    floor: list[float] | None = None,
    peer: list[float] | None = None,
    limit: Limit | None = None,
) -> Figure:
    """Make a figure from raw values: medians, and the ratio to the floor."""
    value = statistics.median(values)
    low = statistics.median(floor) if floor else None
    return Figure(
        name=name,
        value=round(value, 4),
        unit=unit,
        n=len(values),
        floor=None if low is None else round(low, 4),
        peer=round(statistics.median(peer), 4) if peer else None,
        ratio=None if not low else round(value / low, 3),
        spread=(round(min(values), 4), round(max(values), 4)),
        limit=limit,
    )


async def alternate(
    count: int, ours: Callable[[int], Awaitable[float]], floor: Callable[[int], Awaitable[float]]
) -> tuple[list[float], list[float]]:
    """Run ours and the floor in turn, so that a slow minute of the machine hits both; the first pair is warm-up."""
    mine: list[float] = []
    low: list[float] = []
    for turn in range(count + 1):
        first = await ours(turn)
        second = await floor(turn)
        if turn:
            mine.append(first)
            low.append(second)
    return mine, low


class Stopwatch:
    """Milliseconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def ms(self) -> float:
        """Return the elapsed milliseconds."""
        return (time.perf_counter() - self._start) * 1000


def report(figures: list[Figure], *, path: Path) -> None:
    """Print the table with its verdicts and write the JSON beside the other build products."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([_row(f) for f in figures], indent=2, ensure_ascii=False) + "\n")
    wide = max(44, *(len(f.name) for f in figures))
    print(f"{'':<{wide}} {'median':>10} {'floor':>10} {'peer':>10} {'ratio':>7} {'n':>4}  min … max", file=sys.stdout)
    for f in figures:
        floor = "-" if f.floor is None else f"{f.floor:.2f}"
        peer = "-" if f.peer is None else f"{f.peer:.2f}"
        ratio = "-" if f.ratio is None else f"{f.ratio:.2f}"
        low, high = f.spread or (f.value, f.value)
        numbers = f"{f.value:>10.2f} {floor:>10} {peer:>10} {ratio:>7} {f.n:>4}"
        print(f"{f.name:<{wide}} {numbers}  {low:.2f} … {high:.2f} {f.unit}  {f.verdict}".rstrip())
    print(f"\nwritten to {path}")


def _row(figure: Figure) -> dict[str, object]:
    told = {key: value for key, value in asdict(figure).items() if key not in {"spread", "limit"}}
    limit = figure.limit
    return {**told, "asked": limit and str(limit), "held": limit and limit.held(figure)}


def measured(names: Iterable[str], measure: Callable[[str, Path], list[Figure]]) -> list[Figure]:
    """Measure part after part, each in a folder of its own that is gone afterwards."""
    figures: list[Figure] = []
    for name in names:
        # Short, because QEMU's sockets lie in it; under /var/tmp, because figures about disks need a disk.
        folder = Path(tempfile.mkdtemp(prefix="kmgr-", dir="/var/tmp"))
        try:
            print(f"measuring: {name}", flush=True)
            figures += measure(name, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return figures
