"""This server's row in the servers table follows what the server is; its contacts follow the table."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import ManualClock
from kmgr.grid import identity
from kmgr.grid.bootstrap import create_grid, propose_pending
from kmgr.grid.commands import APPLIERS
from kmgr.grid.identity import Identity
from kmgr.grid.local import LocalGrid
from kmgr.grid.model import Server
from kmgr.grid.presence import ContactBook, Presence, Whereabouts
from kmgr.grid.queries import events, server, servers
from kmgr.grid.schema import SCHEMA
from kmgr.ids import ServerId

B = ServerId("srv-b")


class Lab:
    """A grid of one, born in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.own: Identity = create_grid(
            folder,
            grid_name="office",
            name="a",
            grid_address="10.0.0.1:8440",
            web_address="10.0.0.1:443",
            version="1",
            now_ms=self.clock.now_ms(),
        )
        self.grid = LocalGrid(
            self.own.server, path=folder / "s", appliers=APPLIERS, schemas=(SCHEMA,), clock=self.clock
        )
        self.book = ContactBook(self.own)

    def presence(self, **changed: str) -> Presence:
        where: dict[str, Any] = {"grid_address": "10.0.0.1:8440", "web_address": "10.0.0.1:443", "version": "1"}
        return Presence(
            self.grid,
            own=self.own,
            data_dir=self.folder,
            where=Whereabouts(**{**where, **changed}),
            book=self.book,
            port=None,
            clock=self.clock,
        )

    def row(self) -> Server:
        with self.grid.view() as db:
            found = server(db, self.own.server)
        assert found is not None
        return found

    def events(self) -> int:
        with self.grid.view() as db:
            return len(events(db))


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await propose_pending(lab.grid, tmp_path)
    yield lab
    lab.grid.close()


async def test_a_server_that_is_what_its_row_says_announces_nothing(lab: Lab) -> None:
    before = lab.events()
    assert await lab.presence().announce_once()
    assert await lab.presence(grid_address=":8440", web_address=":443").announce_once()
    assert lab.events() == before


async def test_a_server_that_moved_or_was_upgraded_says_so(lab: Lab) -> None:
    await lab.presence(grid_address=":9440", version="2").announce_once()
    assert (lab.row().grid_address, lab.row().version) == ("10.0.0.1:9440", "2")


async def test_a_certificate_in_its_last_year_is_renewed_and_announced(lab: Lab) -> None:
    await lab.clock.advance(10.5 * 365 * 86_400, settle=1)
    await lab.presence().announce_once()
    renewed = identity.load(lab.folder)
    assert renewed is not None
    assert lab.row().fingerprint == renewed.fingerprint != lab.own.fingerprint


async def test_contacts_follow_the_table_and_are_kept_for_the_next_start(lab: Lab) -> None:
    body = {"server": B, "name": "b", "grid_address": "10.0.0.2:8440", "web_address": "w:1", "version": "1"}
    await lab.grid.propose("server.add", {**body, "fingerprint": "f"}, by="test")
    lab.presence().look()
    assert lab.book().described(B) == "b (10.0.0.2:8440)"
    again = identity.load(lab.folder)
    assert again is not None
    assert ContactBook(again)().addresses == {B: "10.0.0.2:8440"}
    with lab.grid.view() as db:
        assert not lab.book.update(servers(db, removed=True))


async def test_a_server_without_a_row_waits(lab: Lab, tmp_path: Path) -> None:
    stranger = LocalGrid(B, path=tmp_path / "t", appliers=APPLIERS, schemas=(SCHEMA,), clock=lab.clock)
    presence = Presence(
        stranger,
        own=lab.own,
        data_dir=lab.folder,
        where=Whereabouts("b:1", "b:2", "1"),
        book=lab.book,
        port=None,
        clock=lab.clock,
    )
    assert not await presence.announce_once()
    stranger.close()
