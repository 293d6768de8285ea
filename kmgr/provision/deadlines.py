"""Which desktops of this server take longer than they may, and what is said of them then.

A server judges its own desktops by its own monotonic clock, from the first look at
which it saw them in their state: a daemon that was restarted begins to count
again, so a desktop may be given up late but never early. No wall clock is compared.

Pure: the time is an argument; what is remembered is only convenience.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from kmgr.ids import DesktopId, VersionId
from kmgr.provision.causes import CURES, Fault
from kmgr.provision.lifecycle import DEADLINES, IMAGE_DEADLINE, Deadline
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.reconcile import Fail

# How long a server that broke a desktop by its own fault is given no others; removing or retrying that one ends it.
PAUSE_MS = 300_000
_UNTOLD = "nothing more is known: look at the log of kmgr on its server"
_IMAGE = "its golden image is not on this server: the copy did not come within {} s"
_LATE = "its server did not get on with it within {} s: {}"
_NOT_REMOVED = (
    "{} desktops that are given back could not be removed from this server for {} minutes ({}): {}. kmgr tries on."
)
_PAUSED = "No new desktops are made here for some minutes: {} broke by a fault of this server. {} ({}) {}"

_Key = tuple[DesktopState, int, bool]


class Deadlines:
    """Since when this server's desktops are in their states."""

    def __init__(self) -> None:
        self._since: dict[DesktopId, tuple[_Key, float]] = {}

    def look(
        self, wanted: Sequence[Desktop], *, now: float, queued: Collection[DesktopId], absent: Collection[VersionId]
    ) -> None:
        """Take note of a look. Time stands still for desktops that are `queued` behind others."""
        seen: dict[DesktopId, tuple[_Key, float]] = {}
        for desktop in wanted:
            key = (desktop.state, desktop.generation, _lacks(desktop, absent))
            known = self._since.get(desktop.id)
            if known is not None and known[0] == key and desktop.id not in queued:
                seen[desktop.id] = known
            else:
                seen[desktop.id] = (key, now)
        self._since = seen

    def overdue(self, wanted: Sequence[Desktop], *, now: float, limits: Mapping[str, int]) -> tuple[Desktop, ...]:
        """Return those whose time is over."""
        return tuple(desktop for desktop in wanted if self._is_over(desktop, now, limits))

    def failures(
        self,
        wanted: Sequence[Desktop],
        *,
        now: float,
        limits: Mapping[str, int],
        busy: Collection[DesktopId],
        words: Mapping[DesktopId, str],
        problem: str,
    ) -> Iterator[Fail]:
        """Yield what is to be reported as broken. `words` are the last ones of each, `problem` that of the server."""
        for desktop in self.overdue(wanted, now=now, limits=limits):
            rule = self._rule(desktop)
            if rule is None or rule.then is None or desktop.id in busy:
                continue
            if rule is IMAGE_DEADLINE:
                yield Fail(desktop, rule.step, _IMAGE.format(limits[rule.setting]))
            else:
                told = problem or words.get(desktop.id) or _UNTOLD
                yield Fail(desktop, rule.step, _LATE.format(limits[rule.setting], told))

    def told(
        self, wanted: Sequence[Desktop], *, now: float, limits: Mapping[str, int], words: Mapping[DesktopId, str]
    ) -> str:
        """Say which removals take too long, empty if none does."""
        late = [d for d in self.overdue(wanted, now=now, limits=limits) if d.state is DesktopState.RETIRED]
        if not late:
            return ""
        minutes = round(max(now - self._since[d.id][1] for d in late) / 60)
        names = ", ".join(d.name for d in late[:3])
        return _NOT_REMOVED.format(len(late), minutes, names, words.get(late[0].id, _UNTOLD))

    def _is_over(self, desktop: Desktop, now: float, limits: Mapping[str, int]) -> bool:
        rule = self._rule(desktop)
        return rule is not None and now - self._since[desktop.id][1] > limits[rule.setting]

    def _rule(self, desktop: Desktop) -> Deadline | None:
        known = self._since.get(desktop.id)
        if known is None or known[0][:2] != (desktop.state, desktop.generation):
            return None
        return IMAGE_DEADLINE if known[0][2] else DEADLINES.get(desktop.state)


def pause(wanted: Sequence[Desktop], *, now_ms: int) -> str:
    """Say why this server should be given no new desktops for a while, empty if it may be.

    The stamps compared are this server's own: it reported the breakage.
    """
    guilty = [
        (d.changed_at, d.id, d, CURES[d.trouble])
        for d in wanted
        if d.state is DesktopState.BROKEN and d.trouble is not None and 0 <= now_ms - d.changed_at < PAUSE_MS
    ]
    faults = [one for one in guilty if one[3].fault is Fault.SERVER]
    if not faults:
        return ""
    _, _, latest, cure = max(faults, key=lambda one: one[:2])
    return _PAUSED.format(latest.name, cure.what, latest.cause, cure.advice)


def _lacks(desktop: Desktop, absent: Collection[VersionId]) -> bool:
    return desktop.state is DesktopState.PLACED and desktop.version in absent
