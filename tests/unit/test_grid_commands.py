"""The grid's own commands: servers, tokens, settings; each refusal says why, each retry is harmless."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from kmgr.grid import queries
from kmgr.grid.commands import APPLIERS
from kmgr.grid.envelope import Applied, Command, Outcome
from kmgr.grid.model import ServerState
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.ids import CommandId, ServerId
from tests.lab.outcomes import rejected

A, B = ServerId("srv-a"), ServerId("srv-b")


def body(server: str, **changed: str) -> dict[str, Any]:
    plain = {"name": server[4:], "grid_address": f"{server}:8440", "web_address": f"{server}:443"}
    return {"server": server, **plain, "version": "0.1.0", "fingerprint": "f", **changed}


class Desk:
    """Applies commands to a fresh state, one minute apart if asked."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.count = 0

    def do(self, type: str, at: int = 1_000, /, **fields: Any) -> Outcome:
        self.count += 1
        return APPLIERS[type](self.db, Command(type, CommandId(f"cmd-{self.count}"), at, "anna", fields))

    def state(self, server: ServerId) -> ServerState:
        found = queries.server(self.db, server)
        assert found is not None
        return found.state


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = Store(tmp_path / "state.sqlite", [SCHEMA])
    store.guard()
    desk = Desk(store.writer)
    desk.do("server.add", **body(A))
    desk.do("server.up", server=A)
    yield desk
    store.close()


def test_a_member_is_a_server_or_a_witness_and_nothing_else(desk: Desk) -> None:
    for role in ("king", "", "Server", 1, None, ["server"]):
        refusal = rejected(desk.do("server.add", **{**body(B), "role": role}), "refused")
        assert "server, witness" in refusal
    assert isinstance(desk.do("server.add", **body(B, role="witness")), Applied)


def test_a_log_has_one_grid_only(desk: Desk) -> None:
    fields = {"grid": "grid-1", "name": "office", "ca_cert_pem": "C", "ca_key_sealed": "K"}
    assert isinstance(desk.do("grid.create", **fields), Applied)
    assert "office" in rejected(desk.do("grid.create", **{**fields, "grid": "grid-2"}), "conflict")
    info = queries.grid_info(desk.db)
    assert info is not None
    assert (info.id, info.name) == ("grid-1", "office")


@pytest.mark.parametrize(
    ("changed", "word"),
    [({"name": "a"}, "name 'a' is taken"), ({"grid_address": "srv-a:8440"}, "grid address"), ({"server": A}, "id")],
)
def test_two_servers_never_share_a_name_an_address_or_an_id(desk: Desk, changed: dict[str, str], word: str) -> None:
    assert word in rejected(desk.do("server.add", **body(**{"server": B, **changed})), "conflict")
    assert len(queries.servers(desk.db)) == 1


def test_a_removed_servers_name_is_free_but_its_id_is_not(desk: Desk) -> None:
    desk.do("server.add", **body(B))
    desk.do("server.up", server=B)
    assert isinstance(desk.do("server.remove", server=B), Applied)
    assert "empty data folder" in rejected(desk.do("server.add", **body(B)), "conflict")
    assert isinstance(desk.do("server.add", **body("srv-c", name="b")), Applied)
    assert [s.id for s in queries.servers(desk.db)] == [A, "srv-c"]
    assert len(queries.servers(desk.db, removed=True)) == 3


def test_the_last_server_stays_even_while_another_is_joining(desk: Desk) -> None:
    desk.do("server.add", **body(B))
    assert "last server" in rejected(desk.do("server.remove", server=A), "refused")


def test_a_server_is_lost_and_comes_back(desk: Desk) -> None:
    for command, state in [
        ("server.lost", ServerState.LOST),
        ("server.lost", ServerState.LOST),
        ("server.up", ServerState.UP),
        ("server.up", ServerState.UP),
    ]:
        assert isinstance(desk.do(command, server=A), Applied)
        assert desk.state(A) is state
    assert [e.text for e in queries.events(desk.db, kind="server", limit=2)] == [
        "a is back",
        "a is lost: the grid stopped hearing from it",
    ]


