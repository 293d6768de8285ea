"""Saved memories on this server's disk: `warm/<key>/` in the data folder.

`disk.qcow2` is the disk as it was when the memory was saved: an overlay on the
version's raw file like every desktop's. `memory`, or `ram` and `state`, are the
hypervisor's. `warm.json` is written last, when all else is synced, and removed
first: a folder without it is of no use, whatever lies in it, and is deleted when
nobody works on it. All of it blocks.
"""

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import psutil

from kmgr.errors import Refused
from kmgr.ids import VersionId
from kmgr.provision.warm import Key, Warm
from kmgr.replica.images import room, sync_folder, write_synced

logger = logging.getLogger(__name__)

_FOLDER = "warm"
_NOTE = "warm.json"
DISK, RAM = "disk.qcow2", "ram"
_MIB = 1 << 20


def folder(data_dir: Path, key: Key) -> Path:
    """Return where a memory lies."""
    return data_dir / _FOLDER / key


def begin(data_dir: Path, key: Key, *, memory_mib: int, shared: bool) -> Path:
    """Make an empty folder for a memory to be saved; what a former attempt left there is deleted."""
    where = folder(data_dir, key)
    remove(data_dir, key)
    where.mkdir(parents=True)
    measured = room(where)
    # Twice: the memory itself, and a disk that grows while the guest boots.
    if measured.spare_bytes < 2 * memory_mib * _MIB:
        raise Refused(
            f"the disk has {measured.spare_bytes // _MIB} MiB to spare: too little to save {memory_mib} MiB of memory"
        )
    free = psutil.virtual_memory().available // _MIB
    if free < 2 * memory_mib:  # the builder is in nobody's plan: it must not take what the desktops need
        raise Refused(
            f"the server has {free} MiB of memory free: too little for a builder of {memory_mib} MiB beside it"
        )
    if shared:
        (where / RAM).touch()
    return where


def finish(data_dir: Path, warm: Warm) -> Warm:
    """Write down that a memory is whole; from now on it is used, also after a restart."""
    where = folder(data_dir, warm.key)
    whole = Warm(**{**asdict(warm), "bytes": _size(where)})
    sync_folder(where)
    partial = where / f"{_NOTE}.new"
    write_synced(partial, json.dumps(asdict(whole)).encode())
    partial.rename(where / _NOTE)
    sync_folder(where)
    return whole


def kept(data_dir: Path) -> tuple[Warm, ...]:
    """Return the memories that are whole."""
    found = []
    for where in _folders(data_dir):
        try:
            told = json.loads((where / _NOTE).read_text())
            warm = Warm(**{**told, "version": VersionId(told["version"]), "samples": tuple(told["samples"])})
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if warm.key == where.name:
            found.append(warm)
    return tuple(found)


def unfinished(data_dir: Path) -> tuple[Key, ...]:
    """Return the keys of folders that are of no use."""
    whole = {warm.key for warm in kept(data_dir)}
    return tuple(where.name for where in _folders(data_dir) if where.name not in whole)


def remove(data_dir: Path, key: Key) -> None:
    """Delete a memory; one that is gone already is fine. Domains that share it keep what they have mapped."""
    where = folder(data_dir, key)
    (where / _NOTE).unlink(missing_ok=True)
    shutil.rmtree(where, ignore_errors=True)


def _folders(data_dir: Path) -> list[Path]:
    base = data_dir / _FOLDER
    return sorted(path for path in base.iterdir() if path.is_dir()) if base.is_dir() else []


def _size(where: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in where.iterdir())
