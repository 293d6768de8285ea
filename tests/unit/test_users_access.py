"""Who may do what: verdicts and their reasons."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.ids import AccountName, TemplateId
from kmgr.users.access import may_administer, may_have, may_look, may_use
from kmgr.users.model import Assignment, Person, Role, SubjectKind, Verdict, normalised
from tests.lab.people import a_person

TPL, OTHER = TemplateId("tpl-1"), TemplateId("tpl-2")


@pytest.mark.parametrize(
    ("kind", "subject", "reason"),
    [
        (SubjectKind.USER, "anna", "it is given to anna"),
        (SubjectKind.GROUP, "staff", "it is given to the group staff"),
        (SubjectKind.EVERYONE, "", "it is given to everyone"),
    ],
)
def test_a_template_is_given_to_a_user_a_group_or_everyone(kind: SubjectKind, subject: str, reason: str) -> None:
    verdict = may_use(a_person("anna", "Staff"), TPL, [Assignment(TPL, kind, subject)])
    assert (verdict.allowed, verdict.reason) == (True, reason)
    assert not may_use(a_person("anna", "Staff"), OTHER, [Assignment(TPL, kind, subject)]).allowed


def test_a_group_of_a_users_name_is_not_the_user() -> None:
    assert not may_use(a_person("anna", "ben"), TPL, [Assignment(TPL, SubjectKind.USER, "ben")]).allowed
    assert not may_use(a_person("anna"), TPL, [Assignment(TPL, SubjectKind.GROUP, "anna")]).allowed


def test_an_administrator_uses_only_what_is_given_to_them() -> None:
    boss = a_person("boss", role=Role.ADMIN)
    assert may_use(boss, TPL, []).reason == "it is given neither to boss nor to one of their groups"
    assert may_administer(boss).allowed
    assert not may_administer(a_person()).allowed


def test_a_desktop_is_its_users_and_an_administrators() -> None:
    assert may_have(a_person("anna"), AccountName("anna")).reason == "it is their own"
    assert may_have(a_person("boss", role=Role.ADMIN), AccountName("anna")).allowed
    assert may_have(a_person("ben"), AccountName("anna")).reason == "it is not ben's desktop"
    assert not may_have(a_person("ben"), None).allowed


@pytest.mark.parametrize("typed", ["Anna", "  anna ", "CORP\\Anna", "corp\\sub\\ANNA"])
def test_one_person_has_one_name(typed: str) -> None:
    assert normalised(typed) == "anna"


words = st.sampled_from(["anna", "ben", "staff", "it", ""])
persons = st.builds(
    Person,
    name=words.map(AccountName),
    display_name=st.just("x"),
    groups=st.lists(words, max_size=3).map(tuple),
    role=st.sampled_from(Role),
    source=st.just("corp"),
)
assignments = st.lists(st.builds(Assignment, st.sampled_from([TPL, OTHER]), st.sampled_from(SubjectKind), words))


@given(persons, assignments, st.randoms())
def test_order_and_repetition_change_nothing(person: Person, given_: list[Assignment], random: Random) -> None:
    verdict = may_use(person, TPL, given_)
    shuffled = [*given_, *given_[:2]]
    random.shuffle(shuffled)
    assert may_use(person, TPL, shuffled) == verdict


@given(persons, assignments)
def test_nothing_is_allowed_without_an_assignment_that_says_so(person: Person, given_: list[Assignment]) -> None:
    fitting = [
        a
        for a in given_
        if a.template == TPL
        and (
            a.kind is SubjectKind.EVERYONE
            or (a.kind is SubjectKind.USER and a.subject == person.name)
            or (a.kind is SubjectKind.GROUP and a.subject in person.groups)
        )
    ]
    assert may_use(person, TPL, given_).allowed == bool(fitting)
    assert not may_use(person, TPL, [a for a in given_ if a not in fitting]).allowed


def test_a_screen_is_for_its_user_and_a_standbys_for_administrators() -> None:
    anna, admin = a_person("anna"), a_person("boss", role=Role.ADMIN)
    assert may_look(anna, anna.name).allowed
    assert may_look(admin, None).allowed
    assert not may_look(anna, None).allowed
    assert may_look(admin, anna.name) == Verdict(False, "only anna may look at it")
