"""One-time rights to open one desktop's screen: 30 seconds, one person, one desktop, this server only.

They live in memory: whoever was given one comes back to the same server at once.
"""

from dataclasses import dataclass, field

from aiohttp import web

from kmgr.clock import Clock
from kmgr.entropy import new_token
from kmgr.errors import NotAllowed
from kmgr.ids import DesktopId
from kmgr.users.model import Person

VALID_S = 30


@dataclass(frozen=True, slots=True)
class Ticket:
    """Who may open which desktop; `session` is the token of the log-in it was given to."""

    person: Person
    desktop: DesktopId
    generation: int
    session: str = field(repr=False)


class Tickets:
    """The tickets that this server gave out and nobody has used yet."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._given: dict[str, tuple[float, Ticket]] = {}

    def issue(self, ticket: Ticket) -> str:
        """Return the word that redeems a ticket."""
        now = self._clock.monotonic()
        self._given = {word: given for word, given in self._given.items() if given[0] > now}
        word = new_token()
        self._given[word] = (now + VALID_S, ticket)
        return word

    def redeem(self, word: str) -> Ticket:
        """Take a ticket; raise `NotAllowed` if it was used, is too old or never was."""
        until, ticket = self._given.pop(word, (0.0, None))
        if ticket is None or until <= self._clock.monotonic():
            raise NotAllowed("This link to the desktop was used already or is too old. Open the desktop again.")
        return ticket


TICKETS: web.AppKey[Tickets] = web.AppKey("tickets", Tickets)
