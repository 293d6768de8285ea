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


def claimed(made: State, user: str, template: str = "office", *groups: str) -> str:
    """Claim; return the name of the desktop, or why there is none."""
    outcome = made.do("desktop.claim", user=user, template=f"tpl-{template}", groups=list(groups))
    return rejected(outcome, "quota") if not isinstance(outcome, Applied) else str(outcome.values["desktop"])


def pool(templates: int = 3, each: int = 4) -> State:
    """Return templates `t0`, `t1` …, of each of which some are ready."""
    made = State()
    server = made.server("a")
    for n in range(templates):
        made.template(f"t{n}")
        for _ in range(each):
            made.desktop(f"tpl-t{n}", server)
    return made


def quota(made: State, whom: str, subject: str, most: int, template: str = "") -> None:
    assert isinstance(made.do("quota.set", whom=whom, subject=subject, template=template, most=most), Applied)


def test_what_is_said_of_a_person_counts_before_their_groups_and_these_before_the_usual() -> None:
    made = pool()
    made.do("setting.set", name="desktops_per_user", value=1)
    quota(made, "member", "Staff", 2)
    quota(made, "member", "guests", 0)
    quota(made, "user", "root", 3)
    assert claimed(made, "anna", "t0").startswith("dsk-")
    assert "and everybody may have one desktop at once" in claimed(made, "anna", "t1")
    assert claimed(made, "anna", "t1", "STAFF", "guests").startswith("dsk-"), "of several groups the widest counts"
    assert "everybody in your groups may have 2 desktops at once" in claimed(made, "anna", "t2", "staff")
    assert "Everybody in your groups may have no desktop" in claimed(made, "gast", "t0", "guests")
    for name in ("t0", "t1", "t2"):
        assert claimed(made, "root", name, "guests").startswith("dsk-")
    assert claimed(made, "anna", "t0", "guests").startswith("dsk-"), "what somebody has is theirs to open"
    assert isinstance(made.do("quota.drop", whom="member", subject="staff", template=""), Applied)
    assert "everybody may have one desktop" in claimed(made, "anna", "t2", "staff")


def test_a_group_together_has_so_many_of_a_template_and_of_all() -> None:
    made = pool()
    quota(made, "group", "7a", 2, "tpl-t0")
    quota(made, "group", "7a", 3)
    assert claimed(made, "a", "t0", "7A").startswith("dsk-")
    second = claimed(made, "b", "t0", "7a", "choir")
    assert second.startswith("dsk-")
    assert "The group 7a has 2 desktops of t0, and may have 2 at once" in claimed(made, "c", "t0", "7a")
    assert claimed(made, "teacher", "t0", "staff").startswith("dsk-"), "others are not counted"
    assert claimed(made, "c", "t1", "7a").startswith("dsk-")
    assert "The group 7a has 3 desktops, and may have 3" in claimed(made, "d", "t1", "7a")
    assert "has 3 desktops" in rejected(
        made.do("desktop.ask", user="d", template="tpl-t1", groups=["7a"]), "quota"
    ), "nor does waiting help"
    assert isinstance(made.do("desktop.release", desktop=second, user="b"), Applied)
    assert claimed(made, "d", "t1", "7a").startswith("dsk-")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"whom": "cat"}, "user, member, group"),
        ({"subject": ""}, "for somebody"),
        ({"subject": None}, "for somebody"),
        ({"most": -1}, "number of desktops"),
        ({"most": True}, "number of desktops"),
        ({"template": "tpl-t0"}, "of each template a person has one desktop at most"),
        ({"whom": "group", "template": "tpl-none"}, "no template"),
    ],
)
def test_a_quota_that_means_nothing_is_refused(wrong: dict[str, object], words: str) -> None:
    body = {"whom": "user", "subject": "anna", "template": "", "most": 1, **wrong}
    assert words in rejected(pool(1).do("quota.set", **body), "refused")


async def test_a_person_is_told_which_quota_keeps_them_and_gets_one_afterwards(office: Office) -> None:
    await office.do("quota.set", whom="group", subject="students", template="tpl-office", most=0)
    await office.give("berta")
    broker = Broker(office.grid, clock=office.clock)
    with pytest.raises(NotAllowed, match="The group students has 0 desktops of office, and may have 0"):
        await broker.open(a_person("berta", "students"), "office")
    await office.do("quota.drop", whom="group", subject="students", template="tpl-office")
    assert isinstance(await broker.open(a_person("berta", "students"), "office"), Ready)
