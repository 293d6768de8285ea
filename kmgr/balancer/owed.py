"""Remember which standbys made room for another one, until their place is taken again.

Where memory is full, or at the maximum, one goes first, and the other is placed when that is done. By then nothing
in the state tells that it comes in somebody's place: it would be stopped by what is kept for a loss (`reserve`), and
a pool that is fuller than that would end each publication with one desktop less. A new leader begins to remember
anew, so a change of leaders at that moment may still cost one.

Pure.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from kmgr.balancer.model import Action, Place, Retire, Shortage, Why
from kmgr.ids import TemplateId

_FOR_ANOTHER = (Why.MAKES_ROOM, Why.UNEVEN)


class Owed:
    """How many places each template has given up and not taken again."""

    def __init__(self) -> None:
        self._places: Counter[TemplateId] = Counter()

    def now(self) -> Mapping[TemplateId, int]:
        """Return them, for the next plan."""
        return dict(self._places)

    def keep(self, short: Iterable[Shortage]) -> None:
        """Forget what was owed to templates that lack nothing after a plan: fewer are wanted by now."""
        lacking = {shortage.template for shortage in short}
        self._places = Counter({one: count for one, count in self._places.items() if one in lacking})

    def done(self, action: Action) -> None:
        """Hear of a change that was made."""
        match action:
            case Retire(desktop, why) if why in _FOR_ANOTHER:
                self._places[desktop.template] += 1
            case Place(template):
                self._places[template] = max(0, self._places[template] - 1)
            case _:
                pass
