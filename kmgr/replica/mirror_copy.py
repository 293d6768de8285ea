"""One copy of a desktop's disk on this server's disks: grains in slots, and an index of them.

    disk      slot n is its n-th grain; the first is kept free for the overlay's header
    sums      the SHA-256 of each slot; in the place of the first, up to where the index was finished
    index     what each finished cycle changed (`mirror_index`, `mirror_state`): only this says what the copy is
    pending   the same for a cycle under way, so that a broken one need not begin anew

A grain that changes gets a *new* slot; its former one is free only after the
cycle's frame is on the disk. So nothing that belongs to the last point is ever
written over, each byte is written once, and a kill at any moment leaves that
point. But no older one: an index that ends before what was finished is none.
Promoting writes the overlay's tables behind the last slot and the header into
the first: no grain is moved.

All of it blocks and belongs to one thread at a time, and to whoever has the copy
for himself: opening one cuts a torn frame off its index. Who only wants to know
what point a copy is at asks `mirror_held`.
"""

import errno
import hashlib
import os
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from kmgr.errors import NotFound
from kmgr.replica import mirror_index, qcow2
from kmgr.replica.grains import ABSENT, GRAIN, ZERO, GrainMap, GrainSet, Slots
from kmgr.replica.images import UNREADABLE, sync_folder, write_synced
from kmgr.replica.mirror_state import (
    FINISHED_BYTES,
    Identity,
    State,
    damaged,
    finished,
    head_of,
    point_of,
    spell_finished,
)

_SUM = 32
# So much may have to come again after a kill in the middle of a cycle.
_FLUSH_BYTES = 64 << 20
# The index is written anew when it has grown to this, and to a multiple of what it says.
_COMPACT_BYTES = 4 << 20
_COMPACT_TIMES = 4
_UNTOUCHED = 0xFFFFFFFE
# Grains between two looks at the time, 16 MiB.
_STRETCH = 256


@dataclass(frozen=True, slots=True)
class LookedOver:
    """What reading a copy found: of so many `grains` in slots, how many were left `unread`, and which are `wrong`."""

    grains: int
    unread: int
    wrong: tuple[int, ...]


