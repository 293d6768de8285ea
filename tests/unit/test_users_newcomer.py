"""A server that just joined and has not heard who may log in."""

from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Unavailable
from kmgr.grid.local import LocalGrid
from kmgr.ids import ServerId
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.users.sessions import Sessions
from tests.lab.people import RIGHT, FakeDirectory, added


async def test_nobody_is_told_that_the_password_is_wrong_before_the_state_has_arrived(tmp_path: Path) -> None:
    clock = ManualClock()
    server = ServerId("srv-new")
    grid = LocalGrid(server, path=tmp_path / "state", appliers=APPLIERS, schemas=SCHEMAS, clock=clock)
    directory = FakeDirectory()
    directory.add("anna", RIGHT)
    sessions = Sessions(grid, lambda: directory, clock=clock)
    try:
        with pytest.raises(Unavailable, match="just joined"):
            await sessions.log_in("anna", RIGHT, address="")
        await grid.propose("server.add", added(server), by="test")
        token, _ = await sessions.log_in("anna", RIGHT, address="")
        assert sessions.session_of(token) is not None
    finally:
        grid.close()
