"""What a thread waits on that serves connections itself: their sockets, and a bell that others ring."""

import contextlib
import os
import select
import weakref
from collections.abc import Iterator

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Pump:
    """Sockets by their descriptors. `wait` belongs to one thread, the rest to any."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Not closed before nobody can ring any more: its number could be another file's by then.
        weakref.finalize(self, os.close, self._bell)
        self._rung = False
        self._poll.register(self._bell, READ)

    def ring(self) -> None:
        """End the present or the next `wait`."""
        if not self._rung:
            self._rung = True
            os.eventfd_write(self._bell, 1)

    def watch(self, descriptor: int) -> None:
        """Report when there is something to read; ends by itself when the socket is closed."""
        self._poll.register(descriptor, READ)

    def await_room(self, descriptor: int, *, wanted: bool) -> None:
        """Report also when there is room to write, or no more."""
        self._poll.modify(descriptor, READ | WRITE if wanted else READ)

    def forget(self, descriptor: int) -> None:
        """Report no more; a socket that is not watched (any more) is nothing to worry about."""
        with contextlib.suppress(FileNotFoundError):
            self._poll.unregister(descriptor)

    def wait(self, timeout_s: float) -> Iterator[tuple[int, int]]:
        """Yield descriptors and what is the matter with them, after `timeout_s` at most."""
        for descriptor, events in self._poll.poll(timeout_s):
            if descriptor == self._bell:
                os.eventfd_read(self._bell)
                # Whoever rings from here on rings again; whoever found it rung has left its news before.
                self._rung = False
            else:
                yield descriptor, events
