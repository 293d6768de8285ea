"""Decide how many desktops each template should have waiting, and which of those there are must go.

Words: desktops *waiting* are placed, building or ready, claimed by nobody. *Fresh*
ones are of the template's present version, *former* ones of another.

Rule 0: whoever asked and found none ready is made one, beyond those that stand by.
Rule 1: former desktops stay until fresh ones are ready in their place, so a
publication never empties a pool. One that is merely placed goes at once.
Rule 2: the maximum holds at every moment, for all versions together. Where it
leaves no room for a fresh desktop, a few former ones make room, and nothing more
happens until that is done.
Rule 3: desktops in use are never touched here, nor a personal one that is somebody's.
Rule 4: when all of a template is ready and a server has two standbys more than another could
have, one moves: it is made there first, then the fuller server gives one up. At the
maximum it is the other way round, else a storm of log-ins would leave them as uneven as it found them.
Rule 5: ties are broken by id, never by the order of the input.

Pure.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kmgr.balancer.model import Retire, View, Why
from kmgr.balancer.place import COMING, WAITING, able
from kmgr.grid.model import RUNNING
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.model import Desktop, DesktopState
from kmgr.templates.model import Template

BROKEN_KEPT = 3
# The part of a pool that may make room for a newer version at once.
ROLL_PART = 4
# Standbys that one server must have more than another before one moves: with less it would only swap places.
UNEVEN = 2


@dataclass(frozen=True, slots=True)
class Need:
    """What a template lacks.

    `missing` desktops should be placed, `allowed` may be under the maximum. Each
    of `stuck` (on a server that cannot make it now) gives way to one that is
    placed elsewhere: `holders_only`, if some wait for the golden image already.
    `pressing` of the missing ones may take what is kept for a loss: somebody waits for each, or one goes for it,
    or has gone (`owed`).
    `former` are ready ones in the order in which they make room; they may, if
    nothing of the template is on its way (`settled`). `fullest` is how many
    standbys the server with most of them has, `gives` the first of those to go.
    """

    template: Template
    target: int
    missing: int
    allowed: int
    pressing: int
    stuck: tuple[Desktop, ...]
    holders_only: bool
    former: tuple[Desktop, ...]
    settled: bool
    fullest: int
    gives: Desktop | None

    @property
    def step(self) -> int:
        """How many former desktops may make room at once."""
        return min(self.missing, max(1, self.target // ROLL_PART), len(self.former))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is decided about one template: who goes now, and what is lacking."""

    retire: tuple[Retire, ...]
    need: Need | None


def orphaned(view: View, desktops: Sequence[Desktop]) -> Iterator[Retire]:
    """Yield the desktops that nobody uses and whose template is gone."""
    known = {template.id for template in view.templates}
    for desktop in _by_id(desktops):
        if desktop.template not in known and desktop.state in (*WAITING, DesktopState.BROKEN) and not desktop.owned:
            yield Retire(desktop, Why.NO_TEMPLATE)


def judge(template: Template, desktops: Sequence[Desktop], view: View) -> Verdict:
    """Decide about one template; `desktops` are all there are, but for those that leave with their server."""
    own = [d for d in _by_id(desktops) if d.template == template.id]
    broken = _old_breakage(own)
    waiting = [d for d in own if d.state in WAITING]
    if not template.enabled:
        gone = [Retire(d, Why.SWITCHED_OFF) for d in waiting]
        return Verdict(tuple(sorted([*gone, *broken], key=lambda r: r.desktop.id)), None)
    in_use = sum(d.state is DesktopState.IN_USE or d.owned for d in own)
    wanted = template.standby + view.asks.get(template.id, 0)
    pool = _Pool(template, waiting, max(0, min(wanted, template.maximum - in_use)), view)
    pool.drop_unstarted()
    pool.drop_replaced()
    pool.drop_surplus()
    pool.keep_below(template.maximum - in_use)
    retire = [*pool.retire, *broken]
    return Verdict(
        tuple(sorted(retire, key=lambda r: r.desktop.id)),
        None if template.broken_cause else pool.need(template.maximum - in_use, own, retire),
    )


