"""Journal, snapshot and state agree after a kill between any two steps, and damage is told in words."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kmgr.errors import ConfigError
from kmgr.grid.commands import APPLIERS
from kmgr.grid.envelope import Command, encode
from kmgr.grid.fsm import Machine
from kmgr.grid.queries import settings
from kmgr.grid.raft import snapshot
from kmgr.grid.raft.background import Stopped, Thread
from kmgr.grid.raft.courier import PIECE_BYTES, Courier
from kmgr.grid.raft.journal import ENVELOPE, Journal
from kmgr.grid.raft.logfile import LogFile
from kmgr.grid.raft.messages import NextPiece, Piece
from kmgr.grid.raft.opening import Opened, open_folder
from kmgr.grid.raft.records import Entry
from kmgr.grid.raft.snapshot import Snapshot
from kmgr.grid.rows import scalar
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.ids import CommandId, ServerId

A, B = ServerId("srv-a"), ServerId("srv-b")


def entry(index: int, term: int = 1) -> Entry:
    body = {"name": "heartbeat_ms", "value": 1000 + index}
    command = Command("setting.set", CommandId(f"cmd-{index}"), index, "test", body)
    return Entry(ENVELOPE + encode(command), index, term)


class Home:
    """One server's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.raft = folder / "raft"
        self.path = self.raft / "snapshot"
        self.store = Store(folder / "state.sqlite", (SCHEMA,))

    def open(self, *, founder: bool = True) -> Opened:
        return open_folder(self.raft, self.store, A, founder=founder)

    def fill(self, upto: int) -> Journal:
        """Write a log up to this index and apply it."""
        journal = self.open().journal
        machine = Machine(self.store, APPLIERS)
        machine.skip(1)
        machine.skip(2)
        for index in range(3, upto + 1):
            journal.add(entry(index))
            machine.apply(index, entry(index).command[1:])
        machine.commit()
        journal.commit = upto
        journal.sync()
        return journal

    def shoot(self, at: int) -> Snapshot:
        """Write a snapshot of the state, which is at this index."""
        made = Snapshot(entry(at - 1), entry(at), frozenset({A, B}))
        snapshot.write(self.path, self.store, made)
        return made

    def forget_state(self) -> None:
        self.store.close()
        for file in self.folder.glob("state.sqlite*"):
            file.unlink()
        self.store = Store(self.folder / "state.sqlite", (SCHEMA,))

    def value(self) -> int:
        with self.store.view() as db:
            return int(settings(db)["heartbeat_ms"])


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_founder_votes_and_a_newcomer_does_not(home: Home, tmp_path: Path) -> None:
    assert home.open().journal.voters() == {A}
    other = Home(tmp_path / "other")
    assert other.open(founder=False).journal.voters() == frozenset()


def test_an_opened_folder_is_never_founded_again(home: Home, tmp_path: Path) -> None:
    newcomer = Home(tmp_path / "other")
    newcomer.open(founder=False).journal.close()
    assert newcomer.open(founder=True).journal.voters() == frozenset()


def test_a_snapshot_holds_the_state_and_says_where_it_ends(home: Home) -> None:
    home.fill(9)
    made = home.shoot(9)
    assert snapshot.read(home.path) == made
    home.forget_state()
    snapshot.install(home.path, home.store)
    assert (home.store.applied(), home.value()) == (9, 1009)
    assert scalar(home.store.writer, "pragma journal_mode") == "wal"
    assert "raft_snapshot" not in home.store.writer.table_names()


def test_a_snapshot_of_an_older_kmgr_gets_the_tables_it_lacks(home: Home, tmp_path: Path) -> None:
    home.fill(9)
    home.shoot(9)
    newer = "create table novelties (id text primary key); create index novelties_by_id on novelties (id);"
    store = Store(tmp_path / "newer.sqlite", (SCHEMA, newer))
    snapshot.install(home.path, store)
    assert store.writer.table("novelties").exists()
    assert store.writer.table("novelties").indexes
    store.close()


