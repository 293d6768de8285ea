"""The birth of a grid: identity first, then commands, cut off anywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Conflict, Unavailable
from kmgr.grid import authority, identity
from kmgr.grid.bootstrap import create_grid, propose_pending
from kmgr.grid.commands import APPLIERS
from kmgr.grid.envelope import Outcome
from kmgr.grid.local import LocalGrid
from kmgr.grid.model import ServerState
from kmgr.grid.queries import events, grid_info, servers, settings
from kmgr.grid.schema import SCHEMA
from kmgr.ids import ServerId

FIRST: dict[str, Any] = {
    "grid_name": "office",
    "name": "a",
    "grid_address": "10.0.0.1:8440",
    "web_address": "10.0.0.1:443",
    "version": "1",
    "now_ms": 1_700_000_000_000,
    "extra_commands": [("setting.set", {"name": "session_hours", "value": 8})],
}


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[LocalGrid]:
    clock = ManualClock()
    grid = LocalGrid(
        ServerId("srv-x"), path=tmp_path / "state.sqlite", appliers=APPLIERS, schemas=(SCHEMA,), clock=clock
    )
    yield grid
    grid.close()


async def test_a_new_grid_has_its_first_server_and_what_was_asked_for(tmp_path: Path, grid: LocalGrid) -> None:
    own = create_grid(tmp_path, **FIRST)
    assert identity.load(tmp_path) == own
    assert await propose_pending(grid, tmp_path)
    assert not await propose_pending(grid, tmp_path)
    with grid.view() as db:
        info = grid_info(db)
        assert info is not None
        assert (info.id, info.name) == (own.grid, "office")
        assert authority.unseal(own.secret, info.ca_key_sealed).startswith(b"-----BEGIN PRIVATE KEY")
        (first,) = servers(db)
        assert (first.id, first.state, first.fingerprint) == (own.server, ServerState.UP, own.fingerprint)
        assert settings(db)["session_hours"] == 8


async def test_a_start_that_was_cut_off_anywhere_goes_on_where_it_was(tmp_path: Path, grid: LocalGrid) -> None:
    create_grid(tmp_path, **FIRST)

    class CutOff:
        server = grid.server

        def __init__(self, left: int) -> None:
            self.left = left

        async def propose(self, *args: Any, **kwargs: Any) -> Outcome:
            self.left -= 1
            if self.left < 0:
                raise Unavailable("killed here")
            return await grid.propose(*args, **kwargs)

    for left in range(4):
        with pytest.raises(Unavailable):
            await propose_pending(CutOff(left), tmp_path)  # type: ignore[arg-type]
    assert await propose_pending(grid, tmp_path)
    with grid.view() as db:
        assert [event.kind for event in events(db)] == ["setting", "server", "server", "grid"]


def test_a_second_grid_in_the_same_folder_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    create_grid(tmp_path, **FIRST)
    before = {file.name: file.read_bytes() for file in identity.folder(tmp_path).iterdir()}
    with pytest.raises(Conflict, match="'a' of the grid 'office'"):
        create_grid(tmp_path, **{**FIRST, "grid_name": "home"})
    assert before == {file.name: file.read_bytes() for file in identity.folder(tmp_path).iterdir()}


@pytest.mark.parametrize(
    "left_behind", [["server.key"], ["server.key", "server.crt", "bootstrap.json"], ["joining.json"]]
)
def test_a_half_made_identity_is_made_anew(tmp_path: Path, left_behind: list[str]) -> None:
    for name in left_behind:
        identity.folder(tmp_path).mkdir(exist_ok=True)
        (identity.folder(tmp_path) / name).write_text("rubbish")
    assert identity.load(tmp_path) is None
    own = create_grid(tmp_path, **FIRST)
    assert identity.load(tmp_path) == own
