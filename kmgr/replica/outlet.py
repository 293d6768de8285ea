"""How much of what a source sends may wait in a connection.

Little, for news overtakes nothing that waits, and many connections add up. But the loop is woken whenever half of it
has gone, and on a quick link that costs a tenth of all that a source does: so as much as this connection takes in
`AHEAD_S`. Not longer: receivers that hear late what others were given ask for it, and the source sends more.
"""

import socket

from kmgr.grid.port import Stream

LEAST, MOST = 128 * 1024, 512 * 1024
AHEAD_S = 0.005
# Handed over and encrypted in one go; twice as much would not fit a core's cache three times.
SLICE = 256 * 1024
# What waits already is quick to be rid of: over this much that makes little difference.
_ENOUGH = 4 << 20


def waiting(rate: float) -> int:
    """Return how many bytes may wait in a connection that takes so many a second: powers of two, so seldom others."""
    allowed = LEAST
    while allowed < MOST and 2 * allowed <= rate * AHEAD_S:
        allowed *= 2
    return allowed


class Outlet:
    """The sending end of one stream of blocks."""

    def __init__(self, stream: Stream) -> None:
        self._socket = stream.writer.get_extra_info("socket")
        self._allowed = self._sent = 0
        self._since: float | None = None
        stream.writer.transport.set_write_buffer_limits(high=SLICE)
        self._allow(LEAST)

    def sent(self, count: int, *, now: float) -> None:
        """Hear that so many bytes are out of our hands; the time counts in which there was nothing to send, too."""
        self._sent += count
        if self._since is None or self._sent >= _ENOUGH:
            if self._since is not None and now > self._since:
                self._allow(waiting(self._sent / (now - self._since)))
            self._since, self._sent = now, 0

    def _allow(self, allowed: int) -> None:
        if allowed == self._allowed:
            return
        self._allowed = allowed
        if self._socket is not None and self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, allowed)