def test_a_reader_sees_the_state_before_or_after_an_installed_snapshot(home: Home) -> None:
    home.fill(9)
    home.shoot(9)
    home.forget_state()
    with home.store.view() as before:
        assert settings(before)["heartbeat_ms"] == 1000
        snapshot.install(home.path, home.store)
        assert settings(before)["heartbeat_ms"] == 1000
    assert home.value() == 1009


def test_killed_between_snapshot_and_trimming_everything_is_still_there(home: Home) -> None:
    home.fill(9).close()
    home.shoot(9)
    opened = home.open()
    assert (opened.journal.first.index, opened.journal.last.index) == (1, 9)
    assert opened.snapshot is not None


def test_a_lost_state_comes_back_from_the_snapshot(home: Home) -> None:
    journal = home.fill(9)
    home.shoot(9)
    journal.forget_before(8)
    journal.add(entry(10))
    journal.close()
    home.forget_state()
    opened = home.open()
    assert (home.store.applied(), opened.journal.last.index) == (9, 10)


def test_killed_after_a_leaders_snapshot_was_put_in_place_the_log_begins_behind_it(
    home: Home, tmp_path: Path
) -> None:
    source = Home(tmp_path / "leader")
    source.fill(20)
    source.shoot(20)
    home.fill(5).close()
    source.path.rename(home.path)
    opened = home.open()
    assert [e.index for e in opened.journal.entries] == [19, 20]
    assert opened.journal.voters() == {A, B}
    assert (home.store.applied(), home.value()) == (20, 1020)
    opened.journal.close()
    assert home.open().journal.last.index == 20


def test_entries_that_contradict_the_snapshot_are_dropped(home: Home) -> None:
    home.fill(9)
    home.shoot(9)
    other = Journal.create(LogFile(home.raft / "journal"), A)
    for index in range(3, 12):
        other.add(entry(index, term=7))
    other.close()
    assert [(e.index, e.term) for e in home.open().journal.entries] == [(8, 1), (9, 1)]


def test_a_lost_snapshot_a_gap_and_a_lost_tail_are_told(home: Home) -> None:
    journal = home.fill(9)
    home.shoot(9)
    journal.forget_before(8)
    journal.close()
    kept = home.path.read_bytes()
    home.path.unlink()
    with pytest.raises(ConfigError, match=r"begins at entry 8.*is gone"):
        home.open()
    home.path.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ConfigError, match="is damaged"):
        home.open()
    home.path.write_bytes(kept)
    Journal.create(LogFile(home.raft / "journal"), A).close()
    home.path.unlink()
    with pytest.raises(ConfigError, match=r"contains log entry 9.*entries were lost"):
        home.open()


def test_a_snapshot_that_cannot_be_written_leaves_the_older_one(home: Home) -> None:
    home.fill(9)
    made = home.shoot(9)
    (home.raft / "snapshot.new").mkdir()
    with pytest.raises(OSError, match=r".*"):
        home.shoot(9)
    assert snapshot.read(home.path) == made


