"""The data folder: one daemon at a time, and nobody else may read it.

What lies in it:

    kmgr.toml       this server's own settings
    identity/       id, key, certificates, grid secret
    raft/           the log and its last snapshot
    state.sqlite    the grid's truth, rebuilt from raft/ if lost
    images/         golden images, one raw file a version; may be a disk of its own
    images/tmp/     uploads and conversions in progress
    desktops/       linked clones
    run/            sockets
    tmp/            backups in progress
    imports/        where people lay disk images that are to be imported; kmgr only reads there
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kmgr.errors import ConfigError, KmgrError, Unavailable

LEAST_FREE_MIB = 16
FOLDERS = ("images", "desktops", "run", "tmp", "raft", "imports")


def prepare(data_dir: Path) -> None:
    """Make the folder and its parts; raise `ConfigError` if that is impossible, with the reason."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        for name in FOLDERS:
            if not (data_dir / name).is_symlink():  # to a disk that may not be there yet: the images' agent says so
                (data_dir / name).mkdir(exist_ok=True, mode=0o711)
    except OSError as error:
        raise _unusable(data_dir, error) from error


def refuse_if_full(data_dir: Path) -> None:
    """Raise `Unavailable` if the disk has no room for the log: systemd tries again until there is."""
    state = data_dir / "state.sqlite"
    # A start may have to make the state anew, and the log must be able to grow a little.
    needed = LEAST_FREE_MIB + (2 * state.stat().st_size >> 20 if state.exists() else 0)
    free = shutil.disk_usage(data_dir).free >> 20
    if free < needed:
        raise Unavailable(
            f"the disk of {data_dir} is full: {free} MiB are free, kmgr needs {needed} MiB to start safely. Make "
            "room there; under systemd kmgr then starts by itself"
        )


def _unusable(data_dir: Path, error: OSError) -> KmgrError:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return Unavailable(
                f"the disk of {data_dir} is full: make room there; under systemd kmgr then starts by itself"
            )
        case errno.EROFS:
            return ConfigError(
                f"the data folder {data_dir} lies on a read-only file system. Linux does that to a disk with errors: "
                "look into dmesg, mend or replace the disk, and mount it writable again"
            )
    return ConfigError(
        f"the data folder {data_dir} cannot be used: {error.strerror}. Give --data a folder on a disk that can be "
        "written to."
    )


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the folder for this process; raise `ConfigError` naming the other daemon if one has it."""
    path = data_dir / "run" / "daemon.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(data_dir, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"another kmgr (process {other}) runs on {data_dir}: stop it first, or use another data folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
