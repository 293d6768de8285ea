"""From "I want a desktop" to one desktop, or to an honest word about the wait."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.errors import NotAllowed, NotFound, Unavailable
from kmgr.ids import DesktopId
from kmgr.provision.model import DesktopState
from kmgr.provision.queries import asks, desktops
from kmgr.users.broker import Answer, Broker, Ready, Wait
from kmgr.users.model import Role
from tests.lab.people import SERVERS, Office, a_person

ANNA, BEN, BOSS = a_person("anna", "staff"), a_person("ben"), a_person("boss", role=Role.ADMIN)


class Desk:
    """Brokers at three servers; anna may use `office`."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self.at = [Broker(grid, clock=office.clock) for grid in office.grids]
        self.broker = self.at[0]
        self.before = len(office.log.entries)

    async def wait(self, template: str = "office") -> Wait:
        answer = await self.broker.open(ANNA, template)
        assert isinstance(answer, Wait)
        return answer

    async def ready(self, template: str = "office") -> Ready:
        answer = await self.broker.open(ANNA, template)
        assert isinstance(answer, Ready)
        return answer

    def asks(self) -> list[tuple[str, int, int]]:
        with self.office.grid.view() as db:
            return [(ask.user, ask.since, ask.at) for ask in asks(db)]

    def states(self) -> list[DesktopState]:
        with self.office.grid.view() as db:
            return [d.state for d in desktops(db)]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    office = Office(tmp_path)
    await office.open()
    await office.give("anna")
    yield Desk(office)
    office.close()


# Who gets what


async def test_a_ready_desktop_is_claimed_and_found_again(desk: Desk) -> None:
    made = await desk.office.standby()
    first = await desk.ready("office")
    again = await desk.ready("tpl-office")
    assert (first.desktop.id, first.new, first.desktop.user) == (made, True, "anna")
    assert (again.desktop.id, again.new) == (made, False)


async def test_however_many_ask_at_three_servers_one_person_gets_one_desktop(desk: Desk) -> None:
    for server in SERVERS:
        await desk.office.standby(server=server)
    asks = [broker.open(ANNA, "office") for broker in desk.at * 20]
    answers: list[Answer] = await asyncio.gather(*asks)
    got = {answer.desktop.id for answer in answers if isinstance(answer, Ready)}
    assert len(got) == 1
    assert all(isinstance(answer, Ready) for answer in answers)
    assert sum(answer.new for answer in answers if isinstance(answer, Ready)) == 1
    assert desk.states().count(DesktopState.IN_USE) == 1


async def test_many_people_get_one_desktop_each_and_the_rest_wait(desk: Desk) -> None:
    await desk.office.give("", kind="everyone")
    for server in SERVERS:
        await desk.office.standby(server=server)
    people = [a_person(f"user-{n}") for n in range(5)]
    answers = await asyncio.gather(*(desk.at[n % 3].open(person, "office") for n, person in enumerate(people)))
    got = [answer.desktop.id for answer in answers if isinstance(answer, Ready)]
    assert len(got) == len(set(got)) == 3


async def test_the_wait_for_a_standby_that_boots_again_is_counted_from_now(desk: Desk) -> None:
    made = await desk.office.standby(took_s=40)
    await desk.office.clock.advance(7 * 24 * 3600)
    await desk.office.do("desktop.building", desktop=made, generation=1, server=SERVERS[0])
    await desk.office.clock.advance(10)
    assert await desk.broker.open(ANNA, "office") == Wait(30, "Your desktop is being prepared.")


async def test_what_is_not_given_is_refused_with_the_reason(desk: Desk) -> None:
    await desk.office.standby()
    with pytest.raises(NotAllowed, match="given neither to ben nor to one of their groups"):
        await desk.broker.open(BEN, "office")
    with pytest.raises(NotAllowed):
        await desk.broker.open(BOSS, "office")
    with pytest.raises(NotFound, match="no template nothing"):
        await desk.broker.open(ANNA, "nothing")
    assert desk.broker.verdict(ANNA, "office").reason == "it is given to anna"
    assert not desk.broker.verdict(BEN, "office").allowed


