"""A daemon on either side of a live move, killed at every single moment of it: the desktop runs on exactly one."""

import asyncio
from pathlib import Path

import pytest

from kmgr.ids import ServerId
from tests.lab.cut_points import Knife
from tests.lab.move_cuts import MoveTable
from tests.lab.provision import A, B

REST_S = 20.0


@pytest.mark.parametrize("server", [A, B])
async def test_a_daemon_killed_at_any_moment_of_a_move_leaves_one_desktop(server: ServerId, tmp_path: Path) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)  # jobs that were killed
    probe = MoveTable(tmp_path / "probe")
    await probe.open()
    moments = await probe.moments(server)
    assert probe.one("dsk-1").server == B, "it does not even come about undisturbed"
    await probe.close()
    assert len(moments) > 8, "too little happened to prove anything"
    for moment in moments:
        table = MoveTable(tmp_path / str(moment))
        await table.open()
        try:
            await table.die_at(server, moment)
            await table.live(REST_S)
            wrong = await table.wrong()
            assert not wrong, f"killed at moment {moment}: {wrong}"
        finally:
            await table.close()


async def test_the_doors_of_a_life_that_was_killed_are_gone_with_the_next_one(tmp_path: Path) -> None:
    table = MoveTable(tmp_path / "table")
    await table.open()
    left = [table.a.folder / "run" / "dsk-9.move", table.b.folder / "run" / "dsk-9.disk"]
    for server, door in zip((A, B), left, strict=True):
        door.touch()
        await table.under(server, Knife())
    await table.live(1)
    assert [door for door in left if door.exists()] == []
    await table.close()
