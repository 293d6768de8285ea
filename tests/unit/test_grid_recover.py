"""Going on without a majority: the whole log is kept, a cut leaves before or after, and epochs never mix."""

import os
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.daemon.recovery import Answer, refuse_if_needless
from kmgr.errors import ConfigError, Refused, Unavailable
from kmgr.grid import fence, recover, standing
from kmgr.grid.backup import Backup, copy_state, pack, unpack
from kmgr.grid.commands import APPLIERS
from kmgr.grid.envelope import Command, encode
from kmgr.grid.fence import Adopt, Fenced, Greeting, Refuse, Welcome
from kmgr.grid.identity import Identity
from kmgr.grid.model import Server, ServerState
from kmgr.grid.queries import servers
from kmgr.grid.raft.journal import ENVELOPE, Journal
from kmgr.grid.raft.logfile import LogFile
from kmgr.grid.raft.records import Entry
from kmgr.grid.recover import Finding, Origin
from kmgr.grid.schema import SCHEMA
from kmgr.grid.standpoint import Standpoint
from kmgr.grid.wire import CALL, Guardian
from kmgr.ids import CommandId, ServerId
from tests.lab.raft_lab import A, B, C, RaftLab, eventually, put
from tests.lab.wires import Wires

NOW = 1_764_000_000_000
D, E = ServerId("srv-d"), ServerId("srv-e")
VOTERS = frozenset({A, B, C, D, E})


def own(server: ServerId) -> Identity:
    return Identity(server, server[4:], "grid-1", "office", b"", b"", b"", b"s" * 32)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[RaftLab]:
    lab = RaftLab(tmp_path)
    lab.appliers = {**APPLIERS, **standing.APPLIERS}
    yield lab
    await lab.close_all()
    assert not lab.fatal


