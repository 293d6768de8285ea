"""Personal desktops of three servers in one process: kept, copied, started elsewhere when their server is lost."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.errors import NotAllowed, Unavailable
from kmgr.grid.envelope import Rejected
from kmgr.ids import ServerId
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.model import Copy, CopyState, Desktop, DesktopState
from kmgr.provision.queries import copies, take_overs
from kmgr.users.broker import Ready, Wait
from tests.lab.whole_grid import BOOT_S, IDS, Lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await lab.create(kind="personal", standby=1)
    yield lab
    await lab.close()


@pytest.fixture
async def islands(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path, ids=IDS[:2], islands=True)
    await lab.create(kind="personal", standby=1)
    yield lab
    await lab.close()


async def given(lab: Lab, user: str = "anna") -> Desktop:
    """Return a user's desktop, once they have one."""
    for _ in range(60):
        answer = await lab.open(user, at=lab.ids.index(lab.alive()[0].id))
        if isinstance(answer, Ready):
            return answer.desktop
        await lab.wait(0.5)
    raise AssertionError("nobody was given a desktop")


def theirs(lab: Lab, user: str = "anna") -> Desktop:
    return next(d for d in lab.desktops() if d.user == user)


def copies_of(lab: Lab, desktop: Desktop, *states: CopyState) -> list[Copy]:
    with lab.alive()[0].grid.view() as db:
        return [copy for copy in copies(db, desktop=desktop.id) if not states or copy.state in states]


def running(lab: Lab, desktop: Desktop) -> list[ServerId]:
    """Return where a desktop runs at this moment, as no server but the lab can know."""
    found = []
    for server in lab.servers:
        domain = server.hypervisor._domains.get(desktop.id)
        if domain is not None and domain.state is DomainState.RUNNING:
            found.append(server.id)
    return found


async def protected(lab: Lab) -> Desktop:
    """Return Anna's desktop once it has a complete copy."""
    desktop = await given(lab)
    for _ in range(60):
        if copies_of(lab, desktop, CopyState.READY):
            return theirs(lab)
        await lab.wait(0.5)
    raise AssertionError("there is no copy")


def disk(lab: Lab, server: ServerId, desktop: Desktop) -> Path:
    return lab.at(server).folder / "desktops" / f"{desktop.id}.qcow2"


async def test_it_stays_its_users_through_a_log_out(lab: Lab) -> None:
    token = await lab.log_in("anna")
    first = await given(lab)
    await lab.servers[0].sessions.log_out(token)
    await lab.wait(90)
    again = await given(lab)
    assert again.id == first.id
    assert again.generation == 1
    assert running(lab, again) == [again.server]


async def test_a_standby_takes_the_place_of_one_that_became_somebodys(lab: Lab) -> None:
    anna, berta = await given(lab), await given(lab, "berta")
    assert anna.id != berta.id
    await lab.wait(2 * BOOT_S + 2)
    assert lab.count(DesktopState.READY) == 1
    assert lab.count(DesktopState.IN_USE) == 2


async def test_its_user_cannot_throw_it_away_and_an_administrator_confirms_whose_work_goes(lab: Lab) -> None:
    desktop = await given(lab)
    refused = await lab.propose("desktop.release", desktop=desktop.id, user="anna")
    assert isinstance(refused, Rejected)
    assert "kept" in refused.detail
    refused = await lab.propose("desktop.retire", desktop=desktop.id, why="by hand")
    assert isinstance(refused, Rejected)
    assert refused.code == "personal"
    await lab.do("desktop.retire", desktop=desktop.id, why="by hand", lose="anna")
    await lab.wait(15)
    assert desktop.id not in {d.id for d in lab.desktops()}
    assert copies_of(lab, desktop) == []
    assert not lab.disks.copies


async def test_it_has_one_safe_copy_on_another_server_that_stays_young(lab: Lab) -> None:
    desktop = await protected(lab)
    (copy,) = copies_of(lab, desktop)
    assert copy.server != desktop.server
    for _ in range(10):
        await lab.wait(15)
        [(point, _)] = lab.disks.copies.values()
        assert lab.clock.now_ms() - point.as_of <= 60_000
        age, cause = lab.at(desktop.server).protection.vitals()["extra"]["copies"][desktop.id]
        assert age <= 60
        assert cause == ""
    # Points are told to the log once in half a minute, not with every cycle.
    assert lab.at(desktop.server).mirror.cycles >= 8


