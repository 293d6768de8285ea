"""Ports for whole grids of tests: far from the demonstration, and other ones for each run on this machine.

Whoever runs tests holds a lock on its range until it ends: of two runs side by side neither takes a port that the
other's servers leave for a moment while they start again.
"""

import fcntl
import os
import tempfile
from functools import cache
from pathlib import Path

from appliance.demo.ports import next_free

_FIRST = 20_000
_A_RUN = 500
_RUNS = 24
_held: list[int] = []


def port(number: int, taken: set[int] | frozenset[int] = frozenset()) -> int:
    """Return a free port of this run, `number` (0 to 499) or the next one; below those that the kernel hands out."""
    return next_free("127.0.0.1", _FIRST + _A_RUN * _own_range() + number, taken)


@cache
def _own_range() -> int:
    for number in range(_RUNS):
        opened = os.open(Path(tempfile.gettempdir(), f"kmgr-test-ports-{number}"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            continue
        _held.append(opened)
        return number
    raise OSError(f"{_RUNS} runs of tests hold every range of ports on this machine: wait until one has ended")
