"""A far wire: packets are kept for a while on their way, for this kernel cannot delay them by itself.

Two network interfaces of the relay's own take the frames of one place's wire and
of the switch; each frame is given to the other one when its time has come, in the
order in which they came. One more of `slow`, `lose` and `block` that `Network` has.
"""

import asyncio
import ctypes
import fcntl
import os
import random
import struct
import threading
from collections import deque
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_TAP_WITHOUT_HEADER = 0x1002
_FRAME = 65536
# A wire this far away holds no more; what is too much is lost, as on a real one.
_MOST_QUEUED = 2000


class Relay:
    """Carries frames between the interfaces `near` and `far`, which it makes in a network namespace."""

    def __init__(self, namespace: str, near: str, far: str, dice: random.Random) -> None:
        self._dice = dice
        self._delay_s = self._jitter_s = 0.0
        self._ends = [_tap(namespace, near), _tap(namespace, far)]
        self._queues: list[deque[tuple[float, bytes]]] = [deque(), deque()]
        self._due: list[asyncio.TimerHandle | None] = [None, None]
        self._loop = asyncio.get_running_loop()
        for side, end in enumerate(self._ends):
            os.set_blocking(end, False)
            self._loop.add_reader(end, self._take, side)

    def delay(self, delay_s: float, jitter_s: float) -> None:
        """Keep every frame for so long, one way, and up to `jitter_s` longer."""
        self._delay_s, self._jitter_s = delay_s, jitter_s

    def close(self) -> None:
        """Remove both interfaces; what is on its way is lost."""
        for side, end in enumerate(self._ends):
            self._loop.remove_reader(end)
            due = self._due[side]
            if due is not None:
                due.cancel()
            os.close(end)

    def _take(self, side: int) -> None:
        queue = self._queues[side]
        while True:
            try:
                frame = os.read(self._ends[side], _FRAME)
            except (BlockingIOError, OSError):
                break
            at = self._loop.time() + self._delay_s + self._dice.random() * self._jitter_s
            if len(queue) < _MOST_QUEUED:
                queue.append((max(at, queue[-1][0] if queue else 0.0), frame))
        self._arm(side)

    def _arm(self, side: int) -> None:
        if self._due[side] is None and self._queues[side]:
            self._due[side] = self._loop.call_at(self._queues[side][0][0], self._give, side)

    def _give(self, side: int) -> None:
        self._due[side] = None
        queue, now = self._queues[side], self._loop.time()
        while queue and queue[0][0] <= now:
            try:
                os.write(self._ends[1 - side], queue.popleft()[1])
            except OSError:
                continue  # its queue is full: lost
        self._arm(side)


def _tap(namespace: str, name: str) -> int:
    """Make a network interface whose frames this process reads and writes; its thread enters the namespace for it."""
    made: list[int] = []
    wrong: list[OSError] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        space = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
        try:
            if libc.setns(space, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            tap = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADER))
            made.append(tap)
        except OSError as error:
            wrong.append(error)
        finally:
            os.close(space)

    # A namespace is a thread's own: this one ends with it.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if wrong:
        raise wrong[0]
    return made[0]
