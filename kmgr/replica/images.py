"""The files of image versions on this server's own disks.

`images/<version>.raw` is the disk itself, sparse and read-only: the backing file
of linked clones and the store that other servers copy from. It gets this name only
once every block was verified and synced, so a file of this name is whole.
`<version>.manifest` says what is in it; `<version>.part` is a copy under way (see
`part`). Imports and uploads grow in `images/tmp/`: `images/` may be a disk of its own,
and a finished file is renamed, never copied.

All of it blocks: the loop calls these in threads. An `Images` is shared by the
agent and the importer of one daemon.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from kmgr.errors import NotFound, Refused, Unavailable
from kmgr.ids import VersionId
from kmgr.replica import manifest as m
from kmgr.replica import manifest_file
from kmgr.replica.manifest_file import Incoming
from kmgr.replica.model import Version

_GOOD_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_KEPT_MANIFESTS = 8
# Left free by imports and copies: 5 % of the disk, or 1 GiB where that is less. Desktops grow into the rest.
_RESERVE_BYTES = 1 << 30
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
# What a disk, or a file system that checks, says of bytes that it has lost.
UNREADABLE = {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EILSEQ}
_ZEROS = bytes(m.BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Room:
    """How large a disk is and how much of it is free."""

    free_bytes: int
    total_bytes: int

    @property
    def spare_bytes(self) -> int:
        """What may be filled with images."""
        return max(0, self.free_bytes - self.reserve_bytes)

    @property
    def reserve_bytes(self) -> int:
        """What is left free for desktops."""
        return min(self.total_bytes // 20, _RESERVE_BYTES)


Measure: TypeAlias = Callable[[Path], Room]


def room(path: Path) -> Room:
    """Measure the disk on which `path` lies."""
    told = os.statvfs(path)
    return Room(told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize)


def version_path(data_dir: Path, version: VersionId) -> Path:
    """Return where a version's raw file is (or will be): the backing file of its linked clones."""
    return _named(data_dir, version, "raw")


def growing(data_dir: Path) -> Path:
    """Return the folder in which imports and uploads grow: on the same disk as the images."""
    return data_dir / "images" / "tmp"


def disk_error(error: OSError, *, doing: str) -> Unavailable:
    """Return what a person is told when the disk refuses: full, or broken."""
    if error.errno in _DISK_FULL:
        return Unavailable(f"the disk is full: {doing} was stopped. Make room on this server", code="disk_full")
    return Unavailable(f"{doing} was stopped by the disk: {error.strerror or error}", code="disk")


