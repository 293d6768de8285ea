"""Processes that outlive the program that started them, found again by id and time of start.

A process id alone may have been given to somebody else since; with the start
time (in clock ticks since boot, which no change of the date moves) it cannot.
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Known:
    """One process, for good."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """True while any of its threads runs; a zombie does not."""
        return _look(self.pid) == (self.started, True)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it is gone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def gone_within(self, limit_s: float) -> bool:
        """Wait until it is gone; False if it is not."""
        deadline = time.monotonic() + limit_s
        while self.alive:
            if time.monotonic() > deadline:
                return False
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
            time.sleep(0.02)
        return True

    def end(self, limit_s: float) -> bool:
        """Ask it to stop, then make it; returns False if it had to be killed."""
        self.send(signal.SIGTERM)
        if self.gone_within(limit_s):
            return True
        self.send(signal.SIGKILL)
        self.gone_within(limit_s)
        return False


def known(pid: int) -> Known | None:
    """Return a running process by its id."""
    seen = _look(pid)
    return Known(pid, seen[0]) if seen is not None and seen[1] else None


def children(parent: Known) -> list[Known]:
    """Return the running children of a process."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and _fields(folder)[1:2] == [str(parent.pid)]:
            child = known(int(folder.name))
            if child is not None:
                found.append(child)
    return found if parent.alive else []


def name_of(process: Known) -> str:
    """Return the short name of a process, empty if it is gone."""
    try:
        return (Path("/proc") / str(process.pid) / "comm").read_text().strip()
    except OSError:
        return ""


def write(path: Path, *processes: Known) -> None:
    """Note processes in a file."""
    path.write_text("".join(f"{process.pid} {process.started}\n" for process in processes))


def read(path: Path) -> list[Known | None]:
    """Return the processes noted in a file, None for each that is gone."""
    try:
        lines = path.read_text().splitlines()
        noted = [Known(int(pid), int(started)) for pid, started in (line.split() for line in lines)]
    except (OSError, ValueError):
        return []
    return [process if process.alive else None for process in noted]


def _look(pid: int) -> tuple[int, bool] | None:
    fields = _fields(Path("/proc") / str(pid))
    if not fields:
        return None
    # Killed, its first thread may be gone while another still waits for a disk, and holds files and ports with it.
    others = int(fields[17]) > 1
    return int(fields[19]), fields[0] not in {"Z", "X"} or others


def _fields(folder: Path) -> list[str]:
    """Return the fields of `stat` after the name, which may hold anything: state, parent, …"""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
