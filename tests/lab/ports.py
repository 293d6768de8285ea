"""Ports for whole grids of tests: far from the demonstration, and other ones for each run on this machine."""

import os

from appliance.demo.ports import next_free

_FIRST = 20_000
_A_RUN = 500
_RUNS = 24


def port(number: int, taken: set[int] | frozenset[int] = frozenset()) -> int:
    """Return a free port of this run, `number` (0 to 499) or the next one; below those that the kernel hands out."""
    return next_free("127.0.0.1", _FIRST + _A_RUN * (os.getpid() % _RUNS) + number, taken)
