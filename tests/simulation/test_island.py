"""Two servers, one truth: each goes on alone when the other is gone, and afterwards both agree on what happened."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.errors import NotAllowed, Unavailable
from kmgr.grid.local import LocalGrid
from kmgr.grid.queries import events
from kmgr.ids import AccountName, ServerId
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.queries import desktops
from kmgr.users.broker import Answer, Ready, Wait
from kmgr.users.model import Person, Role
from kmgr.users.queries import sessions
from tests.lab.whole_grid import BOOT_S, IDS, Lab, Simulated

A, B, C = IDS
READY, IN_USE, RETIRED = DesktopState.READY, DesktopState.IN_USE, DesktopState.RETIRED
ENTER_S = 5.0
BACK_S = 3.0


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Lab]:
    """Two servers with a standby each."""
    async for lab in grown(tmp_path, (A, B), standby=2):
        yield lab


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Lab]:
    """Three servers with a standby each."""
    async for lab in grown(tmp_path, IDS, standby=3):
        yield lab


async def grown(folder: Path, ids: tuple[ServerId, ...], *, standby: int) -> AsyncIterator[Lab]:
    lab = Lab(folder, ids=ids, islands=True)
    await lab.create(standby=standby)
    await filled(lab, standby)
    yield lab
    await lab.close()


async def filled(lab: Lab, standby: int) -> None:
    for _ in range(80):
        if lab.count(READY) == standby and not lab.desktops(DesktopState.PLACED, DesktopState.BUILDING, RETIRED):
            return
        await lab.wait(0.5)
    raise AssertionError(f"the pool is not full: {[(d.name, d.server, d.state.value) for d in lab.desktops()]}")


async def opened(server: Simulated, user: str) -> Answer:
    person = Person(AccountName(user), user, (), Role.USER, "corp")
    return await server.broker.open(person, "office")


async def given(server: Simulated, user: str) -> Desktop:
    answer = await opened(server, user)
    assert isinstance(answer, Ready), answer
    return answer.desktop


def seen(server: Simulated, *states: DesktopState) -> list[Desktop]:
    with server.grid.view() as db:
        return [d for d in desktops(db) if not states or d.state in states]


def used_by(server: Simulated, user: str) -> list[Desktop]:
    return [d for d in seen(server, IN_USE) if d.user == user]


def dump(grid: LocalGrid) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of a server's own copy of the grid's state."""
    with grid.view() as db:
        return {table: sorted(db.execute(f"select * from {table}").fetchall()) for table in db.table_names()}  # noqa: S608


def agreed(lab: Lab) -> None:
    """Hold that all servers have the same state, and that nobody is an island any more."""
    first, *others = [dump(server.log) for server in lab.servers]
    assert all(other == first for other in others)
    for server in lab.servers:
        assert not server.grid.status().island
        with server.grid.view() as db:
            assert dict(db.query("select k, v from meta where k = 'applied'").__next__())["v"] == len(lab.log.entries)


def history(server: Simulated) -> list[str]:
    with server.log.view() as db:
        return [event.text for event in reversed(events(db, limit=1000))]


async def entered(lab: Lab, server: ServerId) -> Simulated:
    await lab.wait(ENTER_S)
    assert lab.at(server).grid.status().island
    return lab.at(server)


async def test_when_one_of_two_dies_a_new_user_logs_in_at_the_other_and_works_within_ten_seconds(two: Lab) -> None:
    began = two.clock.monotonic()
    await two.power_cut(A)
    survivor = two.at(B)
    two.directory.add("dora", "the right password")
    token = ""
    while not token:
        await two.wait(0.5)
        try:
            token, _ = await survivor.sessions.log_in("dora", "the right password", address="10.0.0.9")
        except Unavailable:
            assert two.clock.monotonic() - began < 10
    desktop = await given(survivor, "dora")
    assert two.clock.monotonic() - began < 10
    assert desktop.server == B
    assert survivor.sessions.session_of(token) is not None
    # A fresh standby is on its way at once, within what was agreed on.
    await two.wait(2 + BOOT_S)
    assert [d.server for d in seen(survivor, READY)].count(B) == 1
    # What everybody must agree on waits, and the reason is told.
    with pytest.raises(Unavailable, match="Changes of the configuration wait until a majority is back") as refused:
        await survivor.grid.propose("template.update", {"template": "tpl-1", "standby": 5}, by="root")
    assert "without a)" in refused.value.message
    assert "witness" in refused.value.message
    assert "Changes of the configuration wait" in survivor.board.all()[B].problems[0]
    # The other one returns: one state, and the history has it all.
    await two.power_on(A)
    await two.wait(BACK_S + 2)
    agreed(two)
    assert used_by(two.at(A), "dora")[0].id == desktop.id
    assert two.at(A).sessions.session_of(token) is not None
    told = history(two.at(A))
    assert "dora logged in from 10.0.0.9 (b was cut off)" in told
    assert f"dora got desktop {desktop.name} (b was cut off)" in told
    assert any(text.startswith("b is no longer cut off") for text in told)
    await survivor.grid.propose("template.update", {"template": "tpl-1", "standby": 3}, by="root")