async def test_a_copy_that_falls_behind_is_an_alarm_on_the_console_and_in_the_history(lab: Lab) -> None:
    desktop = await protected(lab)
    home = lab.at(desktop.server)
    home.mirror.fail = Unavailable("its disk is full", code="disk_full")
    await lab.wait(170)
    assert home.protection.problems() == ()
    before = home.mirror.cycles
    await lab.wait(40)
    (problem,) = home.protection.problems()
    assert "180 s" in problem
    assert "its disk is full" in problem
    assert desktop.name in problem
    # It is tried again once a minute at least.
    await lab.wait(61)
    assert home.mirror.cycles > before
    assert any("fall behind" in text for text in lab.texts("alarm"))
    home.mirror.fail = None
    await lab.wait(65)
    assert home.protection.problems() == ()
    assert any("up to date again" in text for text in lab.texts("alarm"))


async def test_when_its_server_is_lost_it_goes_on_from_the_copy_and_what_is_missing_is_told(lab: Lab) -> None:
    desktop = await protected(lab)
    home, holder = desktop.server, copies_of(lab, desktop)[0].server
    lab.disks.write(disk(lab, home, desktop), "saved")
    await lab.wait(45)
    lab.disks.write(disk(lab, home, desktop), "saved and lost")
    cut_at = lab.clock.now_ms()
    lab.cut(home)
    for _ in range(450):
        await lab.wait(0.1)
        assert len(running(lab, desktop)) <= 1
        if running(lab, desktop) == [holder]:
            break
    took_s = (lab.clock.now_ms() - cut_at) / 1000
    assert took_s < 30, "45 s are promised, with the boot of the guest"
    now = theirs(lab)
    assert (now.server, now.generation, now.state) == (holder, 2, DesktopState.IN_USE)
    assert lab.disks.content[disk(lab, holder, now)] == "saved"
    await lab.wait(3)
    with lab.at(holder).grid.view() as db:
        (taken,) = take_overs(db, desktop.id)
    assert taken.as_of is not None
    assert taken.as_of < cut_at <= taken.heard_at + 2000
    assert any("is missing" in text and "goes on" in text for text in lab.texts("copy"))
    assert isinstance(await lab.open("anna", at=lab.ids.index(holder)), Ready)


async def test_while_it_waits_its_user_is_told_and_given_no_other_one(lab: Lab) -> None:
    desktop = await protected(lab)
    lab.cut(desktop.server)
    await lab.wait(9)
    answer = await lab.open("anna", at=lab.ids.index(lab.alive()[0].id))
    assert isinstance(answer, Wait)
    assert "safe copy" in answer.reason
    assert sum(d.user == "anna" for d in lab.desktops()) == 1


async def test_without_a_copy_it_waits_for_its_server(lab: Lab) -> None:
    desktop = await given(lab)
    home = lab.at(desktop.server)
    home.mirror.fail = Unavailable("not yet")
    lab.disks.write(disk(lab, home.id, desktop), "work")
    lab.cut(home.id)
    await lab.wait(40)
    assert theirs(lab).server == home.id
    assert running(lab, desktop) == []
    answer = await lab.open("anna", at=lab.ids.index(lab.alive()[0].id))
    assert isinstance(answer, Wait)
    assert "comes back with it" in answer.reason
    lab.mend(home.id)
    await lab.wait(10)
    assert running(lab, desktop) == [home.id]
    assert theirs(lab).generation == 1


async def test_a_short_cut_halts_it_and_lets_it_go_on(lab: Lab) -> None:
    desktop = await protected(lab)
    lab.cut(desktop.server)
    await lab.wait(7)
    assert running(lab, desktop) == []
    assert lab.at(desktop.server).hypervisor._domains[desktop.id].state is DomainState.PAUSED
    lab.mend(desktop.server)
    await lab.wait(5)
    assert running(lab, desktop) == [desktop.server]
    assert theirs(lab).generation == 1


