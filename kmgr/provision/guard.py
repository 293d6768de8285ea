"""A process of its own that halts personal desktops when the daemon cannot: it hangs, or was killed.

`python -m kmgr.provision.guard DATA URI GRID`, begun by the daemon and outliving
it. It reads the end of the lease from `run/lease` (this machine's monotonic clock,
which all of its processes share) and halts whatever runs beyond that. It never
lets anything go on. `run/guard.lock` is locked while it lives: the daemon takes no
lease without. Once nothing is left to guard it ends by itself.
"""

import asyncio
import fcntl
import os
import sys
from pathlib import Path

from kmgr import log
from kmgr.clock import Clock, SystemClock
from kmgr.errors import KmgrError
from kmgr.provision.halting import LOOK_S, Halting
from kmgr.provision.hypervisor import DomainState, Hypervisor
from kmgr.provision.libvirt_driver import connect

LEASE, LOCK = "lease", "guard.lock"
# After the lease has ended for so long, with nothing running, there is nothing to guard; nor without the data folder.
IDLE_S = 60.0
_DEADLINE_S = 3.0


def lease_path(data_dir: Path) -> Path:
    """Return where the end of the lease is written."""
    return data_dir / "run" / LEASE


def write_lease(path: Path, until: float) -> None:
    """Write the end of the lease; a reader sees the former or this one."""
    partial = path.with_suffix(".new")
    partial.write_text(f"{until:.3f}")
    partial.replace(path)


def read_lease(path: Path) -> float:
    """Return the end of the lease; 0 if there is none, or nothing that says so."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0


def is_locked(data_dir: Path) -> bool:
    """Tell whether a guard lives. The lock is held for a moment by whoever asks, never by two."""
    opened = os.open(data_dir / "run" / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(opened)
    return False


async def watch(hypervisor: Hypervisor, lease: Path, *, clock: Clock) -> None:
    """Halt what runs without a lease; return when nothing has been left to guard for a while."""

    def holds() -> bool:
        return clock.monotonic() < read_lease(lease)

    halting = Halting(hypervisor, holds, clock=clock)
    idle_since = clock.monotonic()
    while clock.monotonic() - idle_since < IDLE_S and lease.parent.is_dir():
        if holds():
            idle_since = clock.monotonic()
        else:
            await halting.halt()
            if await _is_running(hypervisor):
                idle_since = clock.monotonic()
        await clock.sleep(LOOK_S)


async def _is_running(hypervisor: Hypervisor) -> bool:
    try:
        return any(d.personal and d.state is DomainState.RUNNING for d in await hypervisor.domains())
    except KmgrError:
        return True  # nobody knows: stay


def main() -> int:
    """Guard until nothing is left to guard; at once if another guard lives."""
    data_dir, uri, grid = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    log.set_up("info")
    lock = os.open(data_dir / "run" / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return 0
    hypervisor = connect(uri, grid=grid, deadline_s=_DEADLINE_S)
    asyncio.run(watch(hypervisor, lease_path(data_dir), clock=SystemClock()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