class Copy:
    """A copy that is open: `close` it. `state` is None until the first cycle is complete."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        """Open what lies in `folder`; use `opened` or `created`."""
        self.folder = folder
        self.identity = identity
        self.state: State | None = None
        self._map = GrainMap()
        self._pending = GrainMap(_UNTOUCHED)
        self._slots = Slots()
        self._unsaved: array[int] = array("I")
        self._unsaved_bytes = 0
        # Where the last point ends in the files.
        self._last = (0, 0)
        self._disk = os.open(folder / "disk", os.O_RDWR | os.O_CLOEXEC)
        try:
            # Without it nothing is known of what the disk should say, and that is told (`lacks`).
            self._sums = os.open(folder / "sums", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError:
            os.close(self._disk)
            raise

    # -- opening ---------------------------------------------------------------------------------------------------

    @staticmethod
    def created(folder: Path, identity: Identity) -> "Copy":
        """Begin a copy: its folder is there completely or not at all."""
        fresh = folder.with_name(f"{folder.name}.new")
        fresh.mkdir(parents=True, exist_ok=True)
        write_synced(fresh / "index", mirror_index.spell(asdict(identity), array("I")))
        for name in ("disk", "sums"):
            (fresh / name).touch(0o640)
        sync_folder(fresh)
        fresh.rename(folder)
        sync_folder(folder.parent)
        return Copy(folder, identity)

    @staticmethod
    def opened(folder: Path) -> "Copy":
        """Open a copy; raise `NotFound` if there is none, `Unavailable` (`damaged`) if index or disk are none."""
        try:
            data = (folder / "index").read_bytes()
        except FileNotFoundError:
            raise NotFound(f"there is no copy in {folder}") from None
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            raise damaged(folder, f"its index cannot be read: {error.strerror}") from error
        known = mirror_index.frames(data)
        first = next(known, None)
        if first is None:
            raise damaged(folder, "its index is unreadable")
        try:
            copy = Copy(folder, Identity(**first.head))
        except FileNotFoundError:
            raise damaged(folder, "its file disk was removed") from None
        try:
            copy._read(first, known, length=len(data))
        except BaseException:
            copy.close()
            raise
        return copy

    def _read(self, first: mirror_index.Frame, known: Iterator[mirror_index.Frame], *, length: int) -> None:
        end = first.end
        for frame in known:
            self._learn(frame)
            end = frame.end
        if end < self._finished():
            # The slots of an older point may say something else by now, with the right sums for that.
            raise damaged(self.folder, "its index ends before what was finished")
        if end < length:
            os.truncate(self.folder / "index", end)
        for grain, place in self._map.places():
            if place != ZERO:
                self._slots.hold(place)
                if place > self._last[0]:
                    self._last = (place, grain)
        self._recall()

    def _learn(self, frame: mirror_index.Frame) -> None:
        self._map.learn(frame.pairs)
        head = dict(frame.head)
        if "point" in head:
            self.state = State(point_of(head), head["cycle"], head["still"])

    def _recall(self) -> None:
        """Take up what a cycle that broke had already brought; it is offered again before it counts."""
        try:
            data = (self.folder / "pending").read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return  # it comes again
        for frame in mirror_index.frames(data):
            self._pending.learn(frame.pairs)
        for grain, place in self._pending.places():
            if place == ZERO:
                continue
            if self._slots.taken(place):  # left over from before the last commit: the index knows better
                self._pending.set(grain, _UNTOUCHED)
            else:
                self._slots.hold(place)

    def close(self) -> None:
        """Close the files; what is pending and unsaved has to come again."""
        os.close(self._disk)
        os.close(self._sums)

    # -- a cycle ---------------------------------------------------------------------------------------------------

    def place(self, grain: int) -> int:
        """Return where a grain is, what the cycle under way brought included."""
        pending = self._pending.get(grain)
        return self._map.get(grain) if pending == _UNTOUCHED else pending

    def digest(self, grain: int, *, read: bool) -> bytes | None:
        """Return the SHA-256 of a grain that is in a slot: as noted, or (`read`) of what the disk says now.

        What is pending is always read: after a power cut its note may be younger than its bytes.
        None if the disk cannot say it any more: that grain comes again, into another slot.
        """
        place = self.place(grain)
        if place in (ABSENT, ZERO):
            return None
        try:
            if not read and self._pending.get(grain) == _UNTOUCHED:
                return os.pread(self._sums, _SUM, place * _SUM)
            return hashlib.sha256(os.pread(self._disk, self.length(grain), place * GRAIN)).digest()
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return None

    def length(self, grain: int) -> int:
        """Return how many bytes of the disk a grain is: the last may be shorter."""
        return min(GRAIN, self.identity.size_bytes - grain * GRAIN)

    def write(self, grain: int, data: bytes | memoryview, digest: bytes) -> None:
        """Put a grain into a new slot."""
        slot = self._slots.take()
        try:
            _write_all(self._disk, data, slot * GRAIN)
            _write_all(self._sums, digest, slot * _SUM)
        except OSError:
            self._slots.free(slot)
            raise
        self._pend(grain, slot)
        self._unsaved_bytes += len(data)
        if self._unsaved_bytes >= _FLUSH_BYTES:
            self.save()

    def zero(self, grain: int) -> None:
        """Let a grain read as zeros."""
        self._pend(grain, ZERO)

    def _pend(self, grain: int, place: int) -> None:
        former = self._pending.get(grain)
        if former not in (_UNTOUCHED, ZERO, ABSENT):
            self._slots.free(former)
        self._pending.set(grain, place)
        self._unsaved.extend((grain, place))

    def save(self) -> None:
        """Make what came so far durable, so that it need not come again."""
        if not self._unsaved:
            return
        os.fdatasync(self._disk)
        os.fdatasync(self._sums)
        _append(self.folder / "pending", mirror_index.spell({}, self._unsaved))
        self._unsaved = array("I")
        self._unsaved_bytes = 0

    def forget(self) -> None:
        """Give up what a cycle brought so far, and the room it takes."""
        for _, place in self._pending.places():
            if place not in (ABSENT, ZERO):
                self._slots.free(place)
        self._pending = GrainMap(_UNTOUCHED)
        self._unsaved, self._unsaved_bytes = array("I"), 0
        self._tidy()

    def commit(self, state: State, *, offered: GrainSet, everything: bool) -> None:
        """Make the offered grains and their point the copy, durably; with `everything`, no other grain is left."""
        changes: array[int] = array("I")
        freed = []
        for grain, place in self._pending.places():
            former = self._map.get(grain)
            if grain not in offered:
                if place not in (ABSENT, ZERO):
                    freed.append(place)
            elif place != former:
                changes.extend((grain, place))
                freed.append(former)
        if everything:
            gone = [(grain, place) for grain, place in self._map.places() if grain not in offered]
            for grain, place in gone:
                changes.extend((grain, ABSENT))
                freed.append(place)
        os.fdatasync(self._disk)
        os.fdatasync(self._sums)
        _append(self.folder / "index", mirror_index.spell(head_of(state), changes))
        # From here on it is the point, whatever the disk says to the rest: what came is nothing to be forgotten.
        self._map.learn(changes)
        self.state = state
        self._pending = GrainMap(_UNTOUCHED)
        self._unsaved, self._unsaved_bytes = array("I"), 0
        self._finish((self.folder / "index").stat().st_size)
        for place in freed:
            if place not in (ABSENT, ZERO):
                self._slots.free(place)
        self._tidy()

    def _tidy(self) -> None:
        """Give back what is not needed any more; a kill in between costs nothing but room."""
        (self.folder / "pending").unlink(missing_ok=True)
        os.ftruncate(self._disk, self._slots.end() * GRAIN)
        index = self.folder / "index"
        size = index.stat().st_size
        if size > _COMPACT_BYTES and size > 8 * _COMPACT_TIMES * sum(1 for _ in self._map.places()):
            self._compact(index)

    def _compact(self, index: Path) -> None:
        everything: array[int] = array("I")
        for pair in self._map.places():
            everything.extend(pair)
        data = mirror_index.spell(asdict(self.identity), array("I"))
        if self.state is not None:
            data += mirror_index.spell(head_of(self.state), everything)
        fresh = index.with_name("index.new")
        write_synced(fresh, data)
        self._finish(0)
        fresh.replace(index)
        sync_folder(self.folder)
        self._finish(len(data))

    def _finish(self, end: int) -> None:
        """Note up to where the index is finished, before any slot that it gave back is taken again."""
        _write_all(self._sums, spell_finished(end), 0)
        os.fdatasync(self._sums)

    def _finished(self) -> int:
        return finished(os.pread(self._sums, FINISHED_BYTES, 0))

    # -- its end ---------------------------------------------------------------------------------------------------

    def used_bytes(self) -> int:
        """Return how much room the copy takes."""
        return sum((self.folder / name).stat().st_blocks * 512 for name in ("disk", "sums", "index"))

    def lacks(self) -> str:
        """Say what the files lack of the last point, by their lengths as they were opened; empty if nothing."""
        slot, grain = self._last
        short = []
        if slot and os.fstat(self._disk).st_size < slot * GRAIN + self.length(grain):
            short.append("disk")
        if slot and os.fstat(self._sums).st_size < (slot + 1) * _SUM:
            short.append("sums")
        return f"its {' and '.join(short)} became shorter" if short else ""

    def wrong_grains(self) -> list[int]:
        """Read the copy's last point and return the grains whose bytes are not what was sent."""
        return self.read_again(0, sys.maxsize)[1]

    def read_again(self, first: int, most: int) -> tuple[int, list[int]]:
        """Read at most so many grains from `first` on; return where to go on (0: it is through) and what is wrong."""
        wrong: list[int] = []
        for grain, place in self._map.places(first):
            if place == ZERO:
                continue
            if most == 0:
                return grain, wrong
            most -= 1
            if not self._is_right(grain, place):
                wrong.append(grain)
        return 0, wrong

    def look_over(self, *, go_on: Callable[[], bool]) -> "LookedOver":
        """Read the last point in the order of the file, as long as it may `go_on`, and tell what is wrong."""
        slots = sorted((place, grain) for grain, place in self._map.places() if place != ZERO)
        wrong: list[int] = []
        for read, (place, grain) in enumerate(slots):
            if read % _STRETCH == 0 and not go_on():
                return LookedOver(len(slots), len(slots) - read, tuple(sorted(wrong)))
            if not self._is_right(grain, place):
                wrong.append(grain)
        return LookedOver(len(slots), 0, tuple(sorted(wrong)))

    def _is_right(self, grain: int, place: int) -> bool:
        try:
            data = os.pread(self._disk, self.length(grain), place * GRAIN)
            return hashlib.sha256(data).digest() == os.pread(self._sums, _SUM, place * _SUM)
        except OSError:  # a disk that cannot read it any more
            return False

    def note(self, grain: int, digest: bytes) -> None:
        """Write down what a grain was found to be, should that have been lost."""
        at = self.place(grain) * _SUM
        if os.pread(self._sums, _SUM, at) != digest:
            _write_all(self._sums, digest, at)

    def distrust(self) -> None:
        """Have the next cycle compare everything, bytes with bytes."""
        if self.state is not None and not self.state.distrusted:
            self.state = State(self.state.point, "", "")
            _append(self.folder / "index", mirror_index.spell(head_of(self.state), array("I")))

    def make_overlay(self, backing: Path) -> Path:
        """Make the file `disk` an overlay on `backing` that says what the last point says; return its path."""
        self.forget()
        end = max(1, self._slots.end())
        os.ftruncate(self._disk, end * GRAIN)
        size_bytes = -(-self.identity.size_bytes // 512) * 512
        places = self._map.places()
        for at, data in qcow2.tables(
            size_bytes, os.fsencode(backing), places=places, taken=self._slots.taken, end=end
        ):
            if at == 0:  # only with everything else on the disk does the file become a disk
                os.fdatasync(self._disk)
            _write_all(self._disk, data, at * GRAIN)
        os.fsync(self._disk)
        return self.folder / "disk"


def _write_all(opened: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(opened, view, offset)
        if not written:
            raise OSError(errno.EIO, "the disk took nothing")
        offset, view = offset + written, view[written:]


def _append(path: Path, data: bytes) -> None:
    """Add a frame and wait for the disk; one that does not fit is taken back."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    try:
        before = os.fstat(opened).st_size
        try:
            _write_all_appending(opened, data)
            os.fdatasync(opened)
        except OSError:
            os.ftruncate(opened, before)
            raise
    finally:
        os.close(opened)


def _write_all_appending(opened: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(opened, view) :]