class _Pool:
    """The waiting desktops of one template while it is decided which of them go."""

    def __init__(self, template: Template, waiting: Sequence[Desktop], target: int, view: View) -> None:
        self.template = template
        self.target = target
        self.view = view
        self.asked = view.asks.get(template.id, 0)
        self.retire: list[Retire] = []
        fresh = [d for d in waiting if d.version == template.version]
        self.former = [d for d in waiting if d.version != template.version]
        self.ready = [d for d in fresh if d.state is DesktopState.READY]
        coming = [d for d in fresh if d.state in COMING]
        self.lacking = [d for d in coming if self._lacks_image(d)]
        # What boots again after its server was restarted is coming, whatever that server's last word was.
        stuck = {d.id for d in coming if d.ready_at is None and not able(view, d.server)}
        stuck |= {d.id for d in self.lacking}
        self.stuck = [d for d in coming if d.id in stuck]
        self.coming = [d for d in coming if d.id not in stuck]

    def drop_unstarted(self) -> None:
        """Nothing exists yet of a former one that is merely placed."""
        self._drop(self.former, [d for d in self.former if d.state is DesktopState.PLACED], Why.NOT_STARTED)

    def drop_replaced(self) -> None:
        """As many former ones stay as fresh ones are not ready yet; those still building go first."""
        stay = max(0, self.target - len(self.ready))
        order = self._leaving(self.former)
        self._drop(self.former, order[: max(0, len(order) - stay)], Why.REPLACED)

    def drop_surplus(self) -> None:
        """Fresh ones above the target go: first those that wait in vain, then those still coming."""
        order = [*self._leaving(self.stuck), *self._leaving(self.coming), *self._leaving(self.ready)]
        excess = len(order) - self.target - (1 if self._is_evening() else 0)
        self._drop_any(order[: max(0, excess)], Why.TOO_MANY)

    def keep_below(self, maximum: int) -> None:
        """Under a maximum that was lowered, what is not ready yet goes before what is."""
        excess = len(self.ready) + len(self.coming) + len(self.stuck) + len(self.former) - max(0, maximum)
        order = [*self._leaving(self.stuck), *self._leaving(self.coming)]
        self._drop_any(order[: max(0, excess)], Why.ABOVE_MAXIMUM)

    def need(self, maximum: int, own: Sequence[Desktop], retire: Sequence[Retire]) -> Need | None:
        """Return what is lacking, None if nothing is. Nothing is missing if it is merely uneven."""
        missing = self.target - len(self.ready) - len(self.coming)
        if missing < 0 or (missing == 0 and not self._is_uneven()):
            return None
        living = len(self.ready) + len(self.coming) + len(self.former) + len(self.stuck)
        return Need(
            self.template,
            self.target,
            missing,
            allowed=max(0, maximum - living),
            pressing=max(0, self.asked - len(self.ready) - len(self.coming))
            + len(self.former)
            + len(self.stuck)
            + self.view.owed.get(self.template.id, 0),
            stuck=tuple(self._leaving(self.stuck)),
            holders_only=bool({d.id for d in self.stuck} & {d.id for d in self.lacking}),
            former=tuple(d for d in self._leaving(self.former) if d.state is DesktopState.READY),
            settled=not self.coming and not self.stuck and not self._being_removed(own, retire),
            fullest=max(self._on_each().values(), default=0),
            gives=self._gives(),
        )

    def _is_uneven(self) -> bool:
        """Tell whether one server has two standbys more than another could have."""
        return bool(self.ready) and not self.former and max(self._on_each().values()) >= UNEVEN

    def _is_evening(self) -> bool:
        """Tell whether the only one too many is on its way to a server that has fewer: a fuller one will give."""
        if len(self.ready) != self.target or len(self.coming) != 1 or self.former or self.stuck or not self.ready:
            return False
        on_each = self._on_each()
        return max(on_each.values()) > on_each[self.coming[0].server] + 1

    def _gives(self) -> Desktop | None:
        """Return the standby that goes first from the server that has most of them."""
        on_each = self._on_each()
        most = max(on_each.values(), default=0)
        return next((d for d in self._leaving(self.ready) if on_each[d.server] == most), None)

    def _on_each(self) -> Counter[ServerId]:
        return Counter(d.server for d in self.ready)

    def _being_removed(self, own: Sequence[Desktop], retire: Sequence[Retire]) -> bool:
        """Tell whether one of them will soon be gone; a server that cannot remove it now is not waited for."""
        running = {s.id for s in self.view.servers if s.state in RUNNING}
        leaving = [*(d for d in own if d.state is DesktopState.RETIRED), *(r.desktop for r in retire)]
        return any(d.server in running and able(self.view, d.server) for d in leaving)

    def _leaving(self, desktops: Sequence[Desktop]) -> list[Desktop]:
        """Order desktops by who goes first: not ready before ready, from the fullest server, the youngest."""
        crowd = Counter(d.server for d in (*self.former, *self.ready, *self.coming, *self.stuck))
        level: dict[DesktopId, int] = {}
        for desktop in sorted(desktops, key=lambda d: (d.state is DesktopState.READY, -d.created_at, d.id)):
            level[desktop.id] = crowd[desktop.server]
            crowd[desktop.server] -= 1
        return sorted(desktops, key=lambda d: (d.state is DesktopState.READY, -level[d.id], -d.created_at, d.id))

    def _lacks_image(self, desktop: Desktop) -> bool:
        holders = self.view.holders.get(desktop.version, frozenset())
        return desktop.state is DesktopState.PLACED and desktop.server not in holders

    def _drop(self, among: list[Desktop], desktops: Sequence[Desktop], why: Why) -> None:
        gone = {desktop.id for desktop in desktops}
        among[:] = [desktop for desktop in among if desktop.id not in gone]
        self.retire += [Retire(desktop, why) for desktop in desktops]

    def _drop_any(self, desktops: Sequence[Desktop], why: Why) -> None:
        gone = {desktop.id for desktop in desktops}
        for among in (self.stuck, self.coming, self.ready):
            among[:] = [desktop for desktop in among if desktop.id not in gone]
        self.retire += [Retire(desktop, why) for desktop in desktops]


def _old_breakage(own: Sequence[Desktop]) -> list[Retire]:
    broken = [d for d in own if d.state is DesktopState.BROKEN and not d.owned]
    newest_first = sorted(broken, key=lambda d: (-d.changed_at, d.id))
    return [Retire(d, Why.OLD_BREAKAGE) for d in newest_first[BROKEN_KEPT:]]


def _by_id(desktops: Sequence[Desktop]) -> list[Desktop]:
    return sorted(desktops, key=lambda d: d.id)
