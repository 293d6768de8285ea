"""Whether the disk of golden images is there, and what is wrong with a version's files on it.

`images/` may be a disk of its own or a link to another one. When that is not
mounted, the folder looks empty, which must not look as if all images were lost. So the folder
carries a mark (`images/_disk`), and the data folder remembers which (`images.disk`): a
folder without the right mark is left alone, and nothing is copied or reported gone.

The paths of versions stay the same wherever the disk is: they are written in the
overlays of desktops. Blocking: called in threads.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from kmgr.entropy import new_id
from kmgr.replica.images import UNREADABLE, Images, disk_error, write_synced
from kmgr.replica.model import Version

MARK = "_disk"
NOTE = "images.disk"
_READABLE = 0o444


def absence(data_dir: Path) -> str:
    """Return why the folder of images is not the one this server knows, empty if it is. A first one is marked."""
    folder, note = data_dir / "images", data_dir / NOTE
    known = _text(note)
    if not folder.is_dir():
        where = f"{folder} leads to {folder.readlink()}, which" if folder.is_symlink() else f"{folder}, which"
        return f"the disk of golden images is not there: {where} is no folder now. Mount it; nothing is lost by that"
    mark = _text(folder / MARK)
    if known and mark != known:
        return (
            f"the disk of golden images is not there: {folder} is another folder than before. Mount the right disk. "
            f"If that one is lost for good, delete {note}: then the images are copied again"
        )
    try:
        if not mark:
            mark = new_id("dsk")
            write_synced(folder / MARK, mark.encode())
        if not known:
            write_synced(note, mark.encode())
    except OSError as error:
        raise disk_error(error, doing=f"marking {folder}") from error
    return ""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the files of a version, as a clause.

    `curable`: a manifest can be made anew. `useless`: the file is not what it should be, and never will be.
    `slow`: all of the file was read to find that out.
    """

    why: str
    curable: bool = False
    useless: bool = False
    slow: bool = False


def fault(images: Images, version: Version) -> Fault | None:
    """Return what is wrong with the files of a version that should be here, None if nothing is.

    Contents are not read. A file that not everybody may read any more is made readable again: QEMU needs it.
    """
    path = images.path(version.id)
    try:
        told = path.stat()
        if told.st_size != version.size_bytes:
            return Fault(f"its file {path} has {told.st_size} bytes instead of {version.size_bytes}", useless=True)
        if not images.side(version.id, "manifest").exists():
            return Fault(f"its manifest beside {path} was removed", curable=True, useless=True)
        if told.st_mode & _READABLE != _READABLE:
            path.chmod(_READABLE)
    except FileNotFoundError:
        return Fault(f"its file {path} was removed")
    except OSError as error:
        if error.errno in UNREADABLE or isinstance(error, PermissionError):
            return _lost(path, error)
        raise disk_error(error, doing=f"looking at {path}") from error
    return None if os.access(path, os.R_OK) else Fault(f"its file {path} cannot be read any more")


def cured(images: Images, version: Version, found: Fault | None) -> Fault | None:
    """Compare the manifest with the log, make it anew if it is wrong or gone, and return what is wrong then.

    A bad sector under one file says nothing about the others: nobody should wait for their images because of it.
    """
    path = images.path(version.id)
    try:
        if other := images.older_format(version.id):
            return Fault(f"beside {path}, {other}")
        if images.intact(version):
            return None
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise disk_error(error, doing=f"reading {path}") from error
    try:
        if images.mend(version):
            return None
    except OSError as error:
        if error.errno in UNREADABLE:
            return replace(_lost(path, error), slow=True)
        raise disk_error(error, doing=f"reading {path}") from error
    return found or Fault(f"its file {path} has other contents than the grid knows", useless=True)


def _lost(path: Path, error: OSError) -> Fault:
    return Fault(f"its file {path} cannot be read any more: {error.strerror}")


def allocated_bytes(path: Path) -> int:
    """Return what a file takes on its disk; 0 if it is not there."""
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
