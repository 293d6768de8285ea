"""A real Active Directory: log-ins, nested groups, and why somebody may not log in, told apart."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ldap3
import pytest

from kmgr.ids import TemplateId
from kmgr.users import access
from kmgr.users.directory import AccountClosed, DirectoryUnreachable, Unknown, WrongPassword
from kmgr.users.ldap_directory import LdapDirectory, _connected, try_directory
from kmgr.users.model import Assignment, DirectoryConfig, Role, SubjectKind
from tests.lab import samba
from tests.lab.certificates import TestAuthority
from tests.lab.samba import ADMIN_PASSWORD, BASE, PASSWORD, DomainController

CLOSED = {
    "disabled": ("disabled", "disabled"),
    "gone": ("expired", "has expired"),
    "newcomer": ("must_change", "must change your password"),
    "sleeper": ("hours", "this time of day"),
}


@pytest.fixture(scope="module")
def ca() -> TestAuthority:
    return TestAuthority()


@pytest.fixture(scope="module")
def domain(ca: TestAuthority) -> Iterator[DomainController]:
    if why := samba.missing():
        pytest.skip(why)
    # Not pytest's own folder: the sockets in it need a short path.
    folder = Path(tempfile.mkdtemp(prefix="kmgr-ad-", dir="/tmp"))
    made = DomainController(folder, ca)
    try:
        people(made)
        made.start()
        hours(made, ca)
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def people(made: DomainController) -> None:
    made.tool("domain", "passwordsettings", "set", "--account-lockout-threshold=3")
    for name in ("anna", "locked", *CLOSED):
        made.tool("user", "create", name, PASSWORD, f"--given-name={name.title()}", "--surname=Berg")
    for group in ("team-a", "department", "vdi-users", "Grid Admins"):
        made.tool("group", "add", group)
    for group, member in (("team-a", "anna"), ("department", "team-a"), ("vdi-users", "department")):
        made.tool("group", "addmembers", group, member)
    made.tool("user", "disable", "disabled")
    made.tool("user", "setexpiry", "gone", "--days=0")
    made.tool("user", "setpassword", "newcomer", f"--newpassword={PASSWORD}", "--must-change-at-next-login")


def hours(made: DomainController, ca: TestAuthority) -> None:
    connection = _connected(made.ldaps, ca.cert_pem, answer_s=10)
    connection.user, connection.password = "administrator@corp.example.test", ADMIN_PASSWORD
    connection.authentication, connection.read_only = ldap3.SIMPLE, False
    assert connection.bind(), connection.result
    never = {"logonHours": [(ldap3.MODIFY_REPLACE, [bytes(21)])]}
    assert connection.modify(f"CN=Sleeper Berg,CN=Users,{BASE}", never), connection.result
    connection.unbind()


@pytest.fixture
def config(domain: DomainController, ca: TestAuthority) -> DirectoryConfig:
    return DirectoryConfig(
        id="corp",
        urls=(domain.ldaps,),
        base_dn=BASE,
        user_filter="(sAMAccountName={name})",
        bind_name="{name}@corp.example.test",
        ca_pem=ca.cert_pem,
        start_tls=False,
        admin_group="Grid Admins",
    )


async def test_a_person_is_known_with_all_groups_above_and_the_primary_one(config: DirectoryConfig) -> None:
    person = await LdapDirectory(config).authenticate("anna", PASSWORD)
    assert (person.name, person.display_name, person.role) == ("anna", "Anna Berg", Role.USER)
    assert {"team-a", "department", "vdi-users", "domain users"} <= set(person.groups)
    template = TemplateId("tpl-1")
    given = [Assignment(template, SubjectKind.GROUP, "vdi-users")]
    assert access.may_use(person, template, given).allowed


@pytest.mark.parametrize("bind_name", ["{name}@corp.example.test", "CORP\\{name}", "CN={name} Berg,CN=Users," + BASE])
async def test_every_way_to_bind_works(config: DirectoryConfig, bind_name: str) -> None:
    assert (await LdapDirectory(replace(config, bind_name=bind_name)).authenticate("anna", PASSWORD)).name == "anna"


@pytest.mark.parametrize("typed", ["ANNA", "anna@corp.example.test"])
async def test_the_name_is_the_account_name_however_it_is_typed(config: DirectoryConfig, typed: str) -> None:
    assert (await LdapDirectory(config).authenticate(typed.casefold(), PASSWORD)).name == "anna"


async def test_start_tls_works_as_well(config: DirectoryConfig, domain: DomainController) -> None:
    started = replace(config, urls=(domain.ldap,), start_tls=True)
    assert (await LdapDirectory(started).authenticate("anna", PASSWORD)).name == "anna"


async def test_the_admin_group_administers(config: DirectoryConfig, domain: DomainController) -> None:
    assert "would be a user" in await try_directory(config, "CORP\\Anna", PASSWORD)
    domain.tool("group", "addmembers", "Grid Admins", "team-a")
    told = await try_directory(config, "CORP\\Anna", PASSWORD)
    assert told.endswith("would be an administrator")
    assert told.startswith("Anna Berg (anna), in groups: department, domain users, grid admins, ")


@pytest.mark.parametrize("name", sorted(CLOSED))
async def test_why_an_account_is_closed_is_told_to_its_owner_alone(config: DirectoryConfig, name: str) -> None:
    code, words = CLOSED[name]
    with pytest.raises(AccountClosed, match=words) as told:
        await LdapDirectory(config).authenticate(name, PASSWORD)
    assert told.value.code == code
    with pytest.raises(WrongPassword):
        await LdapDirectory(config).authenticate(name, "Wr0ng!Pass")


async def test_too_many_wrong_passwords_lock_and_are_told(config: DirectoryConfig) -> None:
    directory = LdapDirectory(config)
    for _ in range(3):
        with pytest.raises(WrongPassword):
            await directory.authenticate("locked", "Wr0ng!Pass")
    with pytest.raises(AccountClosed, match="locked") as told:
        await directory.authenticate("locked", PASSWORD)
    assert told.value.code == "locked"


@pytest.mark.parametrize("name", ["nobody", "*", "anna)(cn=*", "anna,CN=Users"])
async def test_who_does_not_exist_sounds_like_a_wrong_password(config: DirectoryConfig, name: str) -> None:
    with pytest.raises(Unknown):
        await LdapDirectory(config).authenticate(name, PASSWORD)


async def test_another_ca_is_refused(config: DirectoryConfig) -> None:
    with pytest.raises(DirectoryUnreachable, match="not signed by the CA that was given"):
        await LdapDirectory(replace(config, ca_pem=TestAuthority().cert_pem)).authenticate("anna", PASSWORD)
