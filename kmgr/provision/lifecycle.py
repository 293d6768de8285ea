"""The life of a desktop, as a table.

Rule 1: every legal change of state is a row here; nothing else may write
`Desktop.state`. Rule 2: this file knows events, not causes: it cannot tell a
lost server from an administrator's button, so both obey the same rows.
Rule 3: a standby that is started again, because its server was, is building until
its guest answers: nobody is given one that boots. What is in use stays its user's.
Rule 4: RETIRED has no way out but the removal of the row, or the word of a
server that was cut off: somebody works on it there.
"""

from collections.abc import Mapping
from enum import StrEnum

from kmgr.errors import Conflict
from kmgr.provision.model import DesktopState as S


class Event(StrEnum):
    """What can happen to a desktop; the value fits into "a desktop that is X cannot be …"."""

    STARTED = "started"
    ANSWERED = "made ready"
    CLAIMED = "claimed"
    FAILED = "marked broken"
    RETRIED = "tried again"
    RETIRED = "retired"
    KEPT = "kept for its user"


LIFECYCLE: Mapping[S, Mapping[Event, S]] = {
    S.PLACED: {
        Event.STARTED: S.BUILDING,
        Event.FAILED: S.BROKEN,
        Event.RETIRED: S.RETIRED,
        Event.KEPT: S.IN_USE,
    },
    S.BUILDING: {
        Event.STARTED: S.BUILDING,
        Event.ANSWERED: S.READY,
        Event.FAILED: S.BROKEN,
        Event.RETIRED: S.RETIRED,
        Event.KEPT: S.IN_USE,
    },
    S.READY: {
        Event.STARTED: S.BUILDING,
        Event.ANSWERED: S.READY,
        Event.CLAIMED: S.IN_USE,
        Event.FAILED: S.BROKEN,
        Event.RETIRED: S.RETIRED,
        Event.KEPT: S.IN_USE,
    },
    S.IN_USE: {
        Event.ANSWERED: S.IN_USE,
        Event.CLAIMED: S.IN_USE,
        Event.FAILED: S.BROKEN,
        Event.RETIRED: S.RETIRED,
        Event.KEPT: S.IN_USE,
    },
    S.BROKEN: {Event.RETRIED: S.PLACED, Event.RETIRED: S.RETIRED, Event.KEPT: S.IN_USE},
    S.RETIRED: {Event.RETIRED: S.RETIRED, Event.KEPT: S.IN_USE},
}

# States in which a desktop exists for somebody: counted against the maximum, and found again by its user.
LIVING = (S.PLACED, S.BUILDING, S.READY, S.IN_USE)


def after(state: S, event: Event) -> S:
    """Return the state that follows, or raise `Conflict` if the table has no such row."""
    try:
        return LIFECYCLE[state][event]
    except KeyError:
        raise Conflict(f"a desktop that is {state.replace('_', ' ')} cannot be {event}") from None
