"""Why the daemon ended last time: what fails again and again in the same way is not tried for ever.

`run/last_stop.json` counts stops for one reason by one version. After three the
daemon refuses to start, with the reason, until another version is installed or
the file is removed; a run of some minutes clears it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kmgr import __version__
from kmgr.errors import ConfigError, InvariantBroken, Unavailable
from kmgr.grid.identity import atomic_write

MOST = 3
# Whoever ran for so long did not fail at the start.
LONG_S = 300.0


@contextmanager
def counted(data_dir: Path) -> Iterator[None]:
    """Run a daemon's life inside; `ConfigError` instead if this version ended too often for one reason."""
    _refuse_the_same_again(data_dir)
    began = time.monotonic()
    try:
        yield
    except InvariantBroken as error:
        _note(data_dir, error, ran_s=time.monotonic() - began)
        raise
    with suppress(OSError):  # a disk that is read-only now: then nothing more can be noted there either
        _path(data_dir).unlink(missing_ok=True)


def _refuse_the_same_again(data_dir: Path) -> None:
    reason, times = _read(_path(data_dir))
    if times >= MOST:
        raise ConfigError(
            f"kmgr {__version__} stopped {times} times for the same reason and does not start again: {reason}. "
            f"Install a version that mends it, or remove {_path(data_dir)} to try once more; run kmgr reset and let "
            "this server join again if nothing else helps"
        )


def _note(data_dir: Path, error: InvariantBroken, *, ran_s: float) -> None:
    reason, times = _read(_path(data_dir))
    times = times + 1 if reason == error.message and ran_s < LONG_S else 1
    told = {"version": __version__, "reason": error.message, "times": times}
    try:
        atomic_write(_path(data_dir), json.dumps(told).encode())
    except Unavailable:
        return  # the reason is on its way to the log anyway


def _path(data_dir: Path) -> Path:
    return data_dir / "run" / "last_stop.json"


def _read(path: Path) -> tuple[str, int]:
    try:
        raw = json.loads(path.read_bytes())
        return (str(raw["reason"]), int(raw["times"])) if raw["version"] == __version__ else ("", 0)
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0