async def test_offers_carry_reason_standby_and_the_persons_own_desktop(desk: Desk) -> None:
    await desk.office.template("lab")
    await desk.office.template("secret")
    await desk.office.give("staff", kind="group", template="tpl-lab")
    await desk.office.standby()
    await desk.office.standby()
    await desk.ready()
    lab, office = desk.broker.offers(ANNA)
    assert (lab.template.name, lab.standby, lab.desktop, lab.reason) == (
        *("lab", 0, None),
        "it is given to the group staff",
    )
    assert (office.template.name, office.standby) == ("office", 1)
    assert office.desktop is not None
    assert office.desktop.user == "anna"
    assert desk.broker.offers(BOSS) == ()


async def test_a_lost_servers_desktops_are_neither_offered_nor_found_again(desk: Desk) -> None:
    await desk.office.standby(server=SERVERS[2])
    await desk.ready()
    await desk.office.standby(server=SERVERS[2])
    await desk.office.do("server.lost", server=SERVERS[2])
    (office,) = desk.broker.offers(ANNA)
    assert (office.desktop, office.standby) == (None, 0)
    await desk.office.standby(server=SERVERS[1])
    assert (await desk.ready()).desktop.server == SERVERS[1]


async def test_a_template_that_is_switched_off_gives_nothing_new_but_keeps_what_is_used(desk: Desk) -> None:
    made = await desk.office.standby()
    await desk.ready()
    await desk.office.standby()
    await desk.office.give("ben")
    await desk.office.do("template.update", template="tpl-office", enabled=False)
    assert (await desk.ready()).desktop.id == made
    assert [offer.desktop.id for offer in desk.broker.offers(ANNA) if offer.desktop] == [made]
    with pytest.raises(NotAllowed, match="switched off"):
        await desk.broker.open(BEN, "office")
    assert desk.broker.offers(BEN) == ()


async def test_without_a_majority_one_finds_ones_desktop_and_gets_no_new_one(desk: Desk) -> None:
    made = await desk.office.standby()
    await desk.ready()
    await desk.office.standby()
    await desk.office.give("ben")
    desk.office.log.cut_off = set(SERVERS[1:])
    assert (await desk.ready()).desktop.id == made
    with pytest.raises(Unavailable):
        await desk.broker.open(BEN, "office")


# Seeing and giving back


async def test_somebody_elses_desktop_does_not_exist(desk: Desk) -> None:
    made = DesktopId(await desk.office.standby())
    await desk.ready()
    with pytest.raises(NotFound) as others:
        desk.broker.see(BEN, made)
    with pytest.raises(NotFound) as unknown:
        desk.broker.see(BEN, DesktopId("dsk-0"))
    assert others.value.message.replace(made, "dsk-0") == unknown.value.message
    with pytest.raises(NotFound):
        await desk.broker.release(BEN, made)
    assert desk.broker.see(ANNA, made).id == made
    assert desk.broker.see(BOSS, made).id == made


async def test_a_standby_is_nobodys_but_an_administrators(desk: Desk) -> None:
    made = DesktopId(await desk.office.standby())
    with pytest.raises(NotFound):
        desk.broker.see(ANNA, made)
    assert desk.broker.see(BOSS, made).user is None


@pytest.mark.parametrize("who", [ANNA, BOSS])
async def test_a_desktop_is_given_back_by_its_user_or_an_administrator(desk: Desk, who: object) -> None:
    made = DesktopId(await desk.office.standby())
    await desk.ready()
    person = ANNA if who is ANNA else BOSS
    for _ in range(2):
        await desk.broker.release(person, made)
    assert desk.states() == [DesktopState.RETIRED]


# Waiting


async def test_nothing_ready_and_nothing_on_its_way_promises_nothing(desk: Desk) -> None:
    answer = await desk.wait()
    assert answer.estimate_s is None
    assert "as soon as there is room" in answer.reason