async def test_a_short_loss_makes_no_island(two: Lab) -> None:
    two.cut(A)
    await two.wait(3)
    with pytest.raises(Unavailable):
        await opened(two.at(B), "anna")
    two.mend(A)
    await two.wait(1)
    assert not two.at(B).grid.status().island
    assert (await given(two.at(B), "anna")).state is IN_USE


async def test_a_majority_that_flaps_neither_hides_the_loss_nor_ends_the_island(two: Lab) -> None:
    two.cut(A)
    for _ in range(4):
        await two.wait(1)
        two.mend(A)
        await two.wait(0.3)
        two.cut(A)
    await two.wait(1)
    assert two.at(B).grid.status().island
    for _ in range(4):
        two.mend(A)
        await two.wait(0.4)
        two.cut(A)
        await two.wait(0.4)
        assert two.at(B).grid.status().island
    two.mend(A)
    await two.wait(BACK_S)
    agreed(two)


async def test_both_sides_of_a_split_are_islands_and_a_user_of_both_keeps_one_desktop(two: Lab) -> None:
    two.cut(A)
    two.cut(B)
    left, right = await entered(two, A), await entered(two, B)
    first, second = await given(left, "anna"), await given(right, "anna")
    assert (first.server, second.server) == (A, B)
    await two.wait(2 + BOOT_S)
    berta = await given(right, "berta")
    two.mend(A)
    two.mend(B)
    await two.wait(BACK_S + 2)
    agreed(two)
    kept = used_by(left, "anna")
    assert len(kept) == 1
    assert kept[0].id in {first.id, second.id}
    assert [d.id for d in used_by(left, "berta")] == [berta.id]
    names = [d.name for d in seen(left)]
    assert len(names) == len(set(names))
    await filled(two, 2)


async def test_the_one_that_is_looked_at_stays(two: Lab) -> None:
    two.cut(A)
    two.cut(B)
    left, right = await entered(two, A), await entered(two, B)
    first, second = await given(left, "anna"), await given(right, "anna")
    right.connected.add(second.id)
    # The left one settles first, so without a look at it the right one would go.
    two.mend(A)
    two.mend(B)
    await two.wait(BACK_S + 2)
    agreed(two)
    assert [d.id for d in used_by(left, "anna")] == [second.id]
    assert first.id not in {d.id for d in seen(left, IN_USE)}


async def test_who_finds_none_ready_on_an_island_that_was_just_restarted_hears_so_at_once(two: Lab) -> None:
    two.cut(A)
    survivor = await entered(two, B)
    await given(survivor, "anna")
    await survivor.stop()
    await survivor.start()
    assert survivor.grid.status().island
    async with asyncio.timeout(5):  # no time of the lab passes
        assert isinstance(await opened(survivor, "ben"), Wait)


async def test_who_had_a_desktop_on_the_dead_server_gets_another_one_and_keeps_it(two: Lab) -> None:
    old = await given(two.at(A), "anna")
    if old.server == B:
        old = await given(two.at(A), "berta")
    user = str(old.user)
    await filled(two, 2)
    await two.power_cut(A)
    survivor = await entered(two, B)
    assert old.server == A
    new = await given(survivor, user)
    assert new.server == B
    await two.power_on(A)
    await two.wait(BACK_S + 2)
    agreed(two)
    assert [d.id for d in used_by(survivor, user)] == [new.id]
    await filled(two, 2)
    assert old.id not in two.at(A).domains()


async def test_killed_as_an_island_it_goes_on_as_one(two: Lab) -> None:
    two.cut(A)
    survivor = await entered(two, B)
    desktop = await given(survivor, "anna")
    token = await two.log_in("anna", at=1)
    await survivor.stop()
    await survivor.start()
    assert survivor.grid.status().island
    assert [d.id for d in used_by(survivor, "anna")] == [desktop.id]
    assert survivor.sessions.session_of(token) is not None
    two.mend(A)
    await two.wait(BACK_S)
    agreed(two)
    assert used_by(two.at(A), "anna")[0].id == desktop.id


async def test_a_log_out_on_the_island_ends_desktop_and_session_everywhere(two: Lab) -> None:
    before = await two.log_in("anna", at=0)
    two.cut(A)
    survivor = await entered(two, B)
    desktop = await given(survivor, "anna")
    await survivor.sessions.log_out(before)
    assert survivor.sessions.session_of(before) is None
    await two.wait(2)
    assert desktop.id not in survivor.domains()
    two.mend(A)
    await two.wait(BACK_S)
    agreed(two)
    assert two.at(A).sessions.session_of(before) is None
    assert desktop.id not in {d.id for d in seen(two.at(A))}


async def test_a_minority_of_three_goes_on_and_what_the_majority_retired_stays_with_its_user(three: Lab) -> None:
    three.cut(C)
    alone = await entered(three, C)
    desktop = await given(alone, "anna")
    await three.wait(6)
    assert three.server_states()[C] == "lost"
    assert next(d for d in seen(three.at(A)) if d.id == desktop.id).state is RETIRED
    three.mend(C)
    await three.wait(BACK_S + 6)
    agreed(three)
    assert three.server_states()[C] == "up"
    assert [d.id for d in used_by(three.at(A), "anna")] == [desktop.id]
    assert desktop.id in alone.domains()
    await filled(three, 3)