class AtOnce:
    """In place of the thread for long work: does it while it is asked."""

    def start(self, job: Callable[[Callable[[], None]], Any], then: Callable[[Any], None]) -> None:
        then(job(lambda: None))

    def poll(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing runs."""


class Road:
    """Two couriers and what they say to each other; `holes` are pieces that never arrive."""

    def __init__(self, here: Home, there: Home) -> None:
        self.said: list[tuple[ServerId, Piece | NextPiece]] = []
        self.leader = Courier(here.path, self.say, background=AtOnce(), arrived=self.take)
        self.follower = Courier(there.path, self.say, background=AtOnce(), arrived=self.take)
        self.arrived: Snapshot | None = None

    def take(self, arrived: Snapshot) -> None:
        self.arrived = arrived

    def say(self, server: ServerId, message: Piece | NextPiece) -> bool:
        self.said.append((server, message))
        return True

    def deliver(self) -> None:
        while self.said:
            server, message = self.said.pop(0)
            if isinstance(message, Piece):
                self.follower.take(server, message)
            else:
                self.leader.go_on(server, message, 0.0)


@pytest.fixture
def road(home: Home, tmp_path: Path) -> Road:
    home.fill(9)
    padding = "create table padding (x blob)"
    home.store.writer.execute(padding)
    home.store.writer.execute("insert into padding values (zeroblob(?))", [3 * PIECE_BYTES])
    home.shoot(9)
    there = Home(tmp_path / "there")
    there.raft.mkdir()
    road = Road(home, there)
    road.leader.current = (9, 1)
    return road


def test_a_snapshot_travels_in_pieces_and_is_placed_when_it_was_checked(road: Road) -> None:
    road.leader.offer(B, 1, 0.0)
    road.deliver()
    assert road.arrived is not None
    assert road.arrived.last.index == 9
    road.follower.place(road.arrived)
    assert road.follower.current == (9, 1)
    road.leader.close()


def test_a_lost_piece_is_asked_for_again_and_a_stalled_transfer_begins_anew(road: Road) -> None:
    road.leader.offer(B, 1, 0.0)
    road.said.clear()
    road.leader.offer(B, 1, 1.0)
    assert road.said == []
    road.leader.offer(B, 1, 9.0)
    road.deliver()
    assert road.arrived is not None
    road.leader.close()


def test_pieces_without_a_beginning_make_the_follower_ask_for_it(road: Road) -> None:
    road.follower.take(A, Piece(1, 9, 1, PIECE_BYTES, 5 * PIECE_BYTES, b"x"))
    assert road.said == [(A, NextPiece(1, 9, 0))]


def test_a_snapshot_that_arrives_damaged_is_not_taken(road: Road) -> None:
    road.follower.take(A, Piece(1, 9, 1, 0, 5, b"wrong"))
    assert road.arrived is None
    assert road.said == []


def test_a_snapshot_shows_the_entry_it_was_begun_at_however_late_it_is_copied(home: Home) -> None:
    journal = home.fill(9)
    pinned = snapshot.pin(home.store)
    machine = Machine(home.store, APPLIERS)
    machine.apply(10, entry(10).command[1:])
    machine.commit()
    made = Snapshot(entry(8), entry(9), frozenset({A}))
    snapshot.copy(pinned, home.path, made, lambda: None)
    snapshot.place(home.path)
    home.forget_state()
    snapshot.install(home.path, home.store)
    assert (home.store.applied(), home.value()) == (9, 1009)
    journal.close()


def test_a_copy_ends_when_the_log_closes(home: Home) -> None:
    home.fill(9)
    thread = Thread("files")
    began = threading.Event()

    def copy(go_on: Callable[[], None]) -> None:
        began.set()
        while True:
            go_on()

    thread.start(copy, lambda _: None)
    began.wait(5)
    thread.poll()
    thread.close()
    with pytest.raises(Stopped):
        thread.poll()


def test_a_server_that_checks_a_snapshot_says_that_it_lives_and_takes_no_second_one(home: Home) -> None:
    later: list[Callable[[], None]] = []

    class Later(AtOnce):
        def start(self, job: Callable[[Callable[[], None]], Any], then: Callable[[Any], None]) -> None:
            later.append(lambda: then(job(lambda: None)))

    home.fill(9)
    home.shoot(9)
    data = home.path.read_bytes()
    said: list[object] = []
    found: list[Snapshot] = []
    there = home.folder / "there"
    there.mkdir()

    def say(_: ServerId, message: Piece | NextPiece) -> bool:
        said.append(message)
        return True

    follower = Courier(there / "snapshot", say, background=Later(), arrived=found.append)
    whole = Piece(1, 9, 1, 0, len(data), data)
    follower.take(A, whole)
    assert said == []
    follower.take(A, whole)
    assert said == [NextPiece(1, 9, len(data))]
    later.pop()()
    assert [one.last.index for one in found] == [9]
