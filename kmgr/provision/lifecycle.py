"""The life of a desktop, as a table.

Rule 1: every legal change of state is a row here; nothing else may write
`Desktop.state`. Rule 2: this file knows events, not causes: it cannot tell a
lost server from an administrator's button, so both obey the same rows.
Rule 3: a standby that is started again, because its server was, is building until
its guest answers: nobody is given one that boots. What is in use stays its user's.
Rule 4: a state that somebody waits for has a deadline. Past it the desktop is broken
by the step that did not come about; a removal that takes too long is told.
Rule 5: RETIRED has no way out but the removal of the row, or the word of a
server that was cut off: somebody works on it there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a desktop may be in a state: `setting` has the seconds, `step` is what failed when they are over.

    `then` is what happens to it; None: it is told and tried on.
    """

    setting: str
    step: str
    then: Event | None


# The time begins when its server first sees the desktop in that state; waiting for its turn does not count.
DEADLINES: Mapping[S, Deadline] = {
    S.PLACED: Deadline("begin_timeout_s", "begin", Event.FAILED),
    S.BUILDING: Deadline("build_timeout_s", "guest", Event.FAILED),
    S.RETIRED: Deadline("begin_timeout_s", "remove", None),
}
# A desktop that waits for its golden image is PLACED as well, and the copy of a large one takes its time.
IMAGE_DEADLINE = Deadline("image_timeout_s", "golden image", Event.FAILED)

# States in which a desktop exists for somebody: counted against the maximum, and found again by its user.
LIVING = (S.PLACED, S.BUILDING, S.READY, S.IN_USE)


def after(state: S, event: Event) -> S:
    """Return the state that follows, or raise `Conflict` if the table has no such row."""
    try:
        return LIFECYCLE[state][event]
    except KeyError:
        raise Conflict(f"a desktop that is {state.replace('_', ' ')} cannot be {event}") from None