async def test_a_user_who_went_on_with_the_majority_keeps_that_one(three: Lab) -> None:
    three.cut(C)
    alone = await entered(three, C)
    there = await given(alone, "anna")
    await three.wait(6)
    here = await given(three.at(A), "anna")
    three.mend(C)
    await three.wait(BACK_S + 4)
    agreed(three)
    assert [d.id for d in used_by(three.at(B), "anna")] == [here.id]
    await filled(three, 3)
    assert there.id not in alone.domains()


async def test_changes_of_the_majority_meanwhile_count(three: Lab) -> None:
    await three.do(
        "account.create", name="carl", display_name="Carl", role="admin", groups=[], password_hash="old",
    )  # fmt: skip
    await three.do(
        "account.create", name="root", display_name="Root", role="admin", groups=[], password_hash="x",
    )  # fmt: skip
    three.cut(C)
    alone = await entered(three, C)
    carl = {"name": "carl", "display_name": "Carl", "groups": [], "role": "admin", "source": "built-in"}
    for token in ("first", "second"):
        body = {"hash": token, **carl, "address": "", "server": C, "expires_at": three.clock.now_ms() + 10**8}
        await alone.grid.propose("session.open", body, by="carl")
    with alone.grid.view() as db:
        assert len(sessions(db)) == 2
    desktop = await given(alone, "anna")
    await three.do("account.update", name="carl", disabled=True)
    await three.do("template.delete", template="tpl-1")
    three.mend(C)
    await three.wait(BACK_S + 3)
    agreed(three)
    with alone.grid.view() as db:
        assert sessions(db) == ()
    # Its template is gone, but somebody works on it; nobody else's is left.
    assert [d.id for d in seen(three.at(A))] == [desktop.id]
    assert "a session of carl has ended: the account was changed while its server was cut off" in history(alone)


async def test_a_desktop_that_the_grid_gave_away_before_it_heard_is_not_anybody_elses(two: Lab) -> None:
    await two.power_cut(A)
    survivor = await entered(two, B)
    desktop = await given(survivor, "anna")
    await two.power_on(A)
    # The log still believes that it stands by.
    other = None
    for user in ("berta", "carl", "emil"):
        answer = await opened(two.at(A), user)
        if isinstance(answer, Ready) and answer.desktop.id == desktop.id:
            other = user
    assert other is not None
    await two.wait(BACK_S)
    agreed(two)
    assert [d.user for d in seen(survivor, IN_USE) if d.id == desktop.id] == ["anna"]
    assert any(f"is not {other}'s" in text for text in history(survivor))


async def test_the_island_is_the_only_authority_on_its_own_desktops_alone(two: Lab) -> None:
    far = next(d for d in seen(two.at(B), READY) if d.server == A)
    two.cut(A)
    survivor = await entered(two, B)
    with pytest.raises(NotAllowed, match="cut off from it"):
        await survivor.grid.propose("desktop.retire", {"desktop": far.id, "why": "test"}, by="root")
    with pytest.raises(NotAllowed):
        body = {"desktop": "dsk-x", "template": "tpl-1", "version": "ver-1", "server": A}
        await survivor.grid.propose("desktop.place", body, by="root")
    for word, asked in (("server.remove", {"server": A}), ("desktop.stray", {"desktop": "x", "server": B})):
        with pytest.raises(Unavailable):
            await survivor.grid.propose(word, asked, by="root")


async def test_a_server_that_is_still_joining_and_one_without_others_are_no_islands(tmp_path: Path) -> None:
    lab = Lab(tmp_path, ids=(A, B), islands=True)
    for one in lab.servers:
        await one.start()
    for server in (A, B):
        where = {"grid_address": f"{server}:1", "web_address": f"{server}:2"}
        await lab.do("server.add", server=server, name=server[4:], **where, version="1", fingerprint="")
    await lab.do("server.up", server=A)
    lab.cut(A)
    lab.cut(B)
    await lab.wait(15)
    assert lab.at(A).grid.status().island
    assert not lab.at(B).grid.status().island
    lab.log.cut_off.clear()
    await lab.wait(BACK_S)
    await lab.do("server.remove", server=B)
    lab.cut(A)
    await lab.wait(15)
    assert not lab.at(A).grid.status().island
    lab.log.cut_off.clear()
    await lab.close()


async def test_many_users_at_once_on_an_island_never_exceed_what_was_agreed(two: Lab) -> None:
    two.cut(A)
    survivor = await entered(two, B)
    for number in range(12):
        await opened(survivor, f"user-{number}")
        await two.wait(1 + BOOT_S)
    mine = [d for d in seen(survivor) if d.server == B and d.state is not RETIRED]
    # Eight are the most; the other server has one of them.
    assert len(mine) == 7
    two.mend(A)
    await asyncio.sleep(0)
    await two.wait(BACK_S + 2)
    agreed(two)
    assert len(seen(two.at(A), IN_USE)) == 7
