"""Figures and states as people read them: sizes, ages, stamps, names of states and their colours.

Plain functions from values to texts; the time now is an argument.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

_UNITS = ("bytes", "KB", "MB", "GB", "TB", "PB")
_STEP = 1024
_ROUND_FROM = 10  # "12 GB", but "1.5 GB"
_NOW_S = 5
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_FULL = 90
_TIGHT = 75

_SETTING_UNITS: Mapping[str, str] = {"ms": "ms", "s": "s", "hours": "hours", "days": "days", "mib_s": "MiB/s"}

# What a state is called on pages, and the colour of its badge (Tabler's names).
STATES: Mapping[str, tuple[str, str]] = {
    "up": ("up", "green"),
    "draining": ("draining", "yellow"),
    "lost": ("lost", "red"),
    "joining": ("joining", "azure"),
    "removed": ("removed", "secondary"),
    "placed": ("planned", "azure"),
    "building": ("building", "azure"),
    "ready": ("ready", "green"),
    "in_use": ("in use", "blue"),
    "broken": ("broken", "red"),
    "retired": ("going", "secondary"),
    "draft": ("not published", "secondary"),
    "canary": ("being tried", "azure"),
    "published": ("published", "green"),
    "stopped": ("stopped", "red"),
    "withdrawn": ("withdrawn", "orange"),
    "expired": ("expired", "yellow"),
    "ended": ("ended", "secondary"),
    "admin": ("administrator", "purple"),
    "user": ("user", "secondary"),
    "disabled": ("disabled", "yellow"),
    "enabled": ("enabled", "green"),
}


def size(count: int | None) -> str:
    """Return a number of bytes in the unit that suits it."""
    if count is None:
        return "–"
    value = float(count)
    for unit in _UNITS:
        if value < _STEP or unit == _UNITS[-1]:
            break
        value /= _STEP
    if unit == "bytes":
        return f"{count} {unit}"
    return f"{value:.0f} {unit}" if value >= _ROUND_FROM else f"{value:.1f} {unit}".replace(".0 ", " ")


def mib(count: int | None) -> str:
    """Return a number of MiB in the unit that suits it."""
    return "–" if count is None else size(count * _STEP * _STEP)


def span(seconds: float) -> str:
    """Return a length of time in its largest whole unit."""
    whole = max(0, round(seconds))
    for unit, name in ((_DAY_S, "day"), (_HOUR_S, "hour"), (_MINUTE_S, "minute")):
        if whole >= unit:
            n = whole // unit
            return f"{n} {name}{'' if n == 1 else 's'}"
    return f"{whole} s"


def lasted(milliseconds: int) -> str:
    """Return how long something lasted: in tenths of a second while that is short, in its two largest units else."""
    if milliseconds < _ROUND_FROM * 1000:
        return f"{max(0, milliseconds) / 1000:.1f} s"
    whole = round(milliseconds / 1000)
    parts = []
    for unit, name in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min"), (1, "s")):
        if whole >= unit:
            parts.append(f"{whole // unit} {name}")
        whole %= unit
    return " ".join(parts[:2])


def ago(at_ms: int, now_ms: int) -> str:
    """Return how long ago, or in how long, a stamp is."""
    seconds = (now_ms - at_ms) / 1000
    if abs(seconds) < _NOW_S:
        return "just now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def stamp(at_ms: int) -> str:
    """Return the full stamp of a moment, for titles."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(at_ms: int) -> str:
    """Return a moment as programs read it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def state_name(state: str) -> str:
    """Return what a state is called on pages."""
    return STATES.get(state, (state.replace("_", " "), ""))[0]


def state_colour(state: str) -> str:
    """Return the colour of a state's badge."""
    return STATES.get(state, ("", "secondary"))[1]


def used_percent(whole: int | None, free: int | None) -> int | None:
    """Return how much of something is used, None if that is not known."""
    if not whole or free is None:
        return None
    return min(100, max(0, round(100 * (whole - free) / whole)))


def level(percent: int | None) -> str:
    """Return how alarming a bar is: `ok`, `tight` or `full`."""
    if percent is None or percent < _TIGHT:
        return "ok"
    return "full" if percent >= _FULL else "tight"


def sentence(text: str) -> str:
    """Return a message as a sentence of its own: a capital letter first, unless a name like `a_ms` or `b.txt` is."""
    first = text.partition(" ")[0]
    return text if any(mark in first for mark in "._/@") else text[:1].upper() + text[1:]


def unit(name: str) -> str:
    """Return the unit that the name of a setting ends with, empty for a mere count."""
    last_two, last = "_".join(name.split("_")[-2:]), name.rpartition("_")[2]
    return _SETTING_UNITS.get(last_two) or _SETTING_UNITS.get(last, "")


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun."""
    return f"{count} {one if count == 1 else many or one + 's'}"