async def test_the_former_disk_is_kept_until_it_is_dropped_and_protection_turns_round(lab: Lab) -> None:
    desktop = await protected(lab)
    home = desktop.server
    lab.cut(home)
    await lab.wait(40)
    lab.mend(home)
    await lab.wait(20)
    aside = lab.at(home).folder / "superseded" / f"{desktop.id}.1.qcow2"
    assert aside.exists()
    assert desktop.id not in lab.at(home).domains()
    (superseded,) = copies_of(lab, desktop, CopyState.SUPERSEDED)
    assert (superseded.server, superseded.generation) == (home, 1)
    (copy,) = copies_of(lab, desktop, CopyState.READY)
    assert copy.generation == 2
    await lab.do("copy.drop", desktop=desktop.id, server=home, generation=1)
    await lab.wait(10)
    assert not aside.exists()
    assert copies_of(lab, desktop, CopyState.SUPERSEDED, CopyState.DROPPING) == []


async def test_back_and_forth_each_former_disk_is_kept(lab: Lab) -> None:
    desktop = await protected(lab)
    for generation in (1, 2, 3):
        now = theirs(lab)
        assert now.generation == generation
        lab.cut(now.server)
        await lab.wait(40)
        assert theirs(lab).server != now.server
        lab.mend(now.server)
        await lab.wait(20)
        assert running(lab, desktop) == [theirs(lab).server]
        assert copies_of(lab, desktop, CopyState.READY)
        assert (lab.at(now.server).folder / "superseded" / f"{desktop.id}.{generation}.qcow2").exists()


async def gone_on(lab: Lab) -> tuple[Desktop, ServerId]:
    """Return Anna's desktop after a failover, and the server that came back with its former disk."""
    desktop = await protected(lab)
    home = desktop.server
    disk(lab, home, desktop).write_text("before")
    lab.cut(home)
    await lab.wait(40)
    lab.mend(home)
    await lab.wait(20)
    return theirs(lab), home


def aside(lab: Lab, server: ServerId, desktop: Desktop, generation: int) -> Path:
    return lab.at(server).folder / "superseded" / f"{desktop.id}.{generation}.qcow2"


async def test_a_former_disk_is_put_back_and_the_present_one_kept_in_its_place(lab: Lab) -> None:
    desktop, home = await gone_on(lab)
    now = desktop.server
    disk(lab, now, desktop).write_text("after")
    await lab.do("desktop.put_back", desktop=desktop.id, generation=2, server=home, disk=1)
    refused = await lab.propose("desktop.retry", desktop=desktop.id)
    assert isinstance(refused, Rejected)
    for _ in range(200):
        await lab.wait(0.1)
        assert len(running(lab, desktop)) <= 1
    found = theirs(lab)
    assert (found.server, found.generation, found.state) == (home, 4, DesktopState.IN_USE)
    assert running(lab, desktop) == [home]
    assert disk(lab, home, desktop).read_text() == "before"
    assert not aside(lab, home, desktop, 1).exists()
    assert aside(lab, now, desktop, 2).read_text() == "after"
    await lab.wait(30)
    # Protected again, and both ways are in the history; the other one can be put back as well.
    (copy,) = copies_of(lab, desktop, CopyState.READY)
    assert copy.generation == 4
    assert any("root has the former disk" in text for text in lab.texts("copy"))
    assert any(f"goes on on {home[4:]}, with the disk that it had there" in text for text in lab.texts("copy"))
    await lab.do("desktop.put_back", desktop=desktop.id, generation=4, server=now, disk=2)
    await lab.wait(20)
    assert running(lab, desktop) == [now]
    assert disk(lab, now, desktop).read_text() == "after"