class Images:
    """The folder of image versions. `claimed` are versions that an import is just bringing into the log."""

    def __init__(self, data_dir: Path, *, measure: Measure = room) -> None:
        self.data_dir = data_dir
        self.folder = data_dir / "images"
        self.tmp = growing(data_dir)
        self.claimed: set[VersionId] = set()
        self.absent = ""  # why the folder is not the one this server knows; the agent looks
        self._measure = measure
        self._manifests: dict[VersionId, m.Manifest] = {}
        self.make_folders()

    def make_folders(self) -> None:
        """Make what is missing, but nothing in place of a disk that a link leads to and that is not there."""
        if self.folder.exists() or not self.folder.is_symlink():
            self.tmp.mkdir(parents=True, exist_ok=True)

    def room(self) -> Room:
        """Measure the disk that the images are on; raise `Unavailable` if it is not there."""
        if self.absent:
            raise Unavailable(self.absent, code="disk_absent")
        return self._measure(self.folder)

    def path(self, version: VersionId) -> Path:
        """Return where the raw file of a version is or will be."""
        return version_path(self.data_dir, version)

    def side(self, version: VersionId, kind: str) -> Path:
        """Return the path of a file beside it: manifest, part or have."""
        return _named(self.data_dir, version, kind)

    def known(self) -> tuple[VersionId, ...]:
        """Return every version of which there is any file here."""
        # By what stands in the folder: one file of which nothing can be said any more hides no other.
        with os.scandir(self.folder) as files:
            found = {VersionId(file.name.partition(".")[0]) for file in files if file.is_file()}
        return tuple(sorted(name for name in found if _GOOD_ID.fullmatch(name)))

    def present(self, version: Version) -> bool:
        """Tell whether the raw file is here, in the right size and with a manifest; contents are not read."""
        try:
            return (
                self.path(version.id).stat().st_size == version.size_bytes
                and self.side(version.id, "manifest").exists()
            )
        except FileNotFoundError:
            return False

    def intact(self, version: Version) -> bool:
        """Tell whether the files are here and the manifest is the one of which the log has the hash."""
        if not self.present(version):
            return False
        return manifest_file.name_of(self.side(version.id, "manifest")) == version.manifest_hash

    def mend(self, version: Version) -> bool:
        """Make a lost manifest anew from a raw file that is still right; False if it isn't (or isn't here)."""
        path = self.path(version.id)
        if not path.exists() or path.stat().st_size != version.size_bytes:
            return False
        data = m.encode(scan(path, on_bytes=lambda _: None, stop=lambda: False))
        if m.manifest_hash(data) != version.manifest_hash:
            return False
        self.save_manifest(version.id, data)
        return True

    def set_aside(self, version: VersionId) -> None:
        """Take a file that is not what it should be out of use; it is deleted once a good one is here."""
        with suppress(FileNotFoundError):
            self.path(version).replace(self.side(version, "damaged"))

    def manifest_name(self, version: VersionId) -> str:
        """Return the hash of the manifest of a version as it lies here; raise `NotFound` if it is not here."""
        try:
            return manifest_file.name_of(self.side(version, "manifest"))
        except OSError as error:
            raise _unread(version, error) from error

    def manifest_stretch(self, version: VersionId, offset: int, length: int) -> tuple[bytes, int]:
        """Return some bytes of the encoded manifest, and how many there are in all; `NotFound` if it is not here."""
        try:
            return manifest_file.stretch(self.side(version, "manifest"), offset, length)
        except OSError as error:
            raise _unread(version, error) from error

    def manifest(self, version: VersionId) -> m.Manifest:
        """Return the manifest of a version that is here; the last few are kept open."""
        known = self._manifests.get(version)
        if known is None:
            known = self._opened(version)
            while len(self._manifests) >= _KEPT_MANIFESTS:
                with suppress(StopIteration, KeyError):
                    del self._manifests[next(iter(self._manifests))]
            self._manifests[version] = known
        return known

    def older_format(self, version: VersionId) -> str:
        """Return what a person is told of a manifest that another release of kmgr made, nothing of one of ours."""
        try:
            return m.other_format(manifest_file.stretch(self.side(version, "manifest"), 0, m.HEAD_BYTES)[0])
        except FileNotFoundError:
            return ""

    def incoming(self, version: VersionId) -> Incoming:
        """Return a file in which a manifest may grow; whoever asks closes it."""
        try:
            return Incoming(self.side(version, "manifest-new"))
        except OSError as error:
            raise disk_error(error, doing=f"saving the manifest of version {version}") from error

    def add_to(self, incoming: Incoming, stretch: bytes) -> None:
        """Write the next stretch of a manifest; raise `Unavailable` if the disk refuses."""
        try:
            incoming.add(stretch)
        except OSError as error:
            raise disk_error(error, doing=f"saving {incoming.path.name}") from error

    def take_manifest(self, version: VersionId, incoming: Incoming) -> m.Manifest:
        """Make what has come the version's manifest; raise `Refused` if it is none."""
        manifest = manifest_file.opened(incoming.path, then=self.side(version, "manifest"))
        self._manifests.pop(version, None)
        try:
            incoming.sync()
            incoming.path.replace(self.side(version, "manifest"))
            sync_folder(self.folder)
        except OSError as error:
            raise disk_error(error, doing=f"saving the manifest of version {version}") from error
        return manifest

    def _seal(self, version: VersionId, file: Path) -> None:
        try:
            seal(file, self.path(version))
        except OSError as error:
            raise disk_error(error, doing=f"keeping version {version}") from error

    def _opened(self, version: VersionId) -> m.Manifest:
        try:
            return manifest_file.opened(self.side(version, "manifest"))
        except OSError as error:
            raise _unread(version, error) from error

    def save_manifest(self, version: VersionId, data: bytes) -> None:
        """Write a manifest so that it is either all there or not there, power cut or not."""
        target = self.side(version, "manifest")
        self._manifests.pop(version, None)
        fresh = target.with_suffix(".manifest-new")
        try:
            write_synced(fresh, data)
            fresh.replace(target)
            sync_folder(self.folder)
        except OSError as error:
            raise disk_error(error, doing=f"saving the manifest of version {version}") from error

    def adopt(self, version: VersionId, file: Path, manifest: bytes) -> None:
        """Take a finished, hashed raw file over from `images/tmp/`: afterwards it is this version."""
        self.save_manifest(version, manifest)
        self._seal(version, file)

    def adopt_new(self, version: VersionId, file: Path, manifest: m.Manifest) -> str:
        """Do the same with a manifest that was just made, and return the name by which the log will know it."""
        incoming = self.incoming(version)
        try:
            for part in m.spelled(manifest):
                self.add_to(incoming, part)
            self.take_manifest(version, incoming)
        finally:
            incoming.close()
        self._seal(version, file)
        return incoming.name

    def give_up(self, version: VersionId) -> None:
        """Delete what an unfinished copy left."""
        self.side(version, "part").unlink(missing_ok=True)

    def remove(self, version: VersionId) -> None:
        """Delete every file of a version; linked clones that run keep it until they end."""
        self._manifests.pop(version, None)
        for kind in ("raw", "part", "damaged", "manifest", "manifest-new"):
            self.side(version, kind).unlink(missing_ok=True)


