"""A backup of what a grid is: one tar file with the state, the grid CA's certificate and the grid secret.

Who has it can read every account's password hash and open the grid CA's key:
it is written readable by its owner only, and belongs where keys belong. Golden
images and desktops are not in it.
"""

import io
import json
import os
import sqlite3
import tarfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from kmgr.errors import ConfigError, Refused
from kmgr.grid.recover import Origin

FORMAT = 1
_ABOUT, _STATE, _CA, _SECRET = "backup.json", "state.sqlite", "ca.crt", "grid.secret"
_SMALL = 1 << 20


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup says about itself, and its secrets; the state is a file beside it."""

    grid: str
    grid_name: str
    server: str
    at: int
    version: str
    origin: Origin
    ca_cert_pem: bytes
    secret: bytes = field(repr=False)


def copy_state(source: Path, target: Path) -> int:
    """Copy a state database that may be in use; return the log entry that the copy goes up to."""
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.close(descriptor)
    try:
        with closing(sqlite3.connect(source)) as db, closing(sqlite3.connect(target)) as copy:
            db.backup(copy)
            copy.execute("pragma journal_mode=delete")
            row = copy.execute("select v from meta where k = 'applied'").fetchone()
    except sqlite3.Error as error:
        target.unlink(missing_ok=True)
        raise Refused(f"the state cannot be copied to {target}: {error}") from error
    return int(row[0]) if row else 0


def pack(file: Path, backup: Backup, state: Path) -> None:
    """Write a backup; a file that is there already is never replaced."""
    about = {
        "format": FORMAT,
        "grid": backup.grid,
        "grid_name": backup.grid_name,
        "server": backup.server,
        "at": backup.at,
        "version": backup.version,
        "applied": backup.origin.applied,
        "term": backup.origin.term,
        "epoch": backup.origin.epoch,
    }
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Refused(f"{file} exists already: give the backup another name, or move that file away") from None
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as out:
            with tarfile.open(fileobj=out, mode="w") as tar:
                _put(tar, _ABOUT, json.dumps(about, indent=1).encode())
                _put(tar, _CA, backup.ca_cert_pem)
                _put(tar, _SECRET, backup.secret.hex().encode())
                tar.add(state, _STATE, filter=_plain)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        file.unlink(missing_ok=True)
        raise Refused(f"the backup could not be written to {file}: {error.strerror or error}") from error


def opened(file: Path) -> BinaryIO:
    """Return a backup to be read; raise `ConfigError` if it cannot be."""
    try:
        return file.open("rb")
    except OSError as error:
        raise ConfigError(f"the backup {file} cannot be read: {error.strerror or error}") from error


def unpack(source: BinaryIO, state: Path) -> Backup:
    """Read a backup and write its state to `state`; raise `ConfigError` if it is damaged or none."""
    file = source.name
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            about = json.loads(_get(tar, _ABOUT))
            if about["format"] != FORMAT:
                raise ConfigError(f"{file} was written by another version of kmgr: restore it with that version")
            backup = Backup(
                grid=str(about["grid"]),
                grid_name=str(about["grid_name"]),
                server=str(about["server"]),
                at=int(about["at"]),
                version=str(about["version"]),
                origin=Origin(int(about["applied"]), int(about["term"]), int(about["epoch"])),
                ca_cert_pem=_get(tar, _CA),
                secret=bytes.fromhex(_get(tar, _SECRET).decode()),
            )
            _copy_out(tar, _STATE, state)
        _check(state, backup)
    except OSError as error:
        raise ConfigError(f"the backup {file} cannot be read: {error.strerror or error}") from error
    except (tarfile.TarError, sqlite3.Error, KeyError, ValueError, TypeError) as error:
        state.unlink(missing_ok=True)
        raise ConfigError(f"{file} is no backup of a grid, or it is damaged ({error}): use another one") from error
    return backup


def _check(state: Path, backup: Backup) -> None:
    with closing(sqlite3.connect(state)) as db:
        verdict = db.execute("pragma quick_check").fetchone()[0]
        applied = db.execute("select v from meta where k = 'applied'").fetchone()
    if verdict != "ok" or applied is None or applied[0] != backup.origin.applied or applied[0] < 2:
        raise ValueError(f"its state is {verdict}, up to entry {applied and applied[0]}")


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    tar.addfile(entry, io.BytesIO(data))


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o600
    return entry


def _get(tar: tarfile.TarFile, name: str) -> bytes:
    entry = tar.getmember(name)
    file = tar.extractfile(entry)
    if file is None or entry.size > _SMALL:
        raise ValueError(f"{name} is no plain small file")
    return file.read()


def _copy_out(tar: tarfile.TarFile, name: str, target: Path) -> None:
    file = tar.extractfile(tar.getmember(name))
    if file is None:
        raise ValueError(f"{name} is no plain file")
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        while data := file.read(_SMALL):
            out.write(data)
        out.flush()
        os.fsync(out.fileno())
