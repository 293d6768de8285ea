"""Accounts, assignments, sessions and directories as commands: refusals say why, repetition is harmless."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmgr.grid.envelope import Applied, Command, Outcome
from kmgr.grid.queries import events
from kmgr.grid.store import Store
from kmgr.ids import CommandId, ServerId, TemplateId
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.users import queries
from kmgr.users.commands import LONGEST_SESSION_MS
from kmgr.users.model import BUILT_IN, Assignment, Role, SubjectKind
from tests.lab.outcomes import rejected
from tests.lab.people import added

TPL = TemplateId("tpl-1")


class Desk:
    """Applies commands to a fresh state with one administrator and one template."""

    def __init__(self, store: Store) -> None:
        self.db = store.writer
        self.do("server.add", **added(ServerId("srv-a")))
        self.do("image.create", image="img-1", name="debian", notes="")
        self.do(
            "version.add", version="ver-1", image="img-1", notes="", server="srv-a", size_bytes=1 << 20,
            used_bytes=4096, block_bytes=1 << 18, manifest_hash="a" * 64,
        )  # fmt: skip
        self.do(
            "template.create", template=TPL, name="office", notes="", image="img-1", version="ver-1", vcpus=1,
            memory_mib=512, standby=1, maximum=2, refresh="on_logout",
        )  # fmt: skip
        self.account("root", role="admin")

    def do(self, type: str, at: int = 1_000, /, **fields: Any) -> Outcome:
        return APPLIERS[type](self.db, Command(type, CommandId("cmd"), at, "root", fields))

    def account(self, name: str, **changed: Any) -> Outcome:
        plain = {"display_name": name.title(), "role": "user", "groups": [], "password_hash": "hash"}
        return self.do("account.create", **{"name": name, **plain, **changed})

    def session(self, hash: str, name: str = "anna", *, source: str = "corp", ends: int = 10_000) -> Outcome:
        who = {"name": name, "display_name": name, "groups": ["old"], "role": "user", "source": source}
        return self.do("session.open", hash=hash, **who, address="10.0.0.1", server="srv-a", expires_at=ends)

    def told(self) -> list[str]:
        return [event.text for event in events(self.db)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = Store(tmp_path / "state.sqlite", SCHEMAS)
    store.guard()
    yield Desk(store)
    store.close()


# Accounts


def test_an_account_is_made_once(desk: Desk) -> None:
    assert desk.account("anna", groups=["Staff"], display_name="Anna Berg") == Applied({"name": "anna"})
    assert "already an account anna" in rejected(desk.account("anna"), "conflict")
    found = queries.account(desk.db, "anna")
    assert found is not None
    assert (found.display_name, found.groups, found.role, found.disabled) == (
        "Anna Berg",
        ("Staff",),
        Role.USER,
        False,
    )


@pytest.mark.parametrize("name", ["", "Anna", "corp\\anna", "a b", "-a", "a" * 65, "änna", "a\n"])
def test_a_name_that_could_not_be_compared_is_refused(desk: Desk, name: str) -> None:
    assert "small letters" in rejected(desk.account(name), "refused")


def test_a_role_that_does_not_exist_is_refused(desk: Desk) -> None:
    assert "user or admin" in rejected(desk.account("anna", role="king"), "refused")
    desk.account("anna")
    assert "user or admin" in rejected(desk.do("account.update", name="anna", role="king"), "refused")


@pytest.mark.parametrize(
    "changed", [{"groups": "staff"}, {"groups": [1]}, {"display_name": None}, {"role": ["admin"]}]
)
def test_a_value_of_another_kind_is_refused(desk: Desk, changed: dict[str, Any]) -> None:
    rejected(desk.account("anna", **changed), "refused")
    rejected(desk.do("account.update", name="root", **changed), "refused")
    assert "true or false" in rejected(desk.do("account.update", name="root", disabled="x"), "refused")


@pytest.mark.parametrize(
    ("type", "fields"),
    [("account.update", {"role": "user"}), ("account.update", {"disabled": True}), ("account.delete", {})],
)
def test_the_last_administrator_stays(desk: Desk, type: str, fields: dict[str, Any]) -> None:
    desk.account("gone", role="admin")
    desk.do("account.update", name="gone", disabled=True)
    assert "last administrator" in rejected(desk.do(type, name="root", **fields), "refused")
    desk.account("second", role="admin")
    assert desk.do(type, name="root", **fields) == Applied()
    assert "last administrator" in rejected(desk.do(type, name="second", **fields), "refused")


def test_what_is_changed_twice_is_changed_once(desk: Desk) -> None:
    desk.account("anna")
    for _ in range(2):
        assert desk.do("account.update", name="anna", groups=["a", "b"], display_name="A.") == Applied()
    found = queries.account(desk.db, "anna")
    assert found is not None
    assert (found.groups, found.display_name) == (("a", "b"), "A.")


def test_what_nobody_may_change_this_way_is_refused(desk: Desk) -> None:
    for field in ("password_hash", "name_", "created_at"):
        assert field in rejected(desk.do("account.update", name="root", **{field: "x"}), "refused")


@pytest.mark.parametrize("type", ["account.update", "account.password", "account.delete"])
def test_changes_of_an_account_that_is_gone_are_refused(desk: Desk, type: str) -> None:
    assert "no account anna" in rejected(desk.do(type, name="anna", password_hash="x"), "not_found")


def test_a_disabled_account_has_no_sessions_and_gets_none(desk: Desk) -> None:
    desk.account("anna")
    desk.session("h1", source=BUILT_IN)
    desk.session("h2", "root", source=BUILT_IN)
    desk.do("account.update", name="anna", disabled=True)
    assert [s.hash for s in queries.sessions(desk.db)] == ["h2"]
    assert "disabled" in rejected(desk.session("h3", source=BUILT_IN), "not_allowed")
    desk.do("account.update", name="anna", disabled=False)
    assert desk.session("h3", source=BUILT_IN) == Applied()


def test_a_session_follows_its_account(desk: Desk) -> None:
    desk.account("anna", role="admin")
    desk.session("h1", source=BUILT_IN)
    desk.do("account.update", name="anna", role="user", groups=["new"], display_name="A. B.")
    (session,) = queries.sessions(desk.db)
    assert (session.person.role, session.person.groups, session.person.display_name) == (Role.USER, ("new",), "A. B.")


def test_a_new_password_closes_sessions_and_lets_log_ins_through(desk: Desk) -> None:
    desk.account("anna")
    desk.session("h1", source=BUILT_IN)
    desk.do("login.failed", name="anna", tries=1, wait_s=60)
    for _ in range(2):
        assert desk.do("account.password", name="anna", password_hash="new") == Applied()
    assert queries.sessions(desk.db) == ()
    assert queries.locked_until(desk.db, "anna") == 0
    found = queries.account(desk.db, "anna")
    assert found is not None
    assert found.password_hash == "new"


def test_whoever_gets_a_deleted_name_inherits_nothing(desk: Desk) -> None:
    desk.account("anna")
    desk.session("h1", source=BUILT_IN)
    for kind in ("user", "group"):
        desk.do("assignment.add", template=TPL, kind=kind, subject="anna")
    desk.do("account.delete", name="anna")
    assert queries.sessions(desk.db) == ()
    assert queries.assignments(desk.db) == (Assignment(TPL, SubjectKind.GROUP, "anna"),)
    assert "gone" in rejected(desk.session("h2", source=BUILT_IN), "not_allowed")


def claimed(desk: Desk, **row: Any) -> None:
    """Let anna have a desktop."""
    place = {"desktop": "dsk-1", "template": TPL, "version": "ver-1", "server": "srv-a"}
    desk.do("server.up", server="srv-a")
    desk.do("desktop.place", **place)
    report = {"desktop": "dsk-1", "generation": 1, "server": "srv-a"}
    desk.do("desktop.building", **report)
    desk.do("desktop.ready", **report)
    assert isinstance(desk.do("desktop.claim", user="anna", template=TPL), Applied)
    for name, value in row.items():
        desk.db.execute(f"update desktops set {name} = ? where id = 'dsk-1'", [value])  # noqa: S608 - the test's own


def test_with_an_account_goes_what_its_user_had_of_the_pool_and_nobody_inherits_it(desk: Desk) -> None:
    desk.account("anna")
    desk.do("quota.set", whom="user", subject="anna", template="", most=3)
    claimed(desk)
    assert desk.do("account.delete", name="anna") == Applied()
    assert [row["state"] for row in desk.db.query("select state from desktops")] == ["retired"]
    assert [*desk.db.query("select * from quotas")] == []
    assert "is removed: anna's account was deleted" in " ".join(desk.told())


@pytest.mark.parametrize("row", [{"kind": "personal"}, {"kind": "personal", "state": "broken"}, {"purpose": "edit"}])
def test_an_account_with_a_desktop_that_is_kept_is_not_deleted(desk: Desk, row: dict[str, Any]) -> None:
    desk.account("anna")
    claimed(desk, **row)
    told = rejected(desk.do("account.delete", name="anna"), "conflict")
    assert told.startswith("anna has desktop office-1, and whoever gets this name later would get what was saved")
    assert queries.account(desk.db, "anna") is not None
    desk.db.execute("update desktops set state = 'retired'")
    assert desk.do("account.delete", name="anna") == Applied()


@pytest.mark.parametrize("row", [{}, {"kind": "personal"}])
def test_who_moves_to_a_directory_keeps_what_the_name_has(desk: Desk, row: dict[str, Any]) -> None:
    desk.account("anna")
    desk.do("assignment.add", template=TPL, kind="user", subject="anna")
    claimed(desk, **row)
    assert "no directory is set up" in rejected(desk.do("account.delete", name="anna", moves=True), "conflict")
    assert queries.account(desk.db, "anna") is not None
    desk.do("directory.set", **GOOD)
    desk.session("hash", source=BUILT_IN)
    assert desk.do("account.delete", name="anna", moves=True) == Applied()
    assert queries.account(desk.db, "anna") is None
    assert [*desk.db.query("select * from sessions")] == []
    assert [row["user"] for row in desk.db.query("select user from desktops where state = 'in_use'")] == ["anna"]
    assert queries.assignments(desk.db) == (Assignment(TPL, SubjectKind.USER, "anna"),)
    assert desk.told()[0] == "account anna deleted: anna logs in by a directory and keeps their desktops"


# Assignments


@pytest.mark.parametrize(
    ("kind", "typed", "kept"),
    [("user", " CORP\\Anna ", "anna"), ("group", "VDI Users", "vdi users"), ("everyone", "whoever", "")],
)
def test_an_assignment_is_kept_as_names_are_compared(desk: Desk, kind: str, typed: str, kept: str) -> None:
    for _ in range(2):
        assert desk.do("assignment.add", template=TPL, kind=kind, subject=typed) == Applied()
    assert queries.assignments(desk.db) == (Assignment(TPL, SubjectKind(kind), kept),)
    assert queries.assignments(desk.db, TemplateId("tpl-2")) == ()
    assert sum("given to" in text for text in desk.told()) == 1
    for _ in range(2):
        assert desk.do("assignment.remove", template=TPL, kind=kind, subject=typed) == Applied()
    assert queries.assignments(desk.db) == ()
    assert sum("taken from" in text for text in desk.told()) == 1


def test_an_assignment_that_means_nothing_is_refused(desk: Desk) -> None:
    assert "no template" in rejected(
        desk.do("assignment.add", template="tpl-9", kind="everyone", subject=""), "not_found"
    )
    assert "none of" in rejected(desk.do("assignment.add", template=TPL, kind="cat", subject="x"), "refused")
    for kind in ("user", "group"):
        assert f"which {kind}" in rejected(desk.do("assignment.add", template=TPL, kind=kind, subject=" "), "refused")


# Sessions


def test_a_session_is_renewed_until_a_week_after_its_log_in(desk: Desk) -> None:
    desk.session("h1")
    (opened,) = queries.sessions(desk.db)
    for _ in range(2):
        assert desk.do("session.renew", hash="h1", expires_at=50_000) == Applied({"expires_at": 50_000})
    assert desk.do("session.renew", hash="h1", expires_at=49_999) == Applied({"expires_at": 50_000})
    week = opened.created_at + LONGEST_SESSION_MS
    assert desk.do("session.renew", hash="h1", expires_at=week + 1) == Applied({"expires_at": week})
    assert queries.sessions(desk.db) == (replace(opened, expires_at=week),)


def test_a_session_that_ended_is_not_renewed(desk: Desk) -> None:
    desk.session("h1")
    for token_hash in ("h1", "h2"):
        rejected(desk.do("session.renew", 10_000, hash=token_hash, expires_at=50_000), "not_logged_in")


def test_opening_a_session_again_opens_no_second_one(desk: Desk) -> None:
    for _ in range(2):
        assert desk.session("h1") == Applied()
    assert len(queries.sessions(desk.db)) == 1


def test_closing_is_harmless_twice(desk: Desk) -> None:
    desk.session("h1")
    for _ in range(2):
        assert desk.do("session.close", hash="h1") == Applied()
    assert sum("logged out" in text for text in desk.told()) == 1


def test_all_sessions_of_one_person_are_closed(desk: Desk) -> None:
    for token_hash, name in (("h1", "anna"), ("h2", "anna"), ("h3", "ben")):
        desk.session(token_hash, name)
    assert desk.do("session.close_all", name="anna") == Applied({"closed": 2})
    assert desk.do("session.close_all", name="anna") == Applied({"closed": 0})
    assert [s.person.name for s in queries.sessions(desk.db)] == ["ben"]


def test_only_what_has_ended_expires(desk: Desk) -> None:
    desk.session("h1", ends=5_000)
    desk.session("h2", ends=9_000)
    assert desk.do("session.expire", 5_000) == Applied({"expired": 0})
    assert desk.do("session.expire", 5_001) == Applied({"expired": 1})
    assert [s.hash for s in queries.sessions(desk.db)] == ["h2"]


def test_wrong_passwords_lock_a_name_at_the_nth_and_a_log_in_forgets_them(desk: Desk) -> None:
    for _ in range(2):
        desk.do("login.failed", name="anna", tries=3, wait_s=60)
    assert queries.locked_until(desk.db, "anna") == 0
    desk.session("h1")
    for _ in range(2):
        desk.do("login.failed", name="anna", tries=3, wait_s=60)
    assert queries.locked_until(desk.db, "anna") == 0
    desk.do("login.failed", 2_000, name="anna", tries=3, wait_s=60)
    assert queries.locked_until(desk.db, "anna") == 62_000
    assert queries.locked_until(desk.db, "ben") == 0


def test_old_wrong_passwords_are_forgotten_after_a_day(desk: Desk) -> None:
    desk.do("login.failed", 1_000, name="anna", tries=1, wait_s=60)
    day = 86_400_000
    desk.do("session.expire", 1_000 + day)
    assert queries.locked_until(desk.db, "anna") == 61_000
    desk.do("session.expire", 1_001 + day)
    assert queries.locked_until(desk.db, "anna") == 0


# Directories

GOOD = {
    "directory": "corp",
    "urls": ["ldaps://dc1.corp.example", "ldaps://[fd00::1]:636/"],
    "base_dn": "dc=corp,dc=example",
    "user_filter": "(sAMAccountName={name})",
    "bind_name": "{name}@corp.example",
    "ca_pem": "",
    "start_tls": False,
    "admin_group": "vdi-admins",
}


def test_a_directory_is_set_changed_and_forgotten(desk: Desk) -> None:
    for _ in range(2):
        assert desk.do("directory.set", **GOOD) == Applied()
    assert (
        desk.do("directory.set", **{**GOOD, "urls": ["ldap://dc2.corp.example:389"], "start_tls": True}) == Applied()
    )
    (config,) = queries.directories(desk.db)
    assert (config.id, config.urls, config.start_tls) == ("corp", ("ldap://dc2.corp.example:389",), True)
    assert desk.do("directory.remove", directory="corp") == Applied()
    assert queries.directories(desk.db) == ()
    assert "no directory corp" in rejected(desk.do("directory.remove", directory="corp"), "not_found")


def test_directories_are_asked_the_oldest_first_whatever_is_changed(desk: Desk) -> None:
    for at, name in ((1_000, "z"), (2_000, "a"), (3_000, "z")):
        desk.do("directory.set", at, **{**GOOD, "directory": name})
    assert [config.id for config in queries.directories(desk.db)] == ["z", "a"]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"urls": []}, "addresses like"),
        ({"urls": ["dc1.corp.example"]}, "'dc1.corp.example'"),
        ({"urls": ["ldaps://dc1", "http://dc2"]}, "'http://dc2'"),
        ({"urls": ["ldaps://dc1:70000"]}, "70000"),
        ({"urls": ["ldaps://user:secret@dc1"]}, "addresses like"),
        ({"urls": ["ldaps://"]}, "addresses like"),
        ({"urls": ["ldap://dc1"]}, "StartTLS"),
        ({"base_dn": " "}, "base DN"),
        ({"bind_name": "cn=reader"}, "{name}"),
        ({"user_filter": "(uid=anna)"}, "{name}"),
        ({"ca_pem": "MIIB"}, "BEGIN CERTIFICATE"),
        ({"directory": "built-in"}, "built-in"),
        ({"directory": " "}, "name"),
    ],
)
def test_a_directory_that_could_not_work_is_refused(desk: Desk, wrong: dict[str, Any], word: str) -> None:
    assert word in rejected(desk.do("directory.set", **{**GOOD, **wrong}), "refused")
