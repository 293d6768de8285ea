"""A log-in, a loss, a publication, seen through: all agents of three servers in one process."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.errors import Unavailable
from kmgr.provision.model import DesktopState
from kmgr.users.broker import Ready, Wait
from tests.lab.whole_grid import BOOT_S, IDS, Lab

A, B, C = IDS
READY, IN_USE, BROKEN, RETIRED = (
    DesktopState.READY,
    DesktopState.IN_USE,
    DesktopState.BROKEN,
    DesktopState.RETIRED,
)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await lab.create()
    yield lab
    await lab.close()


async def filled(lab: Lab, standby: int = 3) -> None:
    for _ in range(60):
        if lab.count(READY) == standby and not lab.desktops(DesktopState.PLACED, DesktopState.BUILDING, RETIRED):
            return
        await lab.wait(0.5)
    raise AssertionError(f"the pool is not full: {[(d.name, d.server, d.state.value) for d in lab.desktops()]}")


async def test_a_new_template_gets_its_standbys_one_on_each_server(lab: Lab) -> None:
    await filled(lab)
    assert {d.server for d in lab.desktops(READY)} == set(IDS)
    assert [len(server.domains()) for server in lab.servers] == [1, 1, 1]


async def test_a_claim_is_refilled_within_a_second_of_work(lab: Lab) -> None:
    await filled(lab)
    answer = await lab.open("anna", at=1)
    assert isinstance(answer, Ready)
    assert answer.new
    await lab.wait(1)
    assert len(lab.desktops(DesktopState.PLACED, DesktopState.BUILDING)) == 1
    await lab.wait(BOOT_S + 1)
    assert lab.count(READY) == 3


async def test_parallel_clicks_at_three_servers_give_one_desktop(lab: Lab) -> None:
    await filled(lab)
    answers = await asyncio.gather(*(lab.open("anna", at=at) for at in (0, 1, 2)))
    assert len({answer.desktop.id for answer in answers if isinstance(answer, Ready)}) == 1
    assert sum(answer.new for answer in answers if isinstance(answer, Ready)) == 1
    assert lab.count(IN_USE) == 1


async def test_a_desktop_is_thrown_away_at_log_out_and_a_fresh_one_made(lab: Lab) -> None:
    await filled(lab)
    token = await lab.log_in("anna", at=2)
    answer = await lab.open("anna", at=2)
    assert isinstance(answer, Ready)
    await lab.servers[0].sessions.log_out(token)
    await filled(lab)
    assert answer.desktop.id not in {d.id for d in lab.desktops()}
    assert answer.desktop.id not in lab.at(answer.desktop.server).domains()
    assert answer.desktop.id not in lab.at(answer.desktop.server).overlays()


async def test_a_lost_server_is_refilled_elsewhere_and_cleaned_up_when_it_returns(lab: Lab) -> None:
    await filled(lab)
    answer = await lab.open("anna")
    assert isinstance(answer, Ready)
    await filled(lab)
    home = answer.desktop.server
    lab.cut(home)
    await lab.wait(9)
    assert lab.server_states()[home] == "lost"
    # What is left is given out at once; the rest is being made.
    again = await lab.open("anna", at=IDS.index(lab.alive()[0].id))
    assert isinstance(again, Ready)
    assert again.desktop.server != home
    await lab.wait(2 * BOOT_S)
    assert sum(d.server != home for d in lab.desktops(READY)) == 3
    old = lab.at(home).domains()
    assert answer.desktop.id in old
    lab.mend(home)
    await filled(lab)
    assert not set(old) & set(lab.at(home).domains())
    assert not set(old) & set(lab.at(home).overlays())
    assert [d.id for d in lab.desktops(IN_USE)] == [again.desktop.id]


async def test_a_server_that_lost_power_comes_back_with_nothing_of_the_old(lab: Lab) -> None:
    await filled(lab)
    await lab.power_cut(C)
    await lab.wait(9 + 2 * BOOT_S)
    assert sum(d.server != C for d in lab.desktops(READY)) == 3
    await lab.power_on(C)
    await filled(lab)
    with lab.at(C).grid.view() as db:
        kept = {row["id"] for row in db.query("select id from desktops where server = ?", [C])}
    assert set(lab.at(C).domains()) == kept


async def test_a_short_power_cut_costs_nobody_a_desktop(lab: Lab) -> None:
    await filled(lab)
    before = {d.id for d in lab.desktops()}
    await lab.power_cut(B)
    await lab.wait(4)
    await lab.power_on(B)
    await lab.wait(10)
    assert {d.id for d in lab.desktops()} == before
    assert all(status.state == "running" for status in await lab.at(B).hypervisor.domains())


async def test_the_leader_dies_with_its_desktops_and_the_next_one_refills(lab: Lab) -> None:
    await filled(lab)
    answer = await lab.open("anna", at=1)
    assert isinstance(answer, Ready)
    lab.cut(A)
    await lab.wait(12 + 2 * BOOT_S)
    assert lab.server_states()[A] == "lost"
    assert sum(d.server != A for d in lab.desktops(READY)) == 3
    again = await lab.open("anna", at=1)
    assert isinstance(again, Ready)
    assert again.new == (answer.desktop.server == A)
    lab.mend(A)
    await filled(lab)
    assert lab.count(IN_USE) == 1


async def test_the_leader_dies_while_it_publishes_and_the_next_one_goes_on(lab: Lab) -> None:
    await filled(lab)
    await lab.version("ver-2", IDS)
    await lab.do("template.publish", template="tpl-1", version="ver-2")
    await lab.wait(0.3)
    lab.cut(A)
    await lab.wait(30)
    fresh = [d for d in lab.desktops(READY) if d.server != A]
    assert [d.version for d in fresh] == ["ver-2"] * 3


async def test_a_minority_changes_nothing_and_says_so(lab: Lab) -> None:
    await filled(lab)
    lab.cut(B)
    lab.cut(C)
    with pytest.raises(Unavailable):
        await lab.open("anna")
    before = len(lab.log.entries)
    await lab.wait(20)
    assert len(lab.log.entries) == before
    lab.mend(B)
    lab.mend(C)
    await lab.wait(3)
    assert isinstance(await lab.open("anna"), Ready)


async def test_nothing_is_placed_where_the_hypervisor_is_down_until_it_answers_again(lab: Lab) -> None:
    await filled(lab)
    lab.at(B).hypervisor.down = "libvirt does not answer: is libvirtd running?"
    await lab.wait(4)
    on_b = {d.id for d in lab.desktops() if d.server == B}
    await lab.do("template.update", template="tpl-1", standby=6)
    await lab.wait(2 * BOOT_S + 4)
    assert lab.count(READY) == 6
    assert {d.id for d in lab.desktops() if d.server == B} == on_b
    lab.at(B).hypervisor.down = ""
    await lab.wait(4)
    await lab.do("template.update", template="tpl-1", standby=7)
    await lab.wait(BOOT_S + 3)
    assert lab.count(READY, B) == 2


async def test_desktops_stuck_at_a_sick_hypervisor_are_made_elsewhere(lab: Lab) -> None:
    await filled(lab)
    await lab.do("template.update", template="tpl-1", standby=6)
    await lab.wait(1)
    assert any(d.server == C for d in lab.desktops(DesktopState.PLACED, DesktopState.BUILDING))
    lab.at(C).hypervisor.down = "libvirt does not answer: is libvirtd running?"
    await lab.wait(15)
    assert lab.count(READY) == 6
    lab.at(C).hypervisor.down = ""
    await filled(lab, 6)


async def test_after_three_failures_in_a_row_one_alarm_stops_the_refill(lab: Lab) -> None:
    await filled(lab)
    for server in lab.servers:
        server.hypervisor.fail["start"] = "the image does not boot"
    await lab.do("template.update", template="tpl-1", standby=6)
    await lab.wait(20)
    alarms = lab.texts("alarm")
    assert len(alarms) == 1
    assert "the image does not boot" in alarms[0]
    assert lab.count(BROKEN) == 3
    assert lab.count(READY) == 3
    before = len(lab.log.entries)
    await lab.wait(20)
    assert len(lab.log.entries) == before
    for server in lab.servers:
        server.hypervisor.fail.clear()
    await lab.do("template.mend", template="tpl-1")
    await filled(lab, 6)


async def test_only_the_newest_three_broken_desktops_are_kept_to_look_at(lab: Lab) -> None:
    await filled(lab)
    await lab.do("setting.set", name="build_failures", value=8)
    for server in lab.servers:
        server.hypervisor.fail["start"] = "the image does not boot"
    await lab.do("template.update", template="tpl-1", standby=4)
    await lab.wait(30)
    assert len(lab.texts("alarm")) == 1
    assert lab.count(BROKEN) == 3


async def test_a_publication_rolls_without_emptying_the_pool(lab: Lab) -> None:
    await filled(lab)
    answer = await lab.open("anna")
    assert isinstance(answer, Ready)
    await filled(lab)
    await lab.version("ver-2", (A,))
    await lab.do("template.publish", template="tpl-1", version="ver-2")
    for _ in range(200):
        await lab.clock.advance(0.1)
        assert lab.count(READY) >= 3
    await filled(lab)
    assert [d.version for d in lab.desktops(READY)] == ["ver-2"] * 3
    assert [d.version for d in lab.desktops(IN_USE)] == ["ver-1"]


async def test_a_publication_rolls_at_the_maximum_one_by_one(lab: Lab) -> None:
    await lab.do("template.update", template="tpl-1", standby=4, maximum=4)
    await filled(lab, 4)
    await lab.version("ver-2", IDS)
    await lab.do("template.publish", template="tpl-1", version="ver-2")
    for _ in range(400):
        await lab.clock.advance(0.1)
        assert lab.count(READY) >= 3
    await filled(lab, 4)
    assert [d.version for d in lab.desktops(READY)] == ["ver-2"] * 4


@pytest.mark.parametrize("kept", [0, 1], ids=["nothing is kept for a loss", "a loss would need it"])
async def test_a_publication_rolls_where_memory_is_full(lab: Lab, kept: int) -> None:
    await lab.do("setting.set", name="keep_for_loss", value=kept)
    await filled(lab)
    for server in lab.servers:
        server.room = {**server.room, "memory_mib": 256 + 1500, "memory_free_mib": 1500}
    await lab.wait(2)
    await lab.version("ver-2", IDS)
    await lab.do("template.publish", template="tpl-1", version="ver-2")
    for _ in range(300):
        await lab.clock.advance(0.1)
        assert lab.count(READY) >= 2
    await filled(lab)
    assert [d.version for d in lab.desktops(READY)] == ["ver-2"] * 3


async def test_a_drained_server_becomes_empty_and_its_users_work_on_elsewhere(lab: Lab) -> None:
    await filled(lab)
    answer = await lab.open("anna")
    assert isinstance(answer, Ready)
    await lab.do("server.drain", server=answer.desktop.server)
    await filled(lab)
    home = answer.desktop.server
    await lab.wait(3)
    assert [d for d in lab.desktops() if d.server == home] == []
    assert lab.at(home).domains() == []
    again = await lab.open("anna", at=2)
    assert isinstance(again, Ready)
    assert again.desktop.id == answer.desktop.id
    assert again.desktop.id in lab.at(again.desktop.server).domains()


async def test_a_drained_server_becomes_empty_but_for_whom_cannot_be_moved(lab: Lab) -> None:
    await filled(lab)
    answer = await lab.open("anna")
    assert isinstance(answer, Ready)
    lab.at(answer.desktop.server).migrations.fail["traits"] = "QEMU says no"
    await lab.do("server.drain", server=answer.desktop.server)
    await filled(lab)
    home = answer.desktop.server
    assert [d.id for d in lab.desktops() if d.server == home] == [answer.desktop.id]
    again = await lab.open("anna", at=2)
    assert isinstance(again, Ready)
    assert again.desktop.id == answer.desktop.id
    await lab.do("desktop.release", desktop=answer.desktop.id, user="anna")
    await lab.wait(3)
    assert lab.at(home).domains() == []


async def test_desktops_of_a_removed_server_are_forgotten_and_made_elsewhere(lab: Lab) -> None:
    await filled(lab)
    lab.cut(C)
    await lab.do("server.remove", server=C)
    await lab.wait(1)
    await filled(lab)
    assert {d.server for d in lab.desktops()} == {A, B}


async def test_switching_a_template_off_and_lowering_it_retires_what_nobody_uses(lab: Lab) -> None:
    await filled(lab)
    await lab.do("template.update", template="tpl-1", standby=1)
    await filled(lab, 1)
    assert isinstance(await lab.open("anna"), Ready)
    await lab.do("template.update", template="tpl-1", enabled=False)
    await filled(lab, 0)
    assert lab.count(IN_USE) == 1


async def test_the_user_who_finds_nothing_ready_is_told_how_long_it_takes(lab: Lab) -> None:
    await filled(lab)
    for user in ("anna", "berta", "carl"):
        assert isinstance(await lab.open(user), Ready)
    await lab.wait(0.5)
    answer = await lab.open("dora")
    assert isinstance(answer, Wait)
    assert answer.estimate_s is not None
    assert answer.estimate_s <= BOOT_S + 2
    await lab.wait(answer.estimate_s + 2)
    assert isinstance(await lab.open("dora"), Ready)


async def test_people_get_desktops_of_a_template_of_which_none_stand_by(lab: Lab) -> None:
    await lab.do("template.update", template="tpl-1", standby=0)
    await filled(lab, 0)
    people = ("anna", "berta", "carl")
    got: dict[str, Ready] = {}
    for _ in range(20):
        for at, user in enumerate(people):
            answer = await lab.open(user, at)
            if isinstance(answer, Ready):
                got[user] = answer
            elif lab.count(IN_USE) == 0 and lab.desktops():
                assert answer.estimate_s is not None
        if len(got) == len(people):
            break
        await lab.wait(1)
    assert len({answer.desktop.id for answer in got.values()}) == 3
    await lab.wait(BOOT_S + 2)
    assert lab.count(IN_USE) == len(lab.desktops()) == 3


async def test_more_people_than_standbys_are_all_served_at_once(lab: Lab) -> None:
    await lab.do("template.update", template="tpl-1", standby=1)
    await filled(lab, 1)
    people = [f"user-{n}" for n in range(5)]
    for user in people:
        await lab.open(user)
    await lab.wait(1)
    assert len(lab.desktops(DesktopState.PLACED, DesktopState.BUILDING)) == 5
    await lab.wait(2 * BOOT_S + 2)
    assert all([isinstance(await lab.open(user), Ready) for user in people])
    await filled(lab, 1)


async def test_a_desktop_for_somebody_who_went_away_does_not_stay(lab: Lab) -> None:
    await lab.do("template.update", template="tpl-1", standby=0)
    await filled(lab, 0)
    assert isinstance(await lab.open("anna"), Wait)
    await filled(lab, 1)
    await lab.wait(185)
    await filled(lab, 0)


async def test_without_room_the_log_stays_quiet(lab: Lab) -> None:
    for server in lab.servers:
        server.room = {**server.room, "memory_free_mib": 0}
    await lab.wait(2)
    await filled(lab, lab.count(READY))
    await lab.do("template.update", template="tpl-1", standby=8)
    await lab.wait(1)
    before = len(lab.log.entries)
    await lab.wait(20)
    assert len(lab.log.entries) == before


async def test_standbys_spread_as_the_golden_image_reaches_more_servers(lab: Lab) -> None:
    await filled(lab)
    await lab.version("ver-2", (A,))
    await lab.do("template.publish", template="tpl-1", version="ver-2")
    await lab.wait(15)
    assert [d.server for d in lab.desktops(READY)] == [A, A, A]
    await lab.hand_out("ver-2", B)
    await lab.hand_out("ver-2", C)
    for _ in range(200):
        await lab.clock.advance(0.1)
        assert lab.count(READY) >= 3
    assert {d.server for d in lab.desktops(READY)} == {A, B, C}


async def test_a_server_that_returns_gets_standbys_again(lab: Lab) -> None:
    await filled(lab)
    lab.cut(C)
    await lab.wait(20)
    assert {d.server for d in lab.desktops(READY)} == {A, B}
    lab.mend(C)
    await lab.wait(20)
    await filled(lab)
    assert {d.server for d in lab.desktops(READY)} == {A, B, C}
