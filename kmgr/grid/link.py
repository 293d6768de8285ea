"""The wire that Raft speaks over, cut down to what Raft needs: frames between servers that know each other.

`grid.raftlink` makes it from mutual TLS connections, `MemoryLink` of the simulation from queues.
A frame is one Raft message in bytes; a link may lose frames and break, but never
reorders within one connection and never delivers bytes of an unverified peer.
"""

from typing import Protocol

from kmgr.ids import ServerId


class LinkEvents(Protocol):
    """Where a link reports; called on any thread, must not block."""

    def peer_up(self, server: ServerId) -> None:
        """A new connection to `server` stands; an older one is gone."""
        ...

    def peer_down(self, server: ServerId) -> None:
        """The connection to `server` is gone."""
        ...

    def frame(self, server: ServerId, data: bytes) -> None:
        """`server` sent a frame."""
        ...


class Frames(Protocol):
    """Frames to other servers. Both methods return at once and belong to the thread that turns the link."""

    def send(self, server: ServerId, data: bytes) -> bool:
        """Queue a frame; False if there is no connection or its queue is full (the frame is dropped)."""
        ...

    def flush(self) -> None:
        """Give what is queued to the network, as far as it takes it now; the rest follows with the next turns."""
        ...


class Link(Frames, Protocol):
    """A link with its turning: one thread calls `turn` again and again, and that thread reads and writes."""

    def attach(self, events: LinkEvents) -> None:
        """Report to `events` from now on (called once, before any traffic)."""
        ...

    def turn(self, timeout_s: float) -> None:
        """Flush, then wait until something arrives or somebody wakes, and report what arrived."""
        ...

    def wake(self) -> None:
        """End the present or the next turn now (any thread)."""
        ...

    def close(self) -> None:
        """Nobody turns any more: cut what stands, and take on nothing (any thread)."""
        ...
