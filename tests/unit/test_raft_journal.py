"""The log on the disk: what was synced is there after a crash at any byte, and damage is not taken for a crash."""

import errno
import resource
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

from kmgr.errors import ConfigError, InvariantBroken
from kmgr.grid.raft import records
from kmgr.grid.raft.journal import ENVELOPE, FIRST, Journal, add_voter, remove_voter
from kmgr.grid.raft.logfile import LogFile
from kmgr.grid.raft.records import Entry, Kind
from kmgr.ids import ServerId

A, B, C = ServerId("srv-a"), ServerId("srv-b"), ServerId("srv-c")


def entry(index: int, term: int = 1) -> Entry:
    return Entry(ENVELOPE + f"command {index}".encode(), index, term)


def opened(path: Path) -> Journal:
    return Journal.open(LogFile(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(path: Path) -> Journal:
    return Journal.create(LogFile(path), A)


def test_what_was_synced_is_there_again(journal: Journal, path: Path) -> None:
    journal.decide(1, A)
    for index in range(3, 8):
        journal.add(entry(index))
    journal.add(Entry(add_voter(B), 8, 1))
    journal.commit = 7
    journal.note_commit()
    journal.close()
    again = opened(path)
    assert [e.index for e in again.entries] == list(range(1, 9))
    assert again.entries[0] == FIRST
    assert (again.term, again.vote, again.commit) == (1, A, 7)
    assert again.voters() == {A, B}
    assert again.voters(upto=7) == {A}
    assert again.unsettled_change()


def test_a_journal_of_a_joining_server_has_no_voters(path: Path) -> None:
    Journal.create(LogFile(path), None).close()
    assert opened(path).voters() == frozenset()


def test_cut_off_at_any_byte_every_synced_entry_is_kept(journal: Journal, path: Path) -> None:
    journal.add(entry(3))
    journal.sync()
    safe = path.stat().st_size
    for index in (4, 5):
        journal.add(entry(index))
    journal.close()
    whole = path.read_bytes()
    for size in range(safe, len(whole)):
        path.write_bytes(whole[:size])
        again = opened(path)
        last = again.last.index
        assert 3 <= last <= 5
        again.add(entry(last + 1))
        again.close()
        assert opened(path).last == entry(last + 1)


def test_a_torn_tail_full_of_zeros_is_dropped(journal: Journal, path: Path) -> None:
    journal.add(entry(3))
    journal.close()
    path.write_bytes(path.read_bytes() + bytes(300))
    assert opened(path).last == entry(3)
    assert not path.read_bytes().endswith(bytes(300))


def test_zeros_are_written_ahead_and_what_follows_lies_in_them(journal: Journal, path: Path) -> None:
    journal.add(entry(3))
    journal.sync()
    size = path.stat().st_size
    assert size > journal.size + 1000
    for index in range(4, 9):
        journal.add(entry(index))
        journal.sync()
    assert path.stat().st_size == size
    # As a kill leaves it.
    again = opened(path)
    assert again.last == entry(8)
    assert path.stat().st_size == again.size == journal.size


def test_beyond_the_zeros_there_are_more(path: Path) -> None:
    file = LogFile(path)
    file.AHEAD = 100
    journal = Journal.create(file, A)
    for index in range(3, 60):
        journal.add(entry(index))
        journal.sync()
        assert path.read_bytes().count(b"command") == index - 2
    journal.close()
    assert path.stat().st_size == journal.size
    assert opened(path).last == entry(59)


def test_a_power_cut_may_leave_a_hole_in_the_last_batch(journal: Journal, path: Path) -> None:
    journal.add(entry(3))
    journal.sync()
    safe = journal.size
    for index in (4, 5):
        journal.add(entry(index))
    journal.sync()
    raw = bytearray(path.read_bytes())
    for begin in range(safe, journal.size):
        torn = raw[:begin] + bytes(5) + raw[begin + 5 :]
        path.write_bytes(torn)
        again = opened(path)
        assert 3 <= again.last.index <= 5
        again.add(entry(again.last.index + 1, 2))
        again.close()
        assert opened(path).last.term == 2


def test_a_disk_without_room_ahead_takes_what_fits(journal: Journal, path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = journal.size + 300
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        journal.add(entry(3))
        journal.sync()
        assert path.stat().st_size == room
        with pytest.raises(OSError, match="File too large"):
            for index in range(4, 30):
                journal.add(entry(index))
                journal.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.abandon()
    last = opened(path).last.index
    assert last > 3
    assert last >= journal.synced


def test_a_broken_record_behind_which_something_was_synced_is_damage(journal: Journal, path: Path) -> None:
    journal.add(entry(3))
    journal.sync()
    journal.add(entry(4))
    journal.close()
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"command 3")] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"damaged.*let it join again"):
        opened(path)


