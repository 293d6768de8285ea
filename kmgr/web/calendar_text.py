"""A calendar as an administrator types it, one ramp a line: `mon-fri 07:30-16:00 30, 20 min earlier`.

What comes first are days of the week (`mon-fri`, `sat,sun`, `daily`) or dates
(`2026-12-24,2026-12-31`). Lines that cannot be read are named with what is wrong.

Pure.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kmgr.templates.policy import Day, Ramp, clock_time

_LINE = re.compile(
    r"(?P<when>\S+)\s+(?P<start>\d{1,2}:\d\d)\s*-\s*(?P<end>\d{1,2}:\d\d)\s*:?\s+(?P<standby>\d{1,6})"
    r"(?:\s*,?\s*(?P<early>\d{1,4})\s*min(?:utes)?\s+earl(?:y|ier))?"
)
EXAMPLE = "mon-fri 07:30-16:00 30, 20 min earlier"
_DAILY = "daily"
_ORDER = tuple(Day)


def read(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the ramps of a text as a policy takes them, and what is wrong with its lines."""
    ramps, problems = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        when = _when(found["when"].casefold()) if found else None
        if found is None or when is None:
            problems.append(f"line {number} of the calendar, {line.strip()!r}: write it like {EXAMPLE!r}")
            continue
        ramps.append(
            {
                **when,
                "start": found["start"].zfill(5),
                "end": found["end"].zfill(5),
                "standby": int(found["standby"]),
                "early_min": int(found["early"] or 0),
            }
        )
    return ramps, problems


def written(ramps: Sequence[Ramp]) -> str:
    """Return ramps as `read` reads them."""
    lines = []
    for ramp in ramps:
        early = f", {ramp.early_min} min earlier" if ramp.early_min else ""
        when = ",".join(ramp.dates) or _days(ramp.days)
        lines.append(f"{when} {clock_time(ramp.start)}-{clock_time(ramp.end)} {ramp.standby}{early}")
    return "\n".join(lines)


def _when(text: str) -> Mapping[str, Any] | None:
    if text == _DAILY:
        return {"days": list(_ORDER)}
    if text[:1].isdigit():
        return {"dates": text.split(",")}
    days: list[Day] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in list(Day) or (last or first) not in list(Day):
            return None
        begin, end = _ORDER.index(Day(first)), _ORDER.index(Day(last or first))
        if end < begin:
            return None
        days += _ORDER[begin : end + 1]
    return {"days": days}


def _days(days: Sequence[Day]) -> str:
    if tuple(days) == _ORDER:
        return _DAILY
    places = [_ORDER.index(day) for day in days]
    if len(places) > 2 and places == list(range(places[0], places[-1] + 1)):
        return f"{days[0]}-{days[-1]}"
    return ",".join(days)
