"""How much memory a member takes for a state that it is sent: `python -m tests.lab.installing SNAPSHOT FOLDER`.

In a process of its own, because the most that one ever had cannot be told apart from what others needed before.
Prints the most that each step added, in KiB, as JSON.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from kmgr.daemon.witness import SQLITE_BYTES
from kmgr.grid.digest import digest
from kmgr.grid.queries import servers, settings
from kmgr.grid.raft import snapshot
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store, keep_little


def most_kib() -> int:
    """Return the most memory that this process had at once since it was last asked to forget it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def added_by(step: Callable[[], object]) -> int:
    """Take a step and return what it added to the memory at its height."""
    Path("/proc/self/clear_refs").write_text("5")
    before = most_kib()
    step()
    return most_kib() - before


def main() -> None:
    """Take every step that a witness takes with a state."""
    arrived, folder = Path(sys.argv[1]), Path(sys.argv[2])
    keep_little(SQLITE_BYTES)
    store = Store(folder / "state.sqlite", (SCHEMA,))
    said = snapshot.read(arrived)

    def look() -> None:
        with store.view() as db:
            servers(db, removed=True)
            settings(db)

    def compare() -> None:
        with store.view() as db:
            digest(db)

    steps: dict[str, Callable[[], object]] = {
        "check": lambda: snapshot.read(arrived),
        "install": lambda: snapshot.install(arrived, store),
        "look": look,
        "compare": compare,
        "compact": lambda: snapshot.write(folder / "snapshot", store, said),
    }
    print(json.dumps({name: added_by(step) for name, step in steps.items()}))


if __name__ == "__main__":
    main()
