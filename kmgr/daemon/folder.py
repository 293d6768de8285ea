"""The data folder: one daemon at a time, and nobody else may read it.

What lies in it:

    kmgr.toml       this server's own settings
    identity/       id, key, certificates, grid secret
    raft/           the log and its last snapshot
    state.sqlite    the grid's truth, rebuilt from raft/ if lost
    island/         what this server did on its own and the grid does not know yet
    images/         golden images, one raw file a version; may be a disk of its own (images.disk: which)
    images/tmp/     uploads and conversions in progress
    desktops/       linked clones
    copies/         safe copies of other servers' personal desktops
    superseded/     disks that personal desktops left behind; kmgr never deletes one by itself
    run/            sockets
    tmp/            backups in progress
    imports/        where people lay disk images that are to be imported; kmgr only reads there

All of it belongs to the user as whom the daemon runs. Commands that write there
while no daemon runs are typed by root as well: they go on as that user.
"""

import errno
import fcntl
import os
import pwd
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kmgr.control import lock_path
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


def refuse_another_ones(data_dir: Path) -> None:
    """Raise `ConfigError` if root would run a daemon in another user's folder: that user's could not go on there."""
    if os.geteuid() != 0 or not data_dir.exists() or (owner := data_dir.stat().st_uid) == 0:
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"#{owner}"
    raise ConfigError(
        f"the data folder {data_dir} belongs to {name}, and a daemon of root would leave files there that {name}'s "
        "cannot read. If it is a service, start it by systemctl and read what it says with journalctl -f; else type "
        f"the command as {name}"
    )


def go_on_as_its_owner(data_dir: Path) -> None:
    """Have root become the user whom the folder belongs to, for good: the daemon must be able to use what is written.

    Whatever only root may read (files with passwords, a backup) is opened before.
    """
    if os.geteuid() != 0 or not data_dir.exists():
        return
    found = data_dir.stat()
    if found.st_uid == 0:
        return
    try:
        known = pwd.getpwuid(found.st_uid)
    except KeyError:
        os.setgroups([])
        os.setgid(found.st_gid)
    else:
        os.initgroups(known.pw_name, known.pw_gid)
        os.setgid(known.pw_gid)
    os.setuid(found.st_uid)


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
        case errno.EACCES | errno.EPERM:
            return ConfigError(
                f"the data folder {data_dir} may not be used by this user ({error.filename}): type the command as "
                "root, or as the user whom the folder belongs to. A daemon's folder is all its own: chown -R"
            )
    return ConfigError(
        f"the data folder {data_dir} cannot be used: {error.strerror}. Give --data a folder on a disk that can be "
        "written to."
    )


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the folder for this process; raise `ConfigError` naming the other daemon if one has it."""
    path = lock_path(data_dir)
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
