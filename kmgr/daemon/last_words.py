"""Why kmgr does not run, for this server's own screen: whoever stands before it has nothing else to ask.

systemd gives the daemon a folder in memory that outlives it (`RuntimeDirectory`), because the disk of the data folder
may be full, read-only or gone. What lies in it is shown by `kmgr-console`; without such a folder nothing is written.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kmgr.errors import ConfigError, InvariantBroken, KmgrError

FILE = "stopped"


@contextmanager
def left() -> Iterator[None]:
    """Run a daemon's life inside: what ends it is left behind, an end in order leaves nothing."""
    try:
        yield
    except KmgrError as error:
        leave(error)
        raise
    except Exception as error:
        _leave(f"kmgr stopped because of a bug: {error!r}\nsystemd starts it again. If this stays, please report it.")
        raise
    forget()


def leave(error: KmgrError) -> None:
    """Have the screen say why the daemon does not run, and what follows by itself."""
    _leave(f"{error.message}\n{_what_follows(error)}")


def forget() -> None:
    """Take back what was left behind: the daemon runs."""
    if (path := _path()) is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _what_follows(error: KmgrError) -> str:
    match error:
        case ConfigError():
            return "Nothing is tried again by itself. When the cause is gone: systemctl start kmgr"
        case InvariantBroken():
            return "It is started again a few times; if that does not help it stays off."
        case _:
            return "It is started again every few seconds until it can run."


def _leave(words: str) -> None:
    if (path := _path()) is not None:
        with suppress(OSError):
            path.write_text(words + "\n")


def _path() -> Path | None:
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(given) / FILE if given else None