def test_a_freshly_compacted_log_tells_every_damage_from_a_torn_tail(journal: Journal, path: Path) -> None:
    for index in range(3, 9):
        journal.add(entry(index))
    journal.sync()
    journal.forget_before(6)
    journal.close()
    whole = path.read_bytes()
    for spot in range(len(whole) - len(records.pack_number(Kind.SYNCED, 0))):
        damaged = bytearray(whole)
        damaged[spot] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="damaged"):
            opened(path)


@pytest.mark.parametrize("content", [b"", b"kmgr", b"something else entirely", b"kmgrlog1"])
def test_a_file_that_is_no_journal_is_damage(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        opened(path)


def test_term_and_vote_are_safe_without_a_sync_and_never_change_their_mind(journal: Journal, path: Path) -> None:
    journal.decide(4, None)
    journal.decide(4, B)
    journal.abandon()
    again = opened(path)
    assert (again.term, again.vote) == (4, B)
    with pytest.raises(InvariantBroken):
        again.decide(4, C)
    with pytest.raises(InvariantBroken):
        again.decide(3, B)


def test_entries_that_were_not_synced_may_go_but_leave_no_hole(journal: Journal, path: Path) -> None:
    journal.add(entry(3))
    journal.abandon()
    assert opened(path).last.index == 2


def test_a_cut_survives_and_takes_changes_of_voters_with_it(journal: Journal, path: Path) -> None:
    journal.add(Entry(add_voter(B), 3, 1))
    journal.add(Entry(add_voter(C), 4, 1))
    journal.add(entry(5))
    journal.cut(4)
    journal.add(Entry(remove_voter(A), 4, 2))
    journal.close()
    again = opened(path)
    assert [(e.index, e.term) for e in again.entries[2:]] == [(3, 1), (4, 2)]
    assert again.voters() == {B}


def test_what_is_committed_is_never_cut(journal: Journal) -> None:
    journal.add(entry(3))
    journal.commit = 3
    with pytest.raises(InvariantBroken):
        journal.cut(3)


def test_a_gap_is_refused(journal: Journal) -> None:
    with pytest.raises(InvariantBroken):
        journal.add(entry(9))


def test_forgetting_old_entries_keeps_voters_term_and_the_rest(journal: Journal, path: Path) -> None:
    journal.decide(2, B)
    journal.add(Entry(add_voter(B), 3, 2))
    for index in range(4, 10):
        journal.add(entry(index, 2))
    journal.commit = 9
    journal.forget_before(8)
    journal.close()
    again = opened(path)
    assert [e.index for e in again.entries] == [8, 9]
    assert (again.term, again.vote, again.commit) == (2, B, 9)
    assert again.voters() == {A, B}
    assert again.at(7) is None


def test_beginning_anew_behind_a_snapshot_keeps_term_and_vote(journal: Journal, path: Path) -> None:
    journal.decide(3, C)
    journal.add(entry(3))
    journal.restart(entry(40, 2), entry(41, 2), {B, C})
    journal.close()
    again = opened(path)
    assert [e.index for e in again.entries] == [40, 41]
    assert (again.term, again.vote, again.commit) == (3, C, 41)
    assert again.voters() == {B, C}


class Killed(BaseException):
    """The process ends here."""


class Mortal(LogFile):
    """Its process is killed in the middle of a replacement: before or after the new file got its name."""

    renamed = False

    def replace(self, parts: Iterable[bytes]) -> None:
        data = b"".join(parts)
        new = self.path.with_name(self.path.name + ".new")
        new.write_bytes(data if self.renamed else data[: len(data) // 2])
        if self.renamed:
            new.rename(self.path)
        raise Killed


@pytest.mark.parametrize("renamed", [False, True])
def test_killed_in_the_middle_of_a_rewrite_the_old_or_the_new_log_is_there(path: Path, renamed: bool) -> None:
    journal = Journal.create(LogFile(path), A)
    for index in range(3, 9):
        journal.add(entry(index))
    journal.close()
    file = Mortal(path)
    file.renamed = renamed
    journal = Journal.open(file)
    with pytest.raises(Killed):
        journal.forget_before(6)
    journal.abandon()
    again = opened(path)
    assert again.last == entry(8)
    assert again.first.index == (6 if renamed else 1)
    assert again.voters() == {A}
    assert not path.with_name("journal.new").exists()
    again.close()


def test_a_rewrite_needs_no_second_copy_of_the_log_in_memory(path: Path) -> None:
    journal = Journal.create(LogFile(path), A)
    kept = [Entry(bytes([index]) * (256 << 10), index, 1) for index in range(3, 35)]
    for one in kept:
        journal.add(one)
    journal.sync()
    tracemalloc.start()
    try:
        journal.forget_before(4)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 << 20 < path.stat().st_size
    journal.close()
    again = opened(path)
    assert again.entries == kept[1:]
    again.close()


class FullDisk(LogFile):
    """A disk with no room after so many bytes."""

    room = 1 << 30

    def append(self, data: bytes) -> None:
        if self.size + len(data) > self.room:
            part = max(0, self.room - self.size)
            super().append(data[:part])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(data)


def test_a_full_disk_is_an_error_and_loses_nothing_that_was_synced(path: Path) -> None:
    file = FullDisk(path)
    journal = Journal.create(file, A)
    journal.add(entry(3))
    journal.sync()
    file.room = file.size + 40
    journal.add(entry(4))
    with pytest.raises(OSError, match="No space"):
        journal.sync()
    journal.abandon()
    assert opened(path).last == entry(3)


class Kernel(LogFile):
    """Knows what is on the disk; a sync that fails takes for written what is not, as Linux does."""

    def __init__(self, path: Path, disk: bytearray) -> None:
        super().__init__(path)
        self.disk = disk
        self.failing = False
        self._dirty: list[tuple[int, bytes]] = []

    def replace(self, parts: Iterable[bytes]) -> None:
        data = b"".join(parts)
        super().replace([data])
        self.disk[:] = data

    def sync(self) -> None:
        written, self._dirty = self._dirty, []
        if self.failing:
            raise OSError(errno.EIO, "Input/output error")
        for at, data in written:
            self.disk[at : at + len(data)] = data

    def _put(self, data: bytes, at: int) -> int:
        self._dirty.append((at, data))
        return super()._put(data, at)


def test_what_a_failed_sync_left_in_memory_is_written_again_before_it_is_believed(path: Path) -> None:
    disk = bytearray()
    file = Kernel(path, disk)
    journal = Journal.create(file, A)
    for index in range(3, 6):
        journal.add(entry(index))
        journal.sync()
    file.failing = True
    journal.add(entry(6))
    with pytest.raises(OSError, match="Input/output"):
        journal.sync()
    assert journal.synced == 5
    journal.abandon()
    # The next process reads it from the kernel's memory, and is asked to acknowledge it.
    again = Journal.open(Kernel(path, disk))
    assert again.synced == 6
    again.abandon()
    # The power is cut.
    path.write_bytes(disk)
    assert opened(path).last == entry(6)
