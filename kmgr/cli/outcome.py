"""How a command ends: one sentence for people, one exit status for scripts.

Exit 0: done. 1: refused, with the reason. 69: nothing answered, try again.
70: a bug. 78: the configuration is wrong.
"""

import sys
from collections.abc import Callable

from kmgr.errors import ConfigError, InvariantBroken, KmgrError, OutcomeUnknown, Unavailable


def guarded(entry: Callable[[], object]) -> int:
    """Call `entry` and return the exit status, printing the sentence of a `KmgrError`."""
    try:
        entry()
    except KmgrError as error:
        print(f"kmgr: {error.message}", file=sys.stderr)
        return exit_status(error)
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
