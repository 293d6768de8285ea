"""What happens to a template's desktops around their users: made anew when, kept how long, idle how, ready when.

Defaults say what was the case before there were policies, so that a template
without one behaves as it always did. A policy that comes from a person is read by
`policy_of`, which names all that is wrong at once.

Pure: no I/O, no clock.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar

from kmgr.errors import Refused
from kmgr.templates.machine import USUAL_MACHINE, Machine, machine_of
from kmgr.whole import is_whole, must_be

_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00")
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_PROPERTY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_PLACE = re.compile(r"\{([a-z_]*)(?::([1-9]))?\}")
# What a computer name may be made of; `{number:3}` is 001, 002 … Without a number two desktops would have one name.
NAME_PLACES = ("template", "number")
_LONGEST_NAME = 63
DEFAULT_NAME = "{template}-{number}"
DAY_MINUTES = 24 * 60
# Enough for 2560 × 1600, 3840 × 2160, 5120 × 2880 and 7680 × 4320 at 32 bits; QEMU wants powers of two.
VIDEO_MIB = (16, 32, 64, 128)
_LONGEST_SEED = 16_384
_MOST = 100  # ramps, holidays and properties: what a person still can look through


class Refresh(StrEnum):
    """When a pooled desktop is thrown away and made anew."""

    ON_LOGOUT = "on_logout"
    SCHEDULE = "schedule"
    MANUAL = "manual"
    NEVER = "never"


class Day(StrEnum):
    """A day of the week, in their order."""

    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"


class IdleThen(StrEnum):
    """What happens to a desktop at which nobody does anything for too long."""

    DISCONNECT = "disconnect"  # its screen is closed; it is kept as after any disconnect
    LOG_OUT = "log_out"  # it is given back, as at log-out


class Clones(StrEnum):
    """Whether desktops may be restored from a saved memory instead of booting."""

    AUTO = "auto"
    NEVER = "never"


class Seed(StrEnum):
    """Which first-boot program of the guest is told name and properties by a small read-only disk."""

    NONE = "none"
    NOCLOUD = "nocloud"  # cloud-init, NoCloud
    CLOUDBASE = "cloudbase"  # cloudbase-init of Windows, which reads a config drive


@dataclass(frozen=True, slots=True)
class Schedule:
    """On `days` at `at` (minutes after midnight, the grid's time) desktops that nobody looks at are made anew."""

    days: tuple[Day, ...] = tuple(Day)
    at: int = 3 * 60


@dataclass(frozen=True, slots=True)
class Ramp:
    """From `start` to `end` of some `days`, or of `dates` (YYYY-MM-DD), `standby` desktops are kept ready.

    Minutes after midnight; an `end` before `start` is of the next day. Making
    them begins `early_min` minutes before `start`. A ramp with dates counts there
    instead of those with days, on a holiday too.
    """

    start: int
    end: int
    standby: int
    days: tuple[Day, ...] = ()
    dates: tuple[str, ...] = ()
    early_min: int = 0


@dataclass(frozen=True, slots=True)
class Devices:
    """What a desktop has besides picture and keys.

    A shared `clipboard` needs the guest's vdagent, and QEMU neither saves nor moves
    such a desktop while it runs. A `sound` card is for programs that want one: the
    browser does not play it. `video_mib` of memory for its one screen set how large
    that can be.
    """

    clipboard: bool = False
    sound: bool = False
    video_mib: int = 16


NO_DEVICES = Devices()


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one template.

    `schedule` counts only with `Refresh.SCHEDULE`. `keep_s` is how long a pooled
    desktop is kept for its user after its screen was closed; None: as long as they
    are logged in. `idle_s` without a key or a movement closes the screen (None:
    never), announced `idle_warning_s` before. On `holidays` (YYYY-MM-DD)
    `holiday_standby` desktops are ready all day. `suspend_standby`: what stands by
    sleeps until it is claimed. `network` is a network of libvirt, empty for kmgr's
    usual one. `seed_data` is added to what the guest's first-boot program is told.
    `machine` is the kind that desktops are made as; each keeps its own.
    """

    refresh: Refresh = Refresh.ON_LOGOUT
    schedule: Schedule | None = None
    keep_s: int | None = None
    idle_s: int | None = None
    idle_warning_s: int = 60
    idle_then: IdleThen = IdleThen.DISCONNECT
    calendar: tuple[Ramp, ...] = ()
    holidays: tuple[str, ...] = ()
    holiday_standby: int = 0
    suspend_standby: bool = False
    network: str = ""
    devices: Devices = NO_DEVICES
    machine: Machine = USUAL_MACHINE
    name_pattern: str = DEFAULT_NAME
    instant_clone: Clones = Clones.AUTO
    seed: Seed = Seed.NONE
    seed_data: str = ""
    properties: tuple[tuple[str, str], ...] = ()


USUAL = Policy()
FIELDS = tuple(one.name for one in fields(Policy))


def policy_of(values: Mapping[str, Any], *, base: Policy = USUAL) -> Policy:
    """Return `base` with what is given changed; raise `Refused` with everything that is wrong or unknown."""
    reader = _Reader()
    given = {name: getattr(base, name) for name in FIELDS}
    for name, value in values.items():
        read = _READERS.get(name)
        if read is None:
            reader.problems.append(f"a policy has no {name!r}; it has {', '.join(FIELDS)}")
        elif (found := read(reader, value)) is not _WRONG:
            given[name] = found
    policy = Policy(**given)
    found_wrong = [*reader.problems, *(() if reader.problems else _contradictions(policy))]
    if found_wrong:
        raise Refused("; ".join(found_wrong))
    return policy


@lru_cache(maxsize=1024)
def from_json(text: str) -> Policy:
    """Return the policy that `to_json` wrote; what a newer version added to it is left out."""
    values = json.loads(text) if text else {}
    return policy_of({name: value for name, value in values.items() if name in FIELDS})


def to_json(policy: Policy) -> str:
    """Return a policy as text, the same for equal ones."""
    return json.dumps(as_values(policy), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def as_values(policy: Policy) -> dict[str, Any]:
    """Return a policy as API and log show it: `policy_of` reads it back."""
    values = asdict(policy)
    values["properties"] = dict(policy.properties)
    if policy.schedule is not None:
        values["schedule"] = {"days": list(policy.schedule.days), "at": clock_time(policy.schedule.at)}
    values["calendar"] = [
        {
            "days": list(ramp.days),
            "dates": list(ramp.dates),
            "start": clock_time(ramp.start),
            "end": clock_time(ramp.end),
            "standby": ramp.standby,
            "early_min": ramp.early_min,
        }
        for ramp in policy.calendar
    ]
    values["holidays"] = list(policy.holidays)
    return values


def clock_time(minutes: int) -> str:
    """Return minutes after midnight as people write them: 07:30."""
    return f"{minutes // 60:02}:{minutes % 60:02}"


class _Wrong:
    """What a reader returns for a value that it has complained about."""


_WRONG = _Wrong()
_Read = Callable[["_Reader", Any], Any]
_Word = TypeVar("_Word", bound=StrEnum)


class _Reader:
    """Reads values and collects complaints."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def wrong(self, text: str) -> Any:
        self.problems.append(text)
        return _WRONG

    def whole(self, value: Any, what: str, least: int, most: int) -> Any:
        return value if is_whole(value, least, most) else self.wrong(f"{what} {must_be(value, least, most)}")

    def flag(self, value: Any, what: str) -> Any:
        return value if isinstance(value, bool) else self.wrong(f"{what} is true or false, not {value!r}")

    def word(self, value: Any, what: str, words: type[_Word]) -> Any:
        if isinstance(value, str) and value in list(words):
            return words(value)
        return self.wrong(f"{what} is {' or '.join(words)}, not {value!r}")

    def text(self, value: Any, what: str, most: int) -> Any:
        if isinstance(value, str) and len(value) <= most:
            return value
        return self.wrong(f"{what} is a text of at most {most} characters")

    def time(self, value: Any, what: str) -> Any:
        if isinstance(value, str) and _TIME.fullmatch(value):
            return int(value[:2]) * 60 + int(value[3:])
        return self.wrong(f"{what} is a time of day like 07:30, not {value!r}")

    def days(self, value: Any, what: str) -> Any:
        if _are_texts(value) and set(value) <= set(Day):
            return tuple(day for day in Day if day in value)
        return self.wrong(f"{what} are some of {', '.join(Day)}, not {value!r}")

    def dates(self, value: Any, what: str) -> Any:
        if _are_texts(value) and len(value) <= _MOST and all(_is_date(one) for one in value):
            return tuple(sorted(set(value)))
        return self.wrong(f"{what} are at most {_MOST} days like 2026-12-24, not {value!r}")

    def parts(self, value: Any, what: str, known: Iterable[str]) -> Mapping[str, Any] | None:
        """Return the value if it is an object with nothing but the known parts."""
        names = tuple(known)
        if isinstance(value, Mapping) and set(value) <= set(names):
            return value
        self.wrong(f"{what} has {', '.join(names)}, not {value!r}")
        return None


def _schedule(reader: _Reader, value: Any) -> Any:
    if value is None:
        return None
    parts = reader.parts(value, "a schedule", ("days", "at"))
    if parts is None:
        return _WRONG
    days = reader.days(parts.get("days", list(Day)), "the days of a schedule")
    at = reader.time(parts.get("at", "03:00"), "the time of a schedule")
    if _WRONG in (days, at):
        return _WRONG
    return Schedule(days, at % DAY_MINUTES) if days else reader.wrong("a schedule has at least one day")


def _calendar(reader: _Reader, value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) > _MOST:
        return reader.wrong(f"a calendar is a list of at most {_MOST} ramps")
    ramps = [_ramp(reader, one) for one in value]
    return _WRONG if _WRONG in ramps else tuple(ramps)


def _ramp(reader: _Reader, value: Any) -> Any:
    parts = reader.parts(value, "a ramp", ("days", "dates", "start", "end", "standby", "early_min"))
    if parts is None:
        return _WRONG
    found = {
        "start": reader.time(parts.get("start"), "the start of a ramp"),
        "end": reader.time(parts.get("end"), "the end of a ramp"),
        "standby": reader.whole(parts.get("standby"), "the number ready in a ramp", 0, 1000),
        "days": reader.days(parts.get("days", []), "the days of a ramp"),
        "dates": reader.dates(parts.get("dates", []), "the dates of a ramp"),
        "early_min": reader.whole(parts.get("early_min", 0), "the minutes a ramp begins earlier", 0, 240),
    }
    if _WRONG in found.values():
        return _WRONG
    ramp = Ramp(**found)
    if bool(ramp.days) == bool(ramp.dates):
        return reader.wrong("a ramp is for days of the week or for dates: choose one of the two")
    if ramp.start == ramp.end or ramp.start == DAY_MINUTES:
        return reader.wrong("a ramp begins and ends at two different times; all day is 00:00 to 24:00")
    return ramp


def _devices(reader: _Reader, value: Any) -> Any:
    parts = reader.parts(value, "devices", (one.name for one in fields(Devices)))
    if parts is None:
        return _WRONG
    usual = Devices()
    told = {n: reader.flag(parts.get(n, getattr(usual, n)), n) for n in ("clipboard", "sound")}
    video = parts.get("video_mib", usual.video_mib)
    known = is_whole(video, VIDEO_MIB[0], VIDEO_MIB[-1]) and video in VIDEO_MIB
    words = f"the video memory is {' or '.join(map(str, VIDEO_MIB))} MiB, not {video!r}"
    told["video_mib"] = video if known else reader.wrong(words)
    return _WRONG if _WRONG in told.values() else Devices(**told)


def _machine(reader: _Reader, value: Any) -> Any:
    machine, problem = machine_of(value)
    return reader.wrong(problem) if problem else machine


def _network(reader: _Reader, value: Any) -> Any:
    if value == "" or (isinstance(value, str) and _NETWORK.fullmatch(value)):
        return value
    return reader.wrong(f"a network is the name of one of libvirt's, or empty for the usual one, not {value!r}")


def _name_pattern(reader: _Reader, value: Any) -> Any:
    problem = pattern_problem(value) if isinstance(value, str) else "a name pattern is a text"
    return reader.wrong(problem) if problem else value


def pattern_problem(pattern: str) -> str:
    """Say why computer names cannot be made from a pattern, empty if they can."""
    used = [(name, digits) for name, digits in _PLACE.findall(pattern)]
    wrong = [name for name, digits in used if name not in NAME_PLACES or (digits and name != "number")]
    rest = _PLACE.sub("x", pattern)
    if wrong or "{" in rest or "}" in rest:
        return (
            f"the name pattern {pattern!r} may have {{template}}, {{number}} and {{number:3}}, nothing else in braces"
        )
    if "number" not in [name for name, _ in used]:
        return f"the name pattern {pattern!r} needs {{number}}, or two computers would have one name"
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?", rest):
        return f"the name pattern {pattern!r} makes no host names: letters, digits and inner hyphens, at most 32"
    return ""


def computer_name(pattern: str, template: str, number: int) -> str:
    """Return the name of a template's desktop with this number: a host name, another one for each number.

    Of a template's name as much stands in it as leaves room for the rest.
    """
    numbered = _PLACE.sub(lambda m: m[0] if m[1] == "template" else str(number).zfill(int(m[2] or 1)), pattern)
    uses = len(_PLACE.findall(numbered))
    room = (_LONGEST_NAME - len(_PLACE.sub("", numbered))) // max(1, uses)
    return _PLACE.sub(template[: max(1, room)].rstrip("-") or "x", numbered)


def _properties(reader: _Reader, value: Any) -> Any:
    good = isinstance(value, Mapping) and len(value) <= _MOST
    for name, text in value.items() if good else ():
        good &= isinstance(name, str) and bool(_PROPERTY.fullmatch(name))
        good &= isinstance(text, str) and len(text) <= 1000 and text.isprintable()
    if good:
        return tuple((name, value[name]) for name in sorted(value))
    return reader.wrong(
        f"properties are at most {_MOST} names of letters, digits, _ . and -, each with one line of at most 1000 "
        "characters"
    )


def _optional(least: int, most: int, what: str) -> _Read:
    return lambda reader, value: None if value is None else reader.whole(value, what, least, most)


def _whole(least: int, most: int, what: str) -> _Read:
    return lambda reader, value: reader.whole(value, what, least, most)


def _word(words: type[StrEnum], what: str) -> _Read:
    return lambda reader, value: reader.word(value, what, words)


# Field → how it is read, with the limits of what a person may ask for.
_READERS: Mapping[str, _Read] = {
    "refresh": _word(Refresh, "when a desktop is made anew"),
    "schedule": _schedule,
    "keep_s": _optional(0, 30 * 86_400, "the time a desktop is kept after a disconnect, in seconds,"),
    "idle_s": _optional(60, 7 * 86_400, "the idle time in seconds"),
    "idle_warning_s": _whole(10, 3600, "the warning before that, in seconds,"),
    "idle_then": _word(IdleThen, "what follows on idling"),
    "calendar": _calendar,
    "holidays": lambda reader, value: reader.dates(value, "holidays"),
    "holiday_standby": _whole(0, 1000, "the number ready on a holiday"),
    "suspend_standby": lambda reader, value: reader.flag(value, "sleeping while standing by"),
    "network": _network,
    "devices": _devices,
    "machine": _machine,
    "name_pattern": _name_pattern,
    "instant_clone": _word(Clones, "starting from a saved memory"),
    "seed": _word(Seed, "the seed of the first boot"),
    "seed_data": lambda reader, value: reader.text(value, "what is added to the seed", _LONGEST_SEED),
    "properties": _properties,
}


def _contradictions(policy: Policy) -> Iterable[str]:
    if policy.refresh is Refresh.SCHEDULE and policy.schedule is None:
        yield "desktops made anew on a schedule need one: say on which days and when"
    stays = policy.refresh in (Refresh.MANUAL, Refresh.NEVER)
    if stays and policy.keep_s is not None:
        yield (
            "a desktop that is made anew only by hand, or never, cannot be taken back some time after its user left: "
            "choose another refresh, or keep it without a limit"
        )
    if stays and policy.idle_s is not None and policy.idle_then is IdleThen.LOG_OUT:
        yield (
            "a desktop that is made anew only by hand, or never, cannot be given back because nobody does anything: "
            "close its screen instead"
        )
    if policy.idle_s is not None and policy.idle_warning_s >= policy.idle_s:
        yield (
            f"a warning {policy.idle_warning_s} s before the end does not fit into {policy.idle_s} s of idling: "
            "warn later or wait longer"
        )
    if policy.seed_data and policy.seed is Seed.NONE:
        yield "something is added to the seed of the first boot, but there is no seed: choose one"


def _are_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, str) for one in value)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
