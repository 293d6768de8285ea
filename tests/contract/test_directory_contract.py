"""What every directory promises: a fake, built-in accounts, and LDAP against a real slapd."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kmgr.errors import NotLoggedIn
from kmgr.ids import TemplateId
from kmgr.users import access
from kmgr.users.directory import Directory, Unknown, WrongPassword
from kmgr.users.ldap_directory import LdapDirectory
from kmgr.users.local_directory import LocalDirectory
from kmgr.users.model import Assignment, DirectoryConfig, Role, SubjectKind
from tests.lab import slapd
from tests.lab.certificates import TestAuthority
from tests.lab.people import FakeDirectory, Office
from tests.lab.slapd import BASE, Slapd

TPL = TemplateId("tpl-1")


def people() -> str:
    return (
        slapd.tree()
        + slapd.person("anna", "Änna Berg", "anna's password")
        + slapd.person("root", "The Boss", "root's password")
        + slapd.group("staff", slapd.person_dn("anna"))
        + slapd.group("grid admins", slapd.person_dn("root"))
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Slapd, TestAuthority]]:
    if slapd.SLAPD is None:
        pytest.skip("slapd is not installed")
    ca = TestAuthority()
    made = Slapd(tmp_path_factory.mktemp("slapd"), people(), ca=ca)
    made.start()
    yield made, ca
    made.stop()


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    made = Office(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["fake", "local", "ldap"])
async def directory(request: pytest.FixtureRequest, office: Office) -> Directory:
    if request.param == "fake":
        fake = FakeDirectory()
        fake.add("anna", "anna's password", groups=["staff"])
        fake.add("root", "root's password", groups=["grid admins"], role=Role.ADMIN)
        return fake
    if request.param == "local":
        await office.account("anna", password="anna's password", groups=["staff"])
        await office.account("root", password="root's password", role="admin")
        return LocalDirectory(office.grid)
    running, ca = request.getfixturevalue("server")
    return LdapDirectory(
        DirectoryConfig(
            id="corp",
            urls=(running.ldaps,),
            base_dn=BASE,
            user_filter="(uid={name})",
            bind_name=slapd.person_dn("{name}"),
            ca_pem=ca.cert_pem,
            start_tls=False,
            admin_group="Grid Admins",
        )
    )


async def test_the_right_password_says_who_it_is(directory: Directory) -> None:
    person = await directory.authenticate("anna", "anna's password")
    assert (person.name, person.groups, person.role) == ("anna", ("staff",), Role.USER)
    assert "nna" in person.display_name


async def test_an_administrator_is_known_as_one(directory: Directory) -> None:
    assert (await directory.authenticate("root", "root's password")).role is Role.ADMIN


async def test_the_groups_open_templates(directory: Directory) -> None:
    given = [Assignment(TPL, SubjectKind.GROUP, "staff")]
    assert access.may_use(await directory.authenticate("anna", "anna's password"), TPL, given).allowed
    assert not access.may_use(await directory.authenticate("root", "root's password"), TPL, given).allowed


@pytest.mark.parametrize("password", ["wrong", "", "anna's password ", "Anna's password", "ä" * 300])
async def test_a_wrong_or_empty_password_is_refused(directory: Directory, password: str) -> None:
    with pytest.raises(WrongPassword):
        await directory.authenticate("anna", password)


async def test_an_unknown_name_sounds_like_a_wrong_password(directory: Directory) -> None:
    with pytest.raises(WrongPassword) as wrong:
        await directory.authenticate("anna", "wrong")
    with pytest.raises(Unknown) as unknown:
        await directory.authenticate("nobody", "wrong")
    assert (wrong.value.message, wrong.value.code) == (unknown.value.message, unknown.value.code)


@pytest.mark.parametrize(
    "name",
    [
        "*", "*)(uid=*", "anna)(uid=anna", "anna,ou=people", "anna,dc=example", f"anna,ou=people,{BASE}", "anna\\2c",
        "a*", "anna\x00", "#anna", " ", "anna+cn=x", "\\", '"anna"', "' or 1=1 --", "nobody",
    ],
)  # fmt: skip
async def test_a_name_is_only_a_name(directory: Directory, name: str) -> None:
    with pytest.raises(NotLoggedIn):
        await directory.authenticate(name, "anna's password")
