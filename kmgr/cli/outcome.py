"""How a command ends: one sentence for people, one exit status for scripts.

Exit 0: done. 1: refused, with the reason. 69: nothing answered, try again.
70: a bug. 78: the configuration is wrong. (2: the command line is wrong.)
"""

import sys
import traceback
from collections.abc import Callable

from kmgr.errors import ConfigError, InvariantBroken, KmgrError, OutcomeUnknown, Unavailable


def guarded(entry: Callable[[], object]) -> int:
    """Call `entry` and return the exit status, printing the sentence of a `KmgrError`."""
    try:
        entry()
    except KmgrError as error:
        print(f"kmgr: {error.message}", file=sys.stderr)
        return exit_status(error)
    except Exception:  # noqa: BLE001 - nobody is behind this; all of it is shown
        traceback.print_exc()
        print("kmgr: this is a bug, or a disk that fails: please report it with the lines above", file=sys.stderr)
        return exit_status(InvariantBroken(""))
    return 0


def exit_status(error: KmgrError) -> int:
    """Return the exit status that tells a script what to do next (sysexits.h)."""
    match error:
        case ConfigError():
            return 78
        case InvariantBroken():
            return 70
        case Unavailable() | OutcomeUnknown():
            return 69
        case _:
            return 1
