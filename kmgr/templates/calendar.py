"""How many desktops should stand by at a moment, and when those of a schedule were due last.

`at` is always a moment in the grid's time zone. Ramps are times of the wall clock,
so that "from 07:30" stays that when summer time begins; what lies between two
moments is compared as moments, so that no hour counts twice.

Rule 1: on a day with ramps of its own (`dates`) only those count; on a holiday
no ramp of a weekday counts. Rule 2: of ramps that overlap the largest counts, and
a ramp may ask for fewer than usual. Rule 3: a ramp belongs to the day on which it
begins, also behind midnight.

Pure: no I/O, no clock.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo

from kmgr.templates.policy import DAY_MINUTES, Day, Policy, Ramp, Schedule

_DAYS = tuple(Day)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Step:
    """From `at` on `standby` desktops are kept ready."""

    at: datetime
    standby: int


def wanted_standby(policy: Policy, standby: int, at: datetime) -> int:
    """Return how many desktops should stand by at a moment; `standby` are the template's usual ones."""
    asked = [
        ramp.standby for begin, end, ramp in _ramps(policy, at.date(), _zone(at)) if begin <= at.timestamp() < end
    ]
    if asked:
        return max(asked)
    return policy.holiday_standby if at.date().isoformat() in policy.holidays else standby


def steps(policy: Policy, standby: int, at: datetime, *, days: int = 1) -> tuple[Step, ...]:
    """Return what is wanted at a moment and every change of it in the days after."""
    zone, end = _zone(at), at.timestamp() + days * 86_400
    moments = {at.timestamp()}
    for offset in range(days + 2):
        day = at.date() + offset * _DAY
        moments.add(_moment(day, 0, zone))
        moments |= {edge for begin, over, _ in _ramps(policy, day, zone) for edge in (begin, over)}
    found: list[Step] = []
    for moment in sorted(one for one in moments if at.timestamp() <= one < end):
        then = datetime.fromtimestamp(moment, zone)
        wanted = wanted_standby(policy, standby, then)
        if not found or found[-1].standby != wanted:
            found.append(Step(then, wanted))
    return tuple(found)


def last_due(schedule: Schedule, at: datetime) -> datetime:
    """Return the last moment at which a schedule was due; it has at least one day, so that is within a week."""
    zone = _zone(at)
    for back in range(8):
        day = at.date() - back * _DAY
        moment = _moment(day, schedule.at, zone)
        if _DAYS[day.weekday()] in schedule.days and moment <= at.timestamp():
            return datetime.fromtimestamp(moment, zone)
    return datetime.fromtimestamp(0, zone)


def _ramps(policy: Policy, day: date, zone: tzinfo) -> Iterator[tuple[float, float, Ramp]]:
    """Yield the ramps that can reach into a day, with the moments of their beginning and end."""
    for begins in (day - _DAY, day, day + _DAY):
        own = begins.isoformat()
        dated = [ramp for ramp in policy.calendar if own in ramp.dates]
        usual = [] if own in policy.holidays else policy.calendar
        for ramp in dated or (ramp for ramp in usual if _DAYS[begins.weekday()] in ramp.days):
            over = ramp.end if ramp.end > ramp.start else ramp.end + DAY_MINUTES
            yield _moment(begins, ramp.start, zone) - 60 * ramp.early_min, _moment(begins, over, zone), ramp


def _moment(day: date, minutes: int, zone: tzinfo) -> float:
    on, minute = divmod(minutes, DAY_MINUTES)
    return datetime.combine(day + on * _DAY, time(minute // 60, minute % 60), zone).timestamp()


def _zone(at: datetime) -> tzinfo:
    if at.tzinfo is None:
        raise ValueError("a moment without a time zone")
    return at.tzinfo