def scan(path: Path, *, on_bytes: Callable[[int], None], stop: Callable[[], bool]) -> m.Manifest:
    """Read a raw file and return its manifest; holes are skipped unread. `on_bytes` hears how far it is."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return m.build(size, _digests(file.fileno(), size, on_bytes=on_bytes, stop=stop))


def seal(file: Path, target: Path) -> None:
    """Make a finished file durable and read-only, and give it its name."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    file.chmod(0o444)
    file.replace(target)
    sync_folder(target.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Write a small file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _unread(version: VersionId, error: OSError) -> NotFound | Unavailable:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"version {version} is not on this server")
    return disk_error(error, doing=f"reading the manifest of version {version}")


def _named(data_dir: Path, version: VersionId, kind: str) -> Path:
    if not _GOOD_ID.fullmatch(version):
        raise Refused(f"{version!r} is not the id of a version")
    return data_dir / "images" / f"{version}.{kind}"


def _digests(
    opened: int, size: int, *, on_bytes: Callable[[int], None], stop: Callable[[], bool]
) -> Iterator[tuple[int, bytes]]:
    """Yield (number, digest) of the blocks that are not zeros; the file is read in stretches of many blocks."""
    buffer = bytearray(m.PIECE_BYTES)
    view = memoryview(buffer)
    for start, end in _stretches(opened, size):
        if stop():
            raise Unavailable("reading the image was stopped")
        _read_all(opened, view[: end - start], start)
        for at in range(0, end - start, m.BLOCK_BYTES):
            length = min(m.BLOCK_BYTES, end - start - at)
            if not buffer.startswith(_ZEROS[:length], at):
                yield (start + at) // m.BLOCK_BYTES, m.digest(view[at : at + length])
        on_bytes(end)


def _read_all(opened: int, view: memoryview, offset: int) -> None:
    filled = 0
    while filled < len(view):
        got = os.preadv(opened, [view[filled:]], offset + filled)
        if not got:
            raise Refused("the file became shorter while it was read")
        filled += got


def _stretches(opened: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what the file system says may hold something, whole blocks, at most a piece each."""
    end = 0
    while end < size:
        try:
            start = os.lseek(opened, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        hole = os.lseek(opened, start, os.SEEK_HOLE)
        start = max(end, start // m.BLOCK_BYTES * m.BLOCK_BYTES)
        last = min(size, -(-hole // m.BLOCK_BYTES) * m.BLOCK_BYTES)
        for end in range(start + m.PIECE_BYTES, last, m.PIECE_BYTES):
            yield end - m.PIECE_BYTES, end
            start = end
        yield start, last
        end = last
