"""Reads how hard this server's processors and disks are asked for: `/proc/pressure` and `/proc/diskstats`.

Both are the kernel's own measures, nothing is asked of a disk for them. What a
kernel or a container does not tell is None; if it tells nothing at all, nothing is
known (`storm.Pressure`). `read` may block and is called in a thread.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from kmgr.clock import Clock
from kmgr.provision.storm import Pressure

_AVG10 = re.compile(r"^(some|full) avg10=([0-9.]+)", re.MULTILINE)
# Of fewer requests the mean says nothing.
_LEAST_REQUESTS = 50
# A younger look is used again: two looks that follow each other at once see no request between them.
_LEAST_S = 1.0


@dataclass(frozen=True, slots=True)
class _Counted:
    """A disk's counters: requests that were done, and how long all of them took together."""

    at: float
    requests: int
    took_ms: int


class Meter:
    """Measures for the disk that `folder` lies on. `proc` is where the kernel tells."""

    def __init__(self, folder: Path, *, clock: Clock, proc: Path = Path("/proc")) -> None:
        self._folder = folder
        self._clock = clock
        self._proc = proc
        self._before: _Counted | None = None
        self._disk_ms: float | None = None

    def read(self) -> Pressure:
        """Measure now; the disk's requests are those since the look before."""
        return Pressure(
            cpu_percent=self._average("cpu", "some"), io_percent=self._average("io", "full"), disk_ms=self._latency()
        )

    def _average(self, what: str, kind: str) -> float | None:
        try:
            text = (self._proc / "pressure" / what).read_text("ascii")
        except (OSError, UnicodeDecodeError):  # no such file, or a kernel that has it switched off (EOPNOTSUPP)
            return None
        return next((float(value) for name, value in _AVG10.findall(text) if name == kind), None)

    def _latency(self) -> float | None:
        now, counted = self._clock.monotonic(), self._counted()
        before = self._before
        if counted is None:
            self._before = self._disk_ms = None
            return None
        if before is None or counted.requests < before.requests:  # the first look, or another disk by that number
            self._before = counted
            return None
        if now - before.at < _LEAST_S:
            return self._disk_ms
        requests = counted.requests - before.requests
        self._before = counted
        self._disk_ms = (counted.took_ms - before.took_ms) / requests if requests >= _LEAST_REQUESTS else 0.0
        return self._disk_ms

    def _counted(self) -> _Counted | None:
        """Return the counters of the disk; None if the folder is on no disk of its own (btrfs, overlay, NFS)."""
        try:
            device = self._folder.stat().st_dev
            wanted = (str(os.major(device)), str(os.minor(device)))
            for line in (self._proc / "diskstats").read_text("ascii").splitlines():
                words = line.split()
                if len(words) >= 11 and (words[0], words[1]) == wanted:
                    reads, read_ms, writes, write_ms = (int(words[n]) for n in (3, 6, 7, 10))
                    return _Counted(self._clock.monotonic(), reads + writes, read_ms + write_ms)
        except (OSError, ValueError):
            return None
        return None