async def test_it_is_put_back_also_if_its_server_or_a_daemon_dies_meanwhile(lab: Lab) -> None:
    desktop, home = await gone_on(lab)
    now = desktop.server
    lab.cut(now)
    await lab.do("desktop.put_back", desktop=desktop.id, generation=2, server=home, disk=1)
    # Cut off, it does not know; its lease is waited out like that of any lost server.
    for _ in range(300):
        await lab.wait(0.1)
        assert len(running(lab, desktop)) <= 1
        if theirs(lab).server == home:
            await lab.at(home).stop()
            await lab.at(home).start()
            break
    await lab.wait(20)
    assert running(lab, desktop) == [home]
    assert disk(lab, home, desktop).read_text() == "before"
    lab.mend(now)
    await lab.wait(20)
    assert running(lab, desktop) == [home]
    assert aside(lab, now, desktop, 2).exists()


async def test_a_former_disk_is_no_reason_to_forget_a_desktop_and_goes_only_by_hand(lab: Lab) -> None:
    desktop, home = await gone_on(lab)
    await lab.do("desktop.put_back", desktop=desktop.id, generation=2, server=home, disk=1)
    await lab.wait(20)
    now = theirs(lab)
    other = desktop.server
    lab.at(home).mirror.fail = Unavailable("no")
    await lab.power_cut(home)
    await lab.wait(20)
    await lab.do("server.remove", server=home)
    await lab.wait(20)
    # The server that had it is gone for good; what it left behind on another one is all that there is.
    assert theirs(lab).id == now.id
    assert aside(lab, other, desktop, 2).exists()
    await lab.do("desktop.put_back", desktop=desktop.id, generation=theirs(lab).generation, server=other, disk=2)
    await lab.wait(30)
    assert running(lab, desktop) == [other]


async def test_an_island_that_ends_starts_nothing_by_what_it_believed(tmp_path: Path) -> None:
    # The lease is back a second before the island's view of the grid is given up.
    lab = Lab(tmp_path, islands=True)
    await lab.create(kind="personal", standby=1)
    desktop = await protected(lab)
    for turn in range(6):
        home = theirs(lab).server
        lab.cut(home)
        await lab.wait(40)
        assert theirs(lab).server != home
        lab.mend(home)
        for _ in range(200):
            await lab.wait(0.1)
            assert len(running(lab, desktop)) <= 1
        await lab.wait(5 + turn * 0.3)
    await lab.close()


async def test_a_daemon_that_dies_leaves_the_halting_to_the_guard(lab: Lab) -> None:
    desktop = await protected(lab)
    home = lab.at(desktop.server)
    lab.cut(home.id)
    await home.stop()  # the daemon is killed; the guest runs on
    assert running(lab, desktop) == [home.id]
    for _ in range(400):
        await lab.wait(0.1)
        assert len(running(lab, desktop)) <= 1
    # A daemon that is not there is silent: the desktop goes on elsewhere, after it was halted.
    assert running(lab, desktop) == [theirs(lab).server] != [home.id]


async def test_a_drained_holder_is_replaced_before_its_copy_goes(lab: Lab) -> None:
    desktop = await protected(lab)
    (old,) = copies_of(lab, desktop)
    await lab.do("server.drain", server=old.server)
    for _ in range(100):
        await lab.wait(0.1)
        assert copies_of(lab, desktop, CopyState.READY), "there is always a complete one"
    (new,) = copies_of(lab, desktop)
    assert new.server not in (old.server, desktop.server)


async def test_of_two_servers_each_goes_on_with_its_own_and_starts_nobody_elses(islands: Lab) -> None:
    lab = islands
    desktop = await protected(lab)
    home = lab.at(desktop.server)
    other = next(server for server in lab.servers if server is not home)
    lab.cut(home.id)
    for _ in range(300):
        await lab.wait(0.1)
        assert running(lab, desktop) == [home.id]
    assert home.grid.status().island
    assert other.grid.status().island
    with pytest.raises(NotAllowed, match="another server could be running yours"):
        await lab.open("anna", at=lab.ids.index(other.id))
    answer = await lab.open("anna", at=lab.ids.index(home.id))
    assert isinstance(answer, Ready)
    assert answer.desktop.id == desktop.id
    lab.mend(home.id)
    await lab.wait(15)
    assert running(lab, desktop) == [home.id]
    assert [d.generation for d in lab.desktops() if d.user == "anna"] == [1]


