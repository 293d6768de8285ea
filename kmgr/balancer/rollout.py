"""Decide which versions of a template the balancer keeps desktops of, and how many of each.

Usually that is one. While a canary goes on (`templates.canary`) there are two, and
each is judged (`pool`) as if it were a template of its own; desktops that wait for
a version which was stopped, withdrawn or ended go at once: nobody is given one, and
what takes their place needs the room.

Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kmgr.balancer.model import Retire, View, Why
from kmgr.balancer.place import WAITING
from kmgr.provision.model import Desktop, DesktopState
from kmgr.templates.canary import shares
from kmgr.templates.model import Template
from kmgr.templates.versions import NO_ROLLOUT


@dataclass(frozen=True, slots=True)
class Line:
    """One version of a template with its share of standbys and maximum, and the desktops that are judged by it."""

    template: Template
    desktops: tuple[Desktop, ...]
    view: View


def withdrawn(
    template: Template, desktops: Sequence[Desktop], view: View
) -> tuple[tuple[Retire, ...], tuple[Desktop, ...]]:
    """Of a template's desktops return the unused ones of versions that are over, to be retired, and the rest."""
    over = view.rollouts.get(template.id, NO_ROLLOUT).over
    own = sorted(desktops, key=lambda d: d.id)
    going = {d.id for d in own if d.version in over and d.state in WAITING and not d.owned}
    retire = tuple(Retire(d, Why.WITHDRAWN) for d in own if d.id in going)
    return retire, tuple(d for d in own if d.id not in going)


def lines(template: Template, desktops: Sequence[Desktop], view: View) -> tuple[Line, ...]:
    """Return the versions to keep desktops of: the template's own and, while it goes on, its canary's."""
    canary = view.rollouts.get(template.id, NO_ROLLOUT).canary
    if canary is None:
        return (Line(template, tuple(desktops), view),)
    mine = tuple(d for d in desktops if d.version == canary.version)
    used = sum(d.state is DesktopState.IN_USE or d.owned for d in mine)
    present, trial = shares(template, canary, used=used)
    others = tuple(d for d in desktops if d.version != canary.version)
    # What people got of the present version, beyond its share, is taken away from nobody.
    left = max(0, template.maximum - sum(d.state is DesktopState.IN_USE or d.owned for d in others))
    trial = replace(trial, maximum=min(trial.maximum, left))
    # Whoever waits for a desktop is made one of the present version; so is what takes the place of a former one.
    return (Line(present, others, view), Line(trial, mine, replace(view, asks={}, owed={})))
