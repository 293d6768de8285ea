"""A safe copy becomes a desktop's disk: read over, given its tables, checked by QEMU, put where the disk belongs.

What is known to be bad is never started as if it were good. Before anything
else the lengths of its files and the word of an earlier reading are looked at,
and all of it is read and compared with its checksums: there is no later moment
for that, because a guest writes over its disk where it lies. Reading stops at
`until`, unless something is wrong already: a large copy on a slow disk must not
keep its user waiting for longer than the work of some minutes is worth; how much
was not read is told. Wrong bytes are `BadCopy` with the facts, until a person
has seen those very facts and accepted them.

All of it blocks and needs the copy for itself.
"""

import errno
import filecmp
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from kmgr.errors import Conflict, NotFound, Unavailable
from kmgr.replica.grains import GRAIN
from kmgr.replica.images import sync_folder, write_synced
from kmgr.replica.mirror import BadCopy, CopyPoint
from kmgr.replica.mirror_copy import Copy, LookedOver
from kmgr.replica.mirror_held import MARK
from kmgr.replica.mirror_state import Identity, damaged
from kmgr.replica.overlay_file import OverlayFile

logger = logging.getLogger(__name__)

_CHECK_S = 120.0


@dataclass(frozen=True, slots=True)
class Promotion:
    """What to make of a copy: `base` finds (or refuses) the version under it, `late` says that reading must end.

    With `thorough` all of it is read, however long that takes: only then it is known how much is wrong.
    """

    folder: Path
    target: Path
    base: Callable[[Identity], Path]
    late: Callable[[], bool]
    accepted: Collection[str] = ()
    thorough: bool = False


class Doubtful(Unavailable):
    """Something of a copy is wrong: it must be read thoroughly, which nobody else's start should wait for."""

    code = "doubtful"


def promote(wanted: Promotion, *, program: str = "qemu-img") -> CopyPoint:
    """Make a copy's newest point the overlay at `target`; once it is there, return the same point again."""
    folder, target = wanted.folder, wanted.target
    mark = folder / MARK
    if mark.exists() and target.exists() and not (folder / "disk").exists():
        return CopyPoint(**json.loads(mark.read_bytes()))
    if target.exists():
        if not mark.exists() or not _moved_already(folder / "disk", target):
            raise Conflict(f"{target} is there already: it is not replaced by a copy")
        (folder / "disk").unlink()
        return CopyPoint(**json.loads(mark.read_bytes()))
    copy = Copy.opened(folder)
    try:
        if copy.state is None:
            raise NotFound(f"the copy in {folder} was never complete: there is nothing to start from")
        base = wanted.base(copy.identity)
        point = _looked_over(copy, copy.state.point, wanted)
        disk = copy.make_overlay(base.absolute())
    finally:
        copy.close()
    check(folder, disk, program=program)
    write_synced(mark, json.dumps(asdict(point)).encode())
    sync_folder(folder)
    _move(disk, target)
    for name in ("index", "sums", "pending"):
        (folder / name).unlink(missing_ok=True)
    return point


def _looked_over(copy: Copy, point: CopyPoint, wanted: Promotion) -> CopyPoint:
    state, lacks = copy.state, copy.lacks()
    suspect = bool(lacks) or (state is not None and state.distrusted)
    if suspect and not wanted.thorough:
        raise Doubtful(f"the copy in {wanted.folder} is known to be bad")
    found = copy.look_over(go_on=lambda: wanted.thorough or not wanted.late())
    if not found.wrong:
        if found.unread:
            told = {"folder": str(wanted.folder), "unread": found.unread, "grains": found.grains}
            logger.warning("a safe copy is started without all of it having been read", extra=told)
        return replace(point, unread=found.unread)
    copy.distrust()
    if found.unread:
        raise Doubtful(f"the copy in {wanted.folder} was found to be bad")
    why = _words(found, point, lacks)
    if why not in wanted.accepted:
        raise BadCopy(why)
    logger.warning("a safe copy that has gone bad is started, as was asked for", extra={"folder": str(wanted.folder)})
    return replace(point, bad=len(found.wrong))


def _words(found: LookedOver, point: CopyPoint, lacks: str) -> str:
    why = f", for {lacks}" if lacks else ""
    return (
        f"its safe copy on this server has gone bad: {len(found.wrong)} of its {found.grains} places of 64 KiB do "
        f"not say what was sent (the first is at byte {found.wrong[0] * GRAIN} of the disk){why}. It goes up to "
        f"{datetime.fromtimestamp(point.as_of / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC. Nothing was started from it. "
        "If its former server comes back, put its former disk back; Try again starts it from this copy all the "
        "same, with wrong contents in these places"
    )


def check(folder: Path, disk: Path, *, program: str = "qemu-img", within_s: float = _CHECK_S) -> None:
    """Have QEMU say whether a file is a disk; raise `Unavailable` if not, or if it cannot tell."""
    with OverlayFile(disk):
        pass
    command = [program, "check", "-f", "qcow2", str(disk)]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)
    except FileNotFoundError:
        raise Unavailable(
            f"the program {program} is not on this server (package qemu-utils): without it no safe copy is started",
            code="no_qemu_img",
        ) from None
    except subprocess.TimeoutExpired:
        raise Unavailable(
            f"{program} did not look through the disk made of {folder} within {within_s:g} s: is this server's disk "
            "overloaded? It is tried again",
            code="slow",
        ) from None
    if asked.returncode:
        raise damaged(folder, f"qemu-img check says: {(asked.stderr or asked.stdout).strip()[-300:]}")


def _move(disk: Path, target: Path) -> None:
    try:
        disk.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        fresh = target.with_suffix(".new")
        try:
            shutil.copyfile(disk, fresh)
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
        except OSError:  # the room is needed by others until it is tried again
            fresh.unlink(missing_ok=True)
            raise
        fresh.replace(target)
        sync_folder(target.parent)
        disk.unlink()
        return
    sync_folder(target.parent)


def _moved_already(disk: Path, target: Path) -> bool:
    """Tell whether a kill between two disks came when the copied file had its name, and the copy was not yet gone."""
    return filecmp.cmp(disk, target, shallow=False)