def test_a_draining_server_is_draining_again_after_it_was_lost(desk: Desk) -> None:
    for command in ("server.drain", "server.lost", "server.up"):
        desk.do(command, server=A)
    assert desk.state(A) is ServerState.DRAINING
    desk.do("server.undrain", server=A)
    assert desk.state(A) is ServerState.UP


def test_draining_a_lost_server_holds_it_empty_when_it_returns(desk: Desk) -> None:
    desk.do("server.lost", server=A)
    desk.do("server.drain", server=A)
    assert desk.state(A) is ServerState.LOST
    desk.do("server.up", server=A)
    assert desk.state(A) is ServerState.DRAINING


def test_a_joining_server_can_be_neither_lost_nor_drained(desk: Desk) -> None:
    desk.do("server.add", **body(B))
    rejected(desk.do("server.lost", server=B), "conflict")
    rejected(desk.do("server.drain", server=B), "conflict")


@pytest.mark.parametrize("command", ["up", "lost", "drain", "undrain", "remove"])
def test_an_unknown_server_is_not_found(desk: Desk, command: str) -> None:
    rejected(desk.do(f"server.{command}", server="srv-z"), "not_found")


def test_an_announcement_changes_the_address_and_is_written_once(desk: Desk) -> None:
    moved = body(A, grid_address="10.0.0.9:8440", version="0.2.0")
    desk.do("server.announce", **moved)
    before = len(queries.events(desk.db))
    desk.do("server.announce", **moved)
    assert len(queries.events(desk.db)) == before
    found = queries.server(desk.db, A)
    assert found is not None
    assert (found.grid_address, found.version) == ("10.0.0.9:8440", "0.2.0")


def test_an_announcement_cannot_take_another_servers_address(desk: Desk) -> None:
    desk.do("server.add", **body(B))
    rejected(desk.do("server.announce", **body(B, grid_address="srv-a:8440")), "conflict")


def invited(desk: Desk, invitation: str = "inv-1", at: int = 1_000, *, until: int = 5_000, tries: int = 5) -> Outcome:
    return desk.do("invitation.create", at, invitation=invitation, sealed="S", expires_at=until, tries=tries)


def redeem(desk: Desk, server: str = B, at: int = 1_000, /, **changed: str) -> Outcome:
    invitation = changed.pop("invitation", "inv-1")
    return desk.do("invitation.redeem", at, invitation=invitation, server=body(server, **{"key": "k", **changed}))


def open_phrases(desk: Desk) -> list[str]:
    return [one.id for one in queries.invitations(desk.db) if one.sealed]


def test_an_invitation_adds_one_server_and_its_phrase_is_gone(desk: Desk) -> None:
    invited(desk)
    assert redeem(desk, role="witness") == Applied({"server": B, "again": False})
    row = queries.server(desk.db, B)
    assert row is not None and (row.state, row.is_witness) == (ServerState.JOINING, True)
    assert "used already" in rejected(redeem(desk, "srv-c"), "not_allowed")
    assert "used already" in rejected(desk.do("invitation.try", invitation="inv-1"), "not_allowed")
    assert open_phrases(desk) == []


def test_a_joining_server_may_come_again_with_its_key_only(desk: Desk) -> None:
    invited(desk)
    redeem(desk)
    invited(desk, "inv-2")
    rejected(redeem(desk, invitation="inv-2", key="other"), "conflict")
    again = redeem(desk, invitation="inv-2", name="better")
    assert again == Applied({"server": B, "again": True})
    assert queries.key_hash(desk.db, B) == "k"
    desk.do("server.up", server=B)
    invited(desk, "inv-3")
    rejected(redeem(desk, invitation="inv-3"), "conflict")


