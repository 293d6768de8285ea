"""The `Link` port between servers of one process: queues without sockets, and a switch for every wire."""

import threading

from kmgr.grid.link import Link, LinkEvents
from kmgr.ids import ServerId


class MemoryWires:
    """All servers' links. A pair is connected when both are there, neither is `down` and the pair is not `cut`."""

    def __init__(self) -> None:
        self.links: dict[ServerId, MemoryLink] = {}
        self.frames = 0
        self._down: set[ServerId] = set()
        self._cut: set[frozenset[ServerId]] = set()
        self._connected: set[frozenset[ServerId]] = set()
        self._lock = threading.RLock()

    def link(self, server: ServerId) -> "MemoryLink":
        """Return a fresh link for a server; an older one of the same server is dead from now on."""
        self.down(server)
        with self._lock:
            link = self.links[server] = MemoryLink(server, self)
        return link

    def up(self, server: ServerId) -> None:
        """Plug a server in."""
        with self._lock:
            self._down.discard(server)
            self._settle()

    def down(self, server: ServerId) -> None:
        """Pull a server's plug."""
        with self._lock:
            self._down.add(server)
            self._settle()

    def cut(self, one: ServerId, other: ServerId) -> None:
        """Break the wire between two servers."""
        with self._lock:
            self._cut.add(frozenset({one, other}))
            self._settle()

    def mend(self) -> None:
        """Mend all broken wires."""
        with self._lock:
            self._cut.clear()
            self._settle()

    def deliver(self, source: ServerId, target: ServerId, data: bytes) -> bool:
        """Hand a frame over, in order, unless the wire is broken."""
        with self._lock:
            if frozenset({source, target}) not in self._connected:
                return False
            self.frames += 1
            link = self.links[target]
            assert link.events is not None
            link.events.frame(source, data)
            link.wake()
            return True

    def _settle(self) -> None:
        names = sorted(name for name, link in self.links.items() if link.events and name not in self._down)
        wanted = {frozenset({a, b}) for a in names for b in names if a < b} - self._cut
        for pair in self._connected - wanted:
            self._tell(pair, connected=False)
        for pair in wanted - self._connected:
            self._tell(pair, connected=True)
        self._connected = wanted

    def _tell(self, pair: frozenset[ServerId], *, connected: bool) -> None:
        one, other = sorted(pair)
        for here, there in ((one, other), (other, one)):
            events = self.links[here].events
            assert events is not None
            (events.peer_up if connected else events.peer_down)(there)


class MemoryLink:
    """One server's end."""

    def __init__(self, server: ServerId, wires: MemoryWires) -> None:
        self.server = server
        self.events: LinkEvents | None = None
        self._wires = wires
        self._woken = threading.Event()

    def attach(self, events: LinkEvents) -> None:
        """Report to `events` from now on."""
        self.events = events

    def send(self, server: ServerId, data: bytes) -> bool:
        """Deliver a frame at once."""
        return self._wires.links.get(self.server) is self and self._wires.deliver(self.server, server, data)

    def flush(self) -> None:
        """Nothing is ever queued here."""

    def turn(self, timeout_s: float) -> None:
        """Wait until somebody wakes; frames are reported by whoever sends them."""
        self._woken.wait(timeout_s)
        self._woken.clear()

    def wake(self) -> None:
        """End the present or the next turn."""
        self._woken.set()

    def close(self) -> None:
        """The wires stay as they are."""


_: type[Link] = MemoryLink
