"""How many desktops one person may have at once, and what desktops are called."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.errors import NotAllowed
from kmgr.grid.envelope import Applied
from kmgr.ids import ServerId
from kmgr.provision.queries import asks, desktops
from kmgr.templates.policy import policy_of, to_json
from kmgr.users.broker import Broker, Ready
from tests.lab.outcomes import rejected
from tests.lab.people import Office, a_person
from tests.lab.state import State


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    await office.open()
    await office.template("lab")
    for template in ("tpl-office", "tpl-lab"):
        await office.give("anna", template=template)
        await office.standby(template)
    yield office
    office.close()


def state(most: int = 1) -> State:
    made = State()
    server = made.server("a")
    made.do("setting.set", name="desktops_per_user", value=most)
    for template in ("office", "lab"):
        made.template(template)
        made.desktop(f"tpl-{template}", server)
    return made


async def test_who_has_as_many_as_they_may_is_told_which_and_what_to_do(office: Office) -> None:
    await office.do("setting.set", name="desktops_per_user", value=1)
    broker = Broker(office.grid, clock=office.clock)
    first = await broker.open(a_person("anna"), "office")
    assert isinstance(first, Ready)
    with pytest.raises(
        NotAllowed, match=f"You have {first.desktop.name}, .* one desktop at once: give one back"
    ) as no:
        await broker.open(a_person("anna"), "lab")
    assert no.value.code == "quota"
    assert isinstance(await broker.open(a_person("anna"), "office"), Ready)
    await broker.release(a_person("anna"), first.desktop.id)
    assert isinstance(await broker.open(a_person("anna"), "lab"), Ready)


async def test_without_a_limit_everybody_may_have_one_of_each(office: Office) -> None:
    broker = Broker(office.grid, clock=office.clock)
    assert all([isinstance(await broker.open(a_person("anna"), name), Ready) for name in ("office", "lab")])


def test_no_desktop_is_begun_for_somebody_who_may_not_have_it() -> None:
    made = state()
    assert isinstance(made.do("desktop.claim", user="anna", template="tpl-office"), Applied)
    made.db.execute("update desktops set state = 'building' where template = 'tpl-lab'")
    assert "office" not in rejected(made.do("desktop.ask", user="anna", template="tpl-lab"), "quota")
    assert asks(made.db) == ()
    assert isinstance(made.do("desktop.ask", user="anna", template="tpl-office"), Applied)


def test_a_pooled_desktop_of_a_lost_server_is_nobodys_but_a_personal_one_stays() -> None:
    made = state()
    made.do("desktop.claim", user="anna", template="tpl-office")
    made.become(ServerId("srv-a"), "lost")
    made.desktop("tpl-lab", made.server("b"))
    made.db.execute("update desktops set kind = 'personal' where user = 'anna'")
    assert "You have" in rejected(made.do("desktop.claim", user="anna", template="tpl-lab"), "quota")
    made.db.execute("update desktops set kind = 'pooled' where user = 'anna'")
    assert isinstance(made.do("desktop.claim", user="anna", template="tpl-lab"), Applied)


def named(pattern: str, *taken: str) -> list[str]:
    """Return the names of three desktops that are placed under a pattern."""
    made = State()
    server = made.server("a")
    made.version("ver-1", [server])
    policy = to_json(policy_of({"name_pattern": pattern}))
    made.template("office", policy=policy, next_number=1)
    made.template("other")
    for name in taken:
        old = made.desktop("tpl-other", server)
        made.db.execute("update desktops set name = ? where id = ?", [name, old])
    for n in range(3):
        body = {"template": "tpl-office", "version": "ver-1", "server": "srv-a"}
        assert isinstance(made.do("desktop.place", desktop=f"dsk-x{n}", **body), Applied)
    return sorted(d.name for d in desktops(made.db) if d.template == "tpl-office")


def test_desktops_are_called_as_the_pattern_says() -> None:
    assert named("PC-{number:3}") == ["PC-001", "PC-002", "PC-003"]
    assert named("{template}-{number}") == ["office-1", "office-2", "office-3"]


def test_no_two_computers_have_one_name_whatever_their_letters() -> None:
    assert named("PC-{number}", "pc-2", "PC-4") == ["PC-1", "PC-3", "PC-5"]
