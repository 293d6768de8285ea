"""Decide what a server that has all of a version gives to whom, so that it gives each piece away once first.

Receivers choose for themselves (`fetch`), but they cannot know what the others are choosing at
this moment. The source knows, and says so: a piece that a present receiver was given is declined
to the others, who will have it from that one, until they insist.

Sets of pieces are whole numbers, bit k for piece k. Pure: no I/O, no clock.
"""

from dataclasses import dataclass

from kmgr.ids import ServerId


@dataclass(slots=True)
class _Receiver:
    """What a receiver was given, and what it has not yet been told of what others were given."""

    given: int = 0
    news: int = 0


class Deal:
    """One version's pieces and the receivers that are drawing them now."""

    def __init__(self) -> None:
        self._receivers: dict[ServerId, _Receiver] = {}

    @property
    def receivers(self) -> int:
        """How many receivers are drawing."""
        return len(self._receivers)

    def joins(self, receiver: ServerId) -> None:
        """Take a receiver in; what the others were given is news to it."""
        given = 0
        for other in self._receivers.values():
            given |= other.given
        self._receivers[receiver] = _Receiver(news=given)

    def leaves(self, receiver: ServerId) -> None:
        """Forget a receiver: what only it was given may be given again."""
        self._receivers.pop(receiver, None)

    def asked(self, receiver: ServerId, piece: int, *, insist: bool) -> bool:
        """Tell whether to send a piece now (and count it as given), or to decline."""
        bit = 1 << piece
        others = [state for name, state in self._receivers.items() if name != receiver]
        if not insist and any(state.given & bit for state in others):
            return False
        own = self._receivers.setdefault(receiver, _Receiver())
        own.given |= bit
        for state in others:
            state.news |= bit
        return True

    def news(self, receiver: ServerId) -> int:
        """Return what others were given since this was last asked."""
        state = self._receivers.get(receiver)
        if state is None:
            return 0
        found, state.news = state.news & ~state.given, 0
        return found