async def test_a_desktop_on_its_way_counts_down_by_what_it_usually_takes(desk: Desk) -> None:
    for seconds in (20, 40, 30):
        made = await desk.office.standby(took_s=seconds)
        await desk.office.do("desktop.retire", desktop=made, why="test")
    await desk.office.placed()
    assert (await desk.wait()).estimate_s == 30
    await desk.office.clock.advance(12)
    assert await desk.wait() == Wait(18, "Your desktop is being prepared.")


async def test_the_first_build_of_all_is_guessed(desk: Desk) -> None:
    await desk.office.placed()
    assert (await desk.wait()).estimate_s == 60


async def test_what_is_overdue_is_counted_once_more_and_then_not_promised(desk: Desk) -> None:
    await desk.office.placed()
    seen = []
    for _ in range(13):
        seen.append((await desk.wait()).estimate_s)
        await desk.office.clock.advance(10)
    assert seen == [60, 50, 40, 30, 20, 10, 60, 50, 40, 30, 20, 10, None]
    assert "longer than usual" in (await desk.wait()).reason


async def test_a_desktop_that_is_tried_again_starts_anew(desk: Desk) -> None:
    report = await desk.office.placed()
    await desk.office.clock.advance(500)
    await desk.office.do("desktop.failed", **report, step="boot", cause="no answer")
    await desk.office.do("desktop.retry", desktop=report["desktop"])
    assert (await desk.wait()).estimate_s == 60
    again = {**report, "generation": 2}
    await desk.office.do("desktop.building", **again)
    await desk.office.clock.advance(20)
    await desk.office.do("desktop.ready", **again)
    await desk.ready()
    await desk.office.do("desktop.retire", desktop=report["desktop"], why="test")
    await desk.office.placed()
    assert (await desk.wait()).estimate_s == 60


async def test_the_maximum_is_told(desk: Desk) -> None:
    await desk.office.do("template.update", template="tpl-office", standby=1, maximum=2)
    for user in ("ben", "clara"):
        await desk.office.standby()
        await desk.office.do("desktop.claim", user=user, template="tpl-office")
    assert await desk.wait() == Wait(None, "All 2 desktops of office are in use. Try again later.")


async def test_whoever_waits_is_noted_and_said_again_once_a_minute(desk: Desk) -> None:
    await desk.office.do("template.update", template="tpl-office", standby=0)
    begun = desk.office.clock.now_ms()
    for _ in range(20):
        assert "as soon as there is room" in (await desk.wait()).reason
        await desk.office.clock.advance(5)
    assert desk.asks() == [("anna", begun, begun + 60_000)]
    assert len(desk.office.log.entries) == desk.before + 1 + 20 + 2
    await desk.office.standby()
    await desk.ready()
    assert desk.asks() == []
    given = desk.office.clock.now_ms()
    await desk.broker.release(ANNA, (await desk.ready()).desktop.id)
    await desk.wait()
    assert desk.asks() == [("anna", given, given)]


async def test_who_waits_longer_is_served_first_in_what_others_are_told(desk: Desk) -> None:
    await desk.office.give("", kind="everyone")
    await desk.wait()
    await desk.office.placed()
    await desk.office.clock.advance(10)
    behind = await desk.at[1].open(BEN, "office")
    assert isinstance(behind, Wait)
    assert behind.estimate_s is None
    assert (await desk.wait()).estimate_s == 50
    await desk.office.placed()
    behind = await desk.at[1].open(BEN, "office")
    assert behind == Wait(60, "Your desktop is being prepared.")
    await desk.office.do("template.update", template="tpl-office", maximum=2)
    late = await desk.broker.open(a_person("carl"), "office")
    assert late == Wait(None, "All 2 desktops of office are in use or on their way to others. Try again later.")


async def test_a_broken_template_is_told(desk: Desk) -> None:
    await desk.office.placed()
    await desk.office.do("template.broken", template="tpl-office", version="ver-1", cause="kernel panic")
    answer = await desk.wait()
    assert answer.estimate_s is None
    assert "cannot be prepared" in answer.reason
    assert "panic" not in answer.reason


async def test_no_server_is_told(desk: Desk) -> None:
    for server in SERVERS:
        await desk.office.do("server.drain", server=server)
    answer = await desk.wait()
    assert answer.estimate_s is None
    assert "No server" in answer.reason