def test_an_invitation_expires_by_the_proposers_clock(desk: Desk) -> None:
    invited(desk)
    assert "expired" in rejected(redeem(desk, B, 5_001), "not_allowed")
    assert "expired" in rejected(desk.do("invitation.try", 5_001, invitation="inv-1"), "not_allowed")


def test_an_invitation_is_locked_by_wrong_tries(desk: Desk) -> None:
    invited(desk, tries=2)
    for left in (1, 0):
        assert desk.do("invitation.try", invitation="inv-1") == Applied({"tries_left": left})
    assert "locked" in rejected(desk.do("invitation.try", invitation="inv-1"), "not_allowed")
    assert open_phrases(desk) == ["inv-1"], "the last try may still turn out right"
    for _ in range(2):
        desk.do("invitation.failed", invitation="inv-1", remote="192.0.2.1")
    assert open_phrases(desk) == []
    assert "locked" in rejected(redeem(desk), "not_allowed")
    rejected(redeem(desk, invitation="inv-other"), "not_allowed")
    rejected(desk.do("invitation.try", invitation="inv-other"), "not_allowed")
    told = [event.text for event in queries.events(desk.db, kind="invitation")]
    assert sum("locked for everybody" in text for text in told) == 1


def test_a_right_try_is_given_back(desk: Desk) -> None:
    invited(desk, tries=1)
    desk.do("invitation.try", invitation="inv-1")
    desk.do("invitation.proved", invitation="inv-1")
    assert desk.do("invitation.try", invitation="inv-1") == Applied({"tries_left": 0})


def test_a_newer_invitation_replaces_an_open_one(desk: Desk) -> None:
    assert invited(desk) == Applied({"replaced": False})
    assert invited(desk, "inv-2") == Applied({"replaced": True})
    assert open_phrases(desk) == ["inv-2"]
    assert "replaced by a newer" in rejected(redeem(desk), "not_allowed")
    assert invited(desk, "inv-3", 5_001) == Applied({"replaced": False}), "the second had expired"


def test_an_invitation_cannot_be_made_twice(desk: Desk) -> None:
    invited(desk)
    assert "inv-1" in rejected(invited(desk), "conflict")
    assert open_phrases(desk) == ["inv-1"]


def test_a_name_clash_leaves_the_invitation_open(desk: Desk) -> None:
    invited(desk)
    rejected(redeem(desk, name="a"), "conflict")
    assert isinstance(redeem(desk), Applied)


def test_old_invitations_are_forgotten_when_a_new_one_is_made(desk: Desk) -> None:
    invited(desk)
    invited(desk, "inv-2", 86_400_000 + 5_001, until=99_000_000)
    assert [one.id for one in queries.invitations(desk.db)] == ["inv-2"]


def test_a_setting_is_checked_and_its_change_is_told(desk: Desk) -> None:
    assert queries.settings(desk.db)["session_hours"] == 12
    assert desk.do("setting.set", name="session_hours", value=8) == Applied({"before": 12})
    assert queries.settings(desk.db)["session_hours"] == 8
    rejected(desk.do("setting.set", name="session_hours", value=0), "refused")
    rejected(desk.do("setting.set", name="colour", value=1), "refused")
    assert "three times" in rejected(desk.do("setting.set", name="heartbeat_ms", value=4_000), "refused")
    assert queries.events(desk.db, kind="setting")[0].text == "session_hours changed from 12 to 8"


def test_events_are_read_in_pages(desk: Desk) -> None:
    for value in range(1, 8):
        desk.do("setting.set", name="session_hours", value=value)
    first = queries.events(desk.db, limit=3, kind="setting")
    second = queries.events(desk.db, limit=3, kind="setting", before=first[-1].n)
    assert [e.n for e in (*first, *second)] == sorted((e.n for e in (*first, *second)), reverse=True)
    assert queries.events(desk.db, subject=A)[-1].text == "a joined the grid from srv-a:8440"
