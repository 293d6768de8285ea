"""A command that is sent again is done once; one that comes too late to be known is refused, never done twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils import Database

from kmgr.entropy import new_id
from kmgr.errors import OutcomeUnknown
from kmgr.grid import recover, standing
from kmgr.grid.commands import APPLIERS
from kmgr.grid.envelope import Applied, Command, Outcome, Rejected, asked_at, encode, first_asked
from kmgr.grid.fsm import OUTCOMES_KEPT, TOO_LATE, Machine
from kmgr.grid.identity import Identity
from kmgr.grid.raft import snapshot
from kmgr.grid.recover import Origin
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.ids import CommandId
from tests.lab.raft_lab import A, RaftLab, eventually

NOTES = "create table if not exists notes (at integer primary key, n integer not null);"


def add_note(db: Database, command: Command) -> Outcome:
    db.execute("insert into notes (n) values (?)", [command.body["n"]])
    return Applied()


class Desk:
    """One machine and the index of its next entry."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.machine = Machine(store, {"note.add": add_note})

    def apply(self, id: CommandId) -> Outcome | None:
        return self.machine.apply(self.machine.applied + 1, encode(Command("note.add", id, 0, "anna", {"n": 1})))

    def note(self, id: CommandId) -> Outcome | None:
        found = self.apply(id)
        self.machine.commit()
        return found

    def pass_by(self, count: int) -> None:
        for _ in range(count):
            self.machine.skip(self.machine.applied + 1)
        self.machine.commit()

    def notes(self) -> int:
        return int(self.store.writer.execute("select count(*) from notes").fetchone()[0])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = Store(tmp_path / "state.sqlite", (SCHEMA, NOTES))
    yield Desk(store)
    store.close()


def test_a_retry_is_answered_as_long_as_its_outcome_is_kept_and_refused_afterwards(desk: Desk) -> None:
    desk.pass_by(10)
    one = asked_at("cmd-one", 10)
    assert desk.note(one) == Applied()
    desk.pass_by(OUTCOMES_KEPT - 2)
    assert desk.note(one) == Applied()
    for _ in range(3):
        late = desk.note(one)
        assert late == Applied() or (isinstance(late, Rejected) and late.code == TOO_LATE)
        assert desk.notes() == 1
    assert isinstance(late, Rejected)
    assert "not known any more whether it was made" in late.detail
    assert desk.note(asked_at("cmd-two", desk.machine.applied)) == Applied()
    assert desk.notes() == 2


def test_an_id_says_when_it_was_first_asked_for_or_nothing() -> None:
    assert first_asked(asked_at("cmd-x", 17)) == 17
    for other in ("cmd-x", "", "@", "cmd@-1", "cmd@x", "outbox-3-4"):
        assert first_asked(CommandId(other)) is None


def test_ids_lie_in_the_order_in_which_their_changes_were_asked_for() -> None:
    asked = [asked_at(new_id("cmd"), applied) for applied in (0, 9, 10, 99_999, 100_000, 10**9)]
    assert sorted(asked) == asked


def test_a_batch_writes_a_handful_of_pages_however_many_outcomes_are_kept(desk: Desk) -> None:
    """A page for each change, wherever chance put its id, would keep the disk of a busy grid from the log."""
    snapshot.own_checkpoints(desk.store, 1 << 30)
    for _ in range(5000):
        desk.apply(asked_at(new_id("cmd"), desk.machine.applied))
    desk.machine.commit()
    desk.store.writer.execute("pragma wal_checkpoint(truncate)").fetchone()
    assert snapshot.wal_bytes(desk.store) == 0
    batches = 50
    for _ in range(batches):
        for _ in range(10):
            desk.apply(asked_at(new_id("cmd"), desk.machine.applied))
        desk.machine.commit()
    page_bytes = desk.store.writer.execute("pragma page_size").fetchone()[0]
    # Notes, outcomes, their index, and the applied index, and what is split when a page is full; by chance it was 17.
    assert snapshot.wal_bytes(desk.store) / page_bytes / batches < 10


async def test_who_asks_again_too_late_is_told_that_the_outcome_is_unknown(tmp_path: Path) -> None:
    lab = RaftLab(tmp_path)
    lab.appliers = {**APPLIERS, **standing.APPLIERS}
    long_ago = 2 * OUTCOMES_KEPT
    with_state = tmp_path / A
    with_state.mkdir()
    store = Store(with_state / "state.sqlite", (SCHEMA,))
    store.writer.execute("insert into meta (k, v) values ('applied', ?)", [long_ago])
    own = Identity(A, "a", "grid-1", "office", b"", b"", b"", b"s" * 32)
    add = {"server": A, "name": "a", "grid_address": "a:1", "web_address": "a:2", "version": "0", "fingerprint": ""}
    newcomer = Command("server.add", CommandId("cmd-first"), 0, A, add)
    recover.begin_from(with_state, own, store, Origin(long_ago, 1, 0), newcomer)
    store.close()
    grid = await lab.begin(A)
    await eventually(lambda: grid.status().is_leader and grid.status().applied > long_ago)
    body = {"name": "heartbeat_ms", "value": 1234}
    with pytest.raises(OutcomeUnknown, match="ask for it anew"):
        await grid.propose("setting.set", body, by="anna", id=asked_at("cmd-old", 17))
    assert isinstance(await grid.propose("setting.set", body, by="anna"), Applied)
    await lab.close_all()
    assert not lab.fatal
