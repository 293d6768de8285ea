"""LDAP's own difficulties against a real slapd: nesting, paging, certificates, servers that are dead or hang."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kmgr.errors import Refused
from kmgr.ids import TemplateId
from kmgr.users import access
from kmgr.users.directories import directories_of
from kmgr.users.directory import AccountClosed, DirectoryUnreachable, Unknown, WrongPassword
from kmgr.users.ldap_directory import LOGIN_S, LdapDirectory, try_directory
from kmgr.users.model import Assignment, DirectoryConfig, Role, SubjectKind
from tests.lab import slapd
from tests.lab.certificates import TestAuthority
from tests.lab.people import RIGHT, Office
from tests.lab.slapd import BASE, Slapd, free_port, group_dn, person_dn

PASSWORD = "anna's password"
MANY = 250


def people() -> str:
    anna = person_dn("anna")
    return (
        slapd.tree()
        + slapd.person("anna", "Änna Berg", PASSWORD, extra="mail: anna@example.org\n")
        + slapd.person("o'neil (b*)", "Odd Name", PASSWORD)
        + slapd.person("loner", "Loner", PASSWORD, extra="mail: twin@example.org\n")
        + slapd.person("twin", "Twin", PASSWORD, extra="mail: twin@example.org\n")
        + slapd.group("team-a", anna)
        + slapd.group("department", group_dn("team-a"))
        + slapd.group("company", group_dn("department"), group_dn("round"))
        + slapd.group("round", group_dn("company"))
        + slapd.group("admins", group_dn("company"))
        + slapd.posix_group("unix", "anna", "someone")
        + "".join(slapd.group(f"many-{n}", person_dn("twin")) for n in range(MANY))
    )


@pytest.fixture(scope="module")
def ca() -> TestAuthority:
    return TestAuthority()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ca: TestAuthority) -> Iterator[Slapd]:
    if slapd.SLAPD is None:
        pytest.skip("slapd is not installed")
    made = Slapd(tmp_path_factory.mktemp("slapd"), people(), ca=ca)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def config(server: Slapd, ca: TestAuthority) -> DirectoryConfig:
    return DirectoryConfig(
        id="corp",
        urls=(server.ldaps,),
        base_dn=BASE,
        user_filter="(uid={name})",
        bind_name=person_dn("{name}"),
        ca_pem=ca.cert_pem,
        start_tls=False,
        admin_group="",
    )


class Silent:
    """Accepts connections and never says a word, or refuses the first thing that is asked."""

    def __init__(self, *, refuse: bool = False) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._held: list[socket.socket] = []
        self.heard = b""
        self._refuse = refuse
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                held, _ = self._socket.accept()
                self._held.append(held)
                if self._refuse:
                    self.heard += held.recv(4096)
                    # protocolError to the request of this number: "unsupported extended operation".
                    held.sendall(bytes.fromhex(f"300c0201{self.heard[4]:02x}78070a010204000400"))
                    self.heard += held.recv(4096)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for one in (self._socket, *self._held):
            one.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    made = Silent()
    yield made
    made.close()


async def groups(config: DirectoryConfig, name: str = "anna") -> tuple[str, ...]:
    return (await LdapDirectory(config).authenticate(name, PASSWORD)).groups


# Who somebody is


async def test_groups_are_followed_upwards_and_a_ring_of_them_ends(config: DirectoryConfig) -> None:
    assert await groups(config) == ("admins", "company", "department", "round", "team-a", "unix")


async def test_a_template_given_to_a_group_three_levels_up_may_be_used(config: DirectoryConfig) -> None:
    person = await LdapDirectory(config).authenticate("anna", PASSWORD)
    template = TemplateId("tpl-1")
    given = [Assignment(template, SubjectKind.GROUP, "company")]
    assert access.may_use(person, template, given).reason == "it is given to the group company"


@pytest.mark.parametrize(("group", "role"), [("Admins", Role.ADMIN), ("other", Role.USER), ("", Role.USER)])
async def test_members_of_the_admin_group_administer(config: DirectoryConfig, group: str, role: Role) -> None:
    person = await LdapDirectory(replace(config, admin_group=group)).authenticate("anna", PASSWORD)
    assert person.role is role


async def test_more_groups_than_the_server_gives_at_once_are_all_found(config: DirectoryConfig) -> None:
    assert set(await groups(config, "twin")) == {f"many-{n}" for n in range(MANY)}


async def test_the_name_is_the_entrys_not_what_was_typed(config: DirectoryConfig) -> None:
    for typed in ("ANNA", "ａｎｎａ", " anna"):
        assert (await LdapDirectory(config).authenticate(typed, PASSWORD)).name == "anna"


async def test_an_alias_of_a_built_in_accounts_name_is_not_that_account(
    config: DirectoryConfig, tmp_path: Path
) -> None:
    office = Office(tmp_path)
    await office.do("directory.set", directory=config.id, **{k: v for k, v in asdict(config).items() if k != "id"})
    directory = directories_of(office.grid)
    assert (await directory().authenticate("ａnna", PASSWORD)).name == "anna"
    await office.account("anna")
    with pytest.raises(AccountClosed, match="name of a built-in account") as told:
        await directory().authenticate("ａnna", PASSWORD)
    assert told.value.code == "name_taken"
    assert (await directory().authenticate("anna", RIGHT)).source == "built-in"
    office.close()


async def test_signs_in_a_name_are_taken_literally(config: DirectoryConfig) -> None:
    assert (await LdapDirectory(config).authenticate("o'neil (b*)", PASSWORD)).display_name == "Odd Name"


async def test_a_name_that_two_entries_fit_is_nobody(config: DirectoryConfig) -> None:
    both = replace(config, user_filter="(|(uid={name})(mail={name}@example.org))")
    assert (await LdapDirectory(both).authenticate("anna", PASSWORD)).name == "anna"
    with pytest.raises(AccountClosed, match="2 entries fit"):
        await LdapDirectory(both).authenticate("twin", PASSWORD)


async def test_an_entry_outside_the_base_is_told_only_after_the_right_password(config: DirectoryConfig) -> None:
    elsewhere = LdapDirectory(replace(config, base_dn=f"ou=groups,{BASE}"))
    with pytest.raises(AccountClosed, match="no entry fits your name below ou=groups"):
        await elsewhere.authenticate("anna", PASSWORD)
    with pytest.raises(Unknown):
        await elsewhere.authenticate("anna", "wrong")


async def test_a_search_that_the_server_refuses_is_not_no_groups(
    config: DirectoryConfig, ca: TestAuthority, tmp_path: Path
) -> None:
    narrow = Slapd(tmp_path / "narrow", people(), ca=ca, pages=10)
    narrow.start()
    try:
        with pytest.raises(DirectoryUnreachable, match="refuses the search with adminLimitExceeded"):
            await LdapDirectory(replace(config, urls=(narrow.ldaps,))).authenticate("anna", PASSWORD)
    finally:
        narrow.stop()


async def test_a_filter_that_is_none_is_told(config: DirectoryConfig) -> None:
    with pytest.raises(DirectoryUnreachable, match="filter"):
        await LdapDirectory(replace(config, user_filter="(uid={name}")).authenticate("anna", PASSWORD)


# Encryption


async def test_start_tls_works_as_well(config: DirectoryConfig, server: Slapd) -> None:
    started = replace(config, urls=(server.ldap,), start_tls=True)
    assert (await LdapDirectory(started).authenticate("anna", PASSWORD)).name == "anna"


@pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
async def test_another_ca_is_refused(config: DirectoryConfig, server: Slapd, scheme: str) -> None:
    url = server.ldap if scheme == "ldap" else server.ldaps
    wrong = replace(config, urls=(url,), start_tls=True, ca_pem=TestAuthority().cert_pem)
    with pytest.raises(DirectoryUnreachable, match="not signed by the CA that was given"):
        await LdapDirectory(wrong).authenticate("anna", PASSWORD)


async def test_without_a_ca_the_machines_own_list_decides(config: DirectoryConfig) -> None:
    with pytest.raises(DirectoryUnreachable, match="not signed by the CA"):
        await LdapDirectory(replace(config, ca_pem="")).authenticate("anna", PASSWORD)


async def test_a_certificate_for_another_name_is_refused(config: DirectoryConfig, server: Slapd) -> None:
    with pytest.raises(DirectoryUnreachable, match=r"certificate is not for 127\.0\.0\.2"):
        await LdapDirectory(replace(config, urls=(server.elsewhere,))).authenticate("anna", PASSWORD)


async def test_a_ca_that_is_no_certificate_is_told(config: DirectoryConfig) -> None:
    broken = "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"
    for text in (broken, "-----BEGIN CERTIFICATE-----ä"):
        with pytest.raises(DirectoryUnreachable, match="CA certificate that was given cannot be read"):
            await LdapDirectory(replace(config, ca_pem=text)).authenticate("anna", PASSWORD)


@pytest.mark.parametrize("start_tls", [True, False])
async def test_no_password_leaves_without_encryption(config: DirectoryConfig, start_tls: bool) -> None:
    refusing = Silent(refuse=True)
    plain = replace(config, urls=(f"ldap://127.0.0.1:{refusing.port}",), start_tls=start_tls)
    try:
        with pytest.raises(DirectoryUnreachable, match="StartTLS failed"):
            await LdapDirectory(plain).authenticate("anna", PASSWORD)
    finally:
        refusing.close()
    assert b"1.3.6.1.4.1.1466.20037" in refusing.heard
    assert PASSWORD.encode() not in refusing.heard


async def test_a_server_that_knows_no_start_tls_is_not_used(
    config: DirectoryConfig, ca: TestAuthority, tmp_path: Path
) -> None:
    plain = Slapd(tmp_path / "plain", people(), ca=ca, tls=False)
    plain.start()
    try:
        with pytest.raises(DirectoryUnreachable, match="TLS"):
            await LdapDirectory(replace(config, urls=(plain.ldap,))).authenticate("anna", PASSWORD)
    finally:
        plain.stop()


# Servers that do not answer


def dead() -> str:
    return f"ldaps://127.0.0.1:{free_port()}"


async def test_the_next_server_is_asked_and_from_then_on_first(config: DirectoryConfig, silent: Silent) -> None:
    hung = f"ldaps://127.0.0.1:{silent.port}"
    directory = LdapDirectory(replace(config, urls=(hung, *config.urls)), answer_s=1)
    assert (await directory.authenticate("anna", PASSWORD)).name == "anna"
    began = time.monotonic()
    with pytest.raises(WrongPassword):
        await directory.authenticate("anna", "wrong")
    assert (await directory.authenticate("anna", PASSWORD)).name == "anna"
    assert time.monotonic() - began < 0.9


async def test_a_dead_server_costs_no_time(config: DirectoryConfig) -> None:
    began = time.monotonic()
    assert await groups(replace(config, urls=(dead(), *config.urls)))
    assert time.monotonic() - began < 2


async def test_all_dead_are_named_with_their_causes(config: DirectoryConfig) -> None:
    urls = (dead(), dead(), "ldaps://no-such-host.invalid")
    with pytest.raises(DirectoryUnreachable) as error:
        await LdapDirectory(replace(config, urls=urls)).authenticate("anna", PASSWORD)
    assert all(url in error.value.message for url in urls)
    assert "refused" in error.value.message


@pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
async def test_servers_that_hang_end_a_log_in_in_time(config: DirectoryConfig, silent: Silent, scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{silent.port}"
    began = time.monotonic()
    with pytest.raises(DirectoryUnreachable, match="no answer in time"):
        hung = replace(config, urls=(url, url, url), start_tls=True)
        await LdapDirectory(hung, answer_s=1, login_s=1.5).authenticate("anna", PASSWORD)
    assert time.monotonic() - began < 3
    assert LOGIN_S <= 10


async def test_a_server_that_was_restarted_is_used_again(
    config: DirectoryConfig, ca: TestAuthority, tmp_path: Path
) -> None:
    other = Slapd(tmp_path / "other", people(), ca=ca)
    directory = LdapDirectory(replace(config, urls=(other.ldaps,)))
    with pytest.raises(DirectoryUnreachable):
        await directory.authenticate("anna", PASSWORD)
    other.start()
    try:
        assert (await directory.authenticate("anna", PASSWORD)).name == "anna"
    finally:
        other.stop()


# The Test button


async def test_trying_a_directory_says_who_somebody_would_be(config: DirectoryConfig) -> None:
    told = await try_directory(replace(config, admin_group="admins"), "CORP\\Anna ", PASSWORD)
    everything = "admins, company, department, round, team-a, unix"
    assert told == f"Änna Berg (anna), in groups: {everything}; would be an administrator"
    assert await try_directory(config, "loner", PASSWORD) == "Loner (loner), in no groups; would be a user"


async def test_trying_settings_that_cannot_be_right_says_why(config: DirectoryConfig, server: Slapd) -> None:
    with pytest.raises(Refused, match="StartTLS"):
        await try_directory(replace(config, urls=(server.ldap,)), "anna", PASSWORD)
    with pytest.raises(WrongPassword):
        await try_directory(config, "anna", "wrong")
