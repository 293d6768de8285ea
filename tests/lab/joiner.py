"""A newcomer as a process of its own, to be killed: `python -m tests.lab.joiner DATA ADDRESS PHRASE PORT FILE_STEP`.

It kills itself with SIGKILL just before the n-th time that it renames or removes a
file under DATA; -1 never. Exit status 0 means that it joined.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.lab.join_lab import Fresh


def die_before(step: int, data_dir: Path) -> None:
    """Kill this process before its n-th change of a file's name."""
    seen = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event in {"os.rename", "os.remove"} and str(args[0]).startswith(str(data_dir)):
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(hook)


def main() -> None:
    """Join once."""
    folder, address, phrase, port, step = sys.argv[1:]
    fresh = Fresh(Path(folder), port=int(port))
    die_before(int(step), fresh.data_dir)
    asyncio.run(fresh.join_at(address, phrase))


if __name__ == "__main__":
    main()