async def grown(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    leader = await lab.led()
    for server in (A, B, C):
        body = {
            "server": server, "name": server[4:], "grid_address": f"{server}:1", "web_address": f"{server}:2",
            "version": "0", "fingerprint": "",
        }  # fmt: skip
        await leader.propose("server.add", body, by="test")
    for value in range(1001, 1021):
        await put(leader, value)
    await lab.level()


def journal_of(folder: Path) -> Journal:
    journal = Journal.open(LogFile(folder / "raft" / "journal"))
    journal.abandon()
    return journal


async def test_the_last_server_goes_on_alone_with_everything_it_had(lab: RaftLab) -> None:
    await grown(lab)
    for server in (A, B, C):
        await lab.kill(server)
    found = recover.examine(lab.folder / C, own(C), (SCHEMA,))
    assert found.voters == {A, B, C}
    assert {s.id for s in found.others} == {A, B}
    assert found.lacking(C, ()) == 1
    assert found.lacking(C, [A]) == 0
    assert recover.recover(lab.folder / C, own(C), (SCHEMA,), now_ms=NOW) == 1

    grid = await lab.begin(C)
    await eventually(lambda: grid.status().is_leader and grid.status().majority)
    assert grid.epoch == 1
    assert grid.status().voters == (C,)
    assert grid.status().term > recover.TERM_LEAP
    await put(grid, 2000)
    assert lab.value(C) == 2000
    with grid.view() as db:
        assert {s.id: s.state for s in servers(db, removed=True) if s.id != C} == dict.fromkeys(
            (A, B), ServerState.REMOVED
        )
        last = standing.recovery(db)
    assert last is not None
    assert (last.epoch, last.at, last.name, last.how) == (1, NOW, "c", "recovered")


async def test_a_folder_that_was_put_back_to_an_older_copy_is_said_to_be_one(lab: RaftLab) -> None:
    await grown(lab)
    for server in (A, B, C):
        await lab.kill(server)
    assert recover.examine(lab.folder / C, own(C), (SCHEMA,)).doubt is None
    journal = Journal.open(LogFile(lab.folder / C / "raft" / "journal"))
    journal.set_doubt(A)
    journal.close()
    assert recover.examine(lab.folder / C, own(C), (SCHEMA,)).doubt == A


def with_a_late_entry(lab: RaftLab, server: ServerId) -> tuple[int, int]:
    """Add an entry to a dead server's log of which it does not know whether it was agreed on; (term, index) of it."""
    journal = Journal.open(LogFile(lab.folder / server / "raft" / "journal"))
    command = Command("setting.set", CommandId("cmd-late"), NOW, "test", {"name": "heartbeat_ms", "value": 1777})
    journal.add(Entry(ENVELOPE + encode(command), journal.last.index + 1, journal.term))
    journal.close()
    return journal.last.term, journal.last.index


async def test_entries_that_nobody_is_known_to_have_agreed_on_are_kept_and_applied(lab: RaftLab) -> None:
    await grown(lab)
    for server in (A, B, C):
        await lab.kill(server)
    with_a_late_entry(lab, C)
    recover.recover(lab.folder / C, own(C), (SCHEMA,), now_ms=NOW)
    grid = await lab.begin(C)
    await eventually(lambda: grid.status().is_leader)
    assert lab.value(C) == 1777


async def test_a_new_server_joins_a_recovered_grid_and_learns_of_it_from_the_log(lab: RaftLab) -> None:
    await grown(lab)
    for server in (A, B, C):
        await lab.kill(server)
    recover.recover(lab.folder / C, own(C), (SCHEMA,), now_ms=NOW)
    grid = await lab.begin(C)
    await eventually(lambda: grid.status().is_leader)
    newcomer = ServerId("srv-d")
    other = await lab.begin(newcomer)
    was_fresh = other.fresh
    assert was_fresh
    await other.adopt_epoch(grid.epoch)
    await grid.add_voter(newcomer)
    await lab.level()
    assert other.epoch == 1
    assert not other.fresh
    await lab.kill(newcomer)
    again = await lab.begin(newcomer)
    assert again.epoch == 1
    await again.adopt_epoch(7)
    assert again.epoch == 1


async def test_killed_anywhere_a_server_is_not_recovered_or_wholly(lab: RaftLab, tmp_path: Path) -> None:
    await grown(lab)
    for server in (A, B, C):
        await lab.kill(server)
    before, states = journal_of(lab.folder / C), []
    for step in range(200):
        folder = tmp_path / f"cut-{step}"
        lab.copy(C, folder)
        finished = _killed_at(step, folder)
        journal = journal_of(folder)
        recovered = journal.epoch == 1
        states.append(recovered)
        assert journal.entries[: len(before.entries)] == before.entries
        if recovered:
            assert journal.voters() == {C}
            assert journal.term > recover.TERM_LEAP
        else:
            assert (journal.voters(), journal.term, journal.vote) == (before.voters(), before.term, before.vote)
            assert recover.recover(folder, own(C), (SCHEMA,), now_ms=NOW) == 1
        shutil.rmtree(folder)
        if finished:
            break
    # Both sides of the one step that decides were seen, and nothing goes back.
    assert states == sorted(states)
    assert {False, True} == set(states)
    assert len(states) > 5


def _killed_at(step: int, folder: Path) -> bool:
    """Recover in a child that dies at its `step`-th touch of the folder; True if it lived to the end."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event in {"open", "os.rename", "os.remove", "os.chmod", "sqlite3.connect"} and str(folder) in str(
                arguments
            ):
                if seen == step:
                    os._exit(9)
                seen += 1

        sys.addaudithook(hook)
        try:
            recover.recover(folder, own(C), (SCHEMA,), now_ms=NOW)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_server_without_a_log_has_nothing_to_recover(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="lost its disk"):
        recover.examine(tmp_path, own(A), (SCHEMA,))
    (tmp_path / "raft").mkdir()
    Journal.create(LogFile(tmp_path / "raft" / "journal"), None).close()
    with pytest.raises(Refused, match="had not received anything"):
        recover.recover(tmp_path, own(A), (SCHEMA,), now_ms=NOW)


# ── which survivor ──


def finding(end: tuple[int, int]) -> Finding:
    others = tuple(Server(s, s[4:], f"{s}:1", "", ServerState.UP, "", "", 0, 0) for s in (A, B, D, E) if s != C)
    return Finding(epoch=0, last=end[1], last_term=end[0], committed=1, voters=VOTERS, others=others)


def answering(server: ServerId, end: tuple[int, int]) -> Answer:
    return Answer(next(s for s in finding((0, 0)).others if s.id == server), end)


def test_the_survivor_with_the_newest_last_entry_is_the_one_to_recover_as_in_an_election() -> None:
    def judged(here: tuple[int, int], *there: tuple[int, int]) -> str:
        answers = tuple(answering(server, end) for server, end in zip((D, E), there, strict=False))
        try:
            refuse_if_needless(own(C), finding(here), answers)
        except Refused as error:
            return error.message
        return ""

    assert judged((3, 40)) == ""
    assert judged((3, 40), (3, 40)) == ""
    assert judged((3, 40), (3, 39)) == ""
    assert "server d" in judged((3, 40), (3, 41))
    # The longer log may be the older one: what it has more was never agreed on.
    assert judged((3, 40), (2, 90)) == ""
    assert "entry 30 of term 4" in judged((3, 40), (4, 30))


async def test_a_survivor_tells_of_entries_that_it_does_not_know_to_be_agreed_on(lab: RaftLab) -> None:
    await grown(lab)
    for server in (A, B, C):
        await lab.kill(server)
    # The leader acknowledged an entry that C had as well, and died with B before it could say so.
    told = with_a_late_entry(lab, C)
    grid = await lab.begin(C)
    assert grid.status().applied < told[1]
    assert Standpoint(grid, lab.folder / C, left_behind=pytest.fail).greeting().end == told
    assert fence.read(fence.spell(Greeting("1", end=told))[4:]).end == told
    assert grid.end == told


# ── greetings ──


def test_what_two_servers_make_of_each_other() -> None:
    old, new = Greeting("1"), Greeting("1", epoch=1, recovered_at=NOW, recovered_by="one")
    assert fence.judge(old, old) == Welcome()
    assert fence.judge(new, new) == Welcome()
    assert isinstance(fence.judge(new, old), Refuse)
    found = fence.judge(old, new)
    assert isinstance(found, Fenced)
    assert "recovered without this server on 24 Nov 2025" in found.words
    assert "by server one" in found.words
    fresh = Greeting("1", fresh=True)
    assert fence.judge(fresh, new) == Adopt(1)
    assert fence.judge(new, fresh) == Welcome()
    foreign = fence.judge(old, Greeting("9", protocol=2))
    assert isinstance(foreign, Refuse)
    assert "same version" in foreign.words


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"null", b'{"version":1}', b"\xff", b'{"version":"1","epoch":-1}']
)
def test_what_is_no_greeting_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        fence.read(data)


class Standing(Guardian):
    def __init__(self, greeting: Greeting) -> None:
        self.says = greeting
        self.heard: list[str] = []

    def greeting(self) -> Greeting:
        return self.says

    async def adopt(self, epoch: int) -> None:
        self.says = Greeting(self.says.version, epoch=epoch)

    def fenced(self, words: str) -> None:
        self.heard.append(words)


@pytest.mark.parametrize("dialler", ["old", "new"])
async def test_servers_of_two_epochs_part_whoever_calls(tmp_path: Path, dialler: str) -> None:
    wires = Wires(tmp_path)
    old, new = wires.port(A), wires.port(B)
    sides = Standing(Greeting("1")), Standing(Greeting("1", epoch=1, recovered_by="b"))
    for port, side in zip((old, new), sides, strict=True):
        port.guardian = side
        port.handle_raft(lambda _: pytest.fail("they talked"))
        await wires.start(port)
    caller, called = (old, B) if dialler == "old" else (new, A)
    with pytest.raises(Unavailable, match="recovered without this server") as caught:
        await caller.dial_raft(called)
    assert caught.value.code == ("fenced" if dialler == "old" else "epoch")
    await eventually(lambda: sides[0].heard)
    assert "kmgr reset" in sides[0].heard[0]
    assert not sides[1].heard
    await wires.stop()


async def test_a_newcomer_takes_over_the_epoch_it_meets(tmp_path: Path) -> None:
    wires = Wires(tmp_path)
    fresh, new = wires.port(A), wires.port(B)
    side = Standing(Greeting("1", fresh=True))
    fresh.guardian, new.guardian = side, Standing(Greeting("1", epoch=3))

    async def wait(connection: object) -> None:
        return None

    new.handle(CALL, wait)
    await wires.start(new)
    connection = await fresh.dial(B, CALL)
    assert side.says.epoch == 3
    connection.cut()
    await wires.stop()


# ── backups ──


def test_a_backup_is_read_back_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    state = tmp_path / "state.sqlite"
    db = sqlite3.connect(state)
    db.executescript("create table meta (k text primary key, v integer); insert into meta values ('applied', 41);")
    db.close()
    copied = tmp_path / "copy.sqlite"
    assert copy_state(state, copied) == 41
    assert copied.stat().st_mode & 0o777 == 0o600
    made = Backup("grid-1", "office", "one", NOW, "0", Origin(41, 3, 0), b"CA", b"s" * 32)
    file = tmp_path / "backup.tar"
    pack(file, made, copied)
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open("rb") as source:
        assert unpack(source, tmp_path / "out.sqlite") == made
    with pytest.raises(Refused, match="exists already"):
        pack(file, made, copied)

    half = tmp_path / "half.tar"
    half.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with half.open("rb") as source, pytest.raises(ConfigError, match="damaged"):
        unpack(source, tmp_path / "half.sqlite")
    (tmp_path / "letter.tar").write_bytes(b"Dear administrator" * 100)
    with (tmp_path / "letter.tar").open("rb") as source, pytest.raises(ConfigError, match="no backup"):
        unpack(source, tmp_path / "half.sqlite")