async def test_of_two_servers_a_daemon_that_is_started_again_goes_on_alone_unless_the_power_was_cut(
    islands: Lab,
) -> None:
    lab = islands
    desktop = await protected(lab)
    home = lab.at(desktop.server)
    lab.cut(home.id)
    await lab.wait(10)
    await home.stop()
    await lab.wait(8)
    assert running(lab, desktop) == [], "the guard has halted it"
    await home.start()
    await lab.wait(8)
    assert running(lab, desktop) == [home.id]
    await home.stop()
    await lab.power_cut(home.id)
    await home.start()
    await lab.wait(20)
    assert running(lab, desktop) == [], "an older copy of everything may have been put back meanwhile"
    lab.mend(home.id)
    await lab.wait(15)
    assert running(lab, desktop) == [home.id]


@pytest.fixture
async def with_third(tmp_path: Path) -> AsyncIterator[Lab]:
    """Two voters and a third server that does not vote yet."""
    lab = Lab(tmp_path, islands=True)
    lab.log.voteless.add(IDS[2])
    await lab.create(kind="personal", standby=1)
    yield lab
    await lab.close()


async def test_a_third_vote_of_which_one_of_two_has_not_heard_takes_nothing_over(with_third: Lab) -> None:
    lab = with_third
    desktop = await protected_on(lab, IDS[0])
    lab.cut(IDS[0])
    lab.log.voteless.clear()
    for _ in range(400):
        await lab.wait(0.1)
        assert running(lab, desktop) == [IDS[0]]
    assert lab.server_states()[IDS[0]] == "lost"
    answer = await lab.open("anna", at=1)
    assert isinstance(answer, Wait)
    assert "once an administrator has said that a is off" in answer.reason
    lab.mend(IDS[0])
    await lab.wait(15)
    # It has heard of the third vote, and given its tenure back: now it is as with any three.
    assert running(lab, desktop) == [IDS[0]]
    lab.cut(IDS[0])
    await lab.wait(40)
    assert running(lab, desktop) == [theirs(lab).server] != [IDS[0]]


async def test_an_administrators_word_that_it_is_off_takes_over_what_one_of_two_ran(with_third: Lab) -> None:
    lab = with_third
    desktop = await protected_on(lab, IDS[0])
    refused = await lab.propose("tenure.end", server=IDS[0])
    assert isinstance(refused, Rejected)
    assert "the grid hears from it" in refused.detail
    await lab.power_cut(IDS[0])
    lab.log.voteless.clear()
    await lab.wait(40)
    assert theirs(lab).server == IDS[0]
    await lab.do("tenure.end", server=IDS[0])
    await lab.wait(7)
    assert theirs(lab).server == IDS[0], "what it may have been granted before is waited out"
    await lab.wait(20)
    assert running(lab, desktop) == [theirs(lab).server] != [IDS[0]]


async def protected_on(lab: Lab, server: ServerId) -> Desktop:
    """Return a desktop of Anna's with a copy, on this server: the only one that is given any at first."""
    for other in lab.ids:
        if other != server:
            await lab.do("server.drain", server=other)
    await given(lab)
    for other in lab.ids:
        await lab.do("server.undrain", server=other)
    desktop = await protected(lab)
    assert desktop.server == server
    return desktop


async def test_a_guest_that_stands_still_after_a_copy_is_told_with_the_cure_and_when_it_goes_on(lab: Lab) -> None:
    desktop = await protected(lab)
    home = lab.at(desktop.server)
    home.mirror.hanging[desktop.id] = lab.clock.now_ms() - 12_000
    await lab.wait(2)
    told = [problem for problem in home.protection.problems() if desktop.name in problem]
    assert len(told) == 1
    assert "qemu-guest-agent" in told[0]
    home.mirror.hanging.clear()
    await lab.wait(2)
    assert home.protection.problems() == ()
    with home.grid.view() as db:
        texts = [str(row["text"]) for row in db.query("select text from events where kind = 'alarm' order by n")]
    assert [
        f"the file systems of desktop {desktop.name} {how}" in text
        for how, text in zip(("stand still", "go on"), texts[-2:], strict=True)
    ] == [True, True]
