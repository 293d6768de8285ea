"""A server whose whole data folder was put back to an older copy takes no acknowledged change away."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.errors import ConfigError, KmgrError
from kmgr.ids import ServerId
from tests.lab.raft_lab import A, B, C, RaftLab, eventually, put


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[RaftLab]:
    lab = RaftLab(tmp_path)
    yield lab
    await lab.close_all()


async def copied(lab: RaftLab, server: ServerId) -> Path:
    """Copy a server's folder, as a backup would, and let it go on."""
    copy = lab.folder / f"copy of {server}"
    await lab.kill(server)
    lab.copy(server, copy)
    await lab.begin(server)
    await lab.level()
    return copy


async def put_back(lab: RaftLab, server: ServerId, copy: Path) -> None:
    """Put an older copy back in place of a dead server's folder, and start it."""
    shutil.rmtree(lab.folder / server)
    shutil.copytree(copy, lab.folder / server)
    await lab.begin(server)


async def test_a_majority_of_memory_is_not_lost_by_it(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    await put(await lab.led(), 1100)
    copy = await copied(lab, C)
    # Only A and C know of this one.
    await lab.kill(B)
    await put(await lab.led(), 1200)
    await lab.level()
    await lab.kill(C)
    await put_back(lab, C, copy)
    await eventually(lab.grids[C].problems)
    # B, which never heard of it, and C, which forgot it, must not agree on anything.
    await lab.kill(A)
    await lab.begin(B)
    await asyncio.sleep(6 * lab.timing.election_max_s)
    assert lab.leader() is None
    with pytest.raises(KmgrError):
        await put(lab.grids[B], 1300, timeout_s=1.0)
    assert "was a backup or a snapshot put back" in lab.grids[C].problems()[0]
    await lab.begin(A)
    await eventually(lambda: not lab.grids[C].problems())
    await lab.level()
    assert [lab.value(server) for server in (A, B, C)] == [1200] * 3
    # It counts again.
    await lab.kill(A)
    await put(await lab.led(), 1400)
    assert lab.fatal == []


async def test_the_doubt_outlives_a_restart(lab: RaftLab) -> None:
    await lab.grow(A, B, C)
    copy = await copied(lab, C)
    await lab.kill(B)
    await put(await lab.led(), 1200)
    await lab.kill(C)
    await put_back(lab, C, copy)
    await eventually(lab.grids[C].problems)
    await lab.kill(A)
    await lab.kill(C)
    await lab.begin(C)
    await lab.begin(B)
    await asyncio.sleep(6 * lab.timing.election_max_s)
    assert lab.leader() is None


async def test_of_two_servers_the_older_one_says_what_to_do_and_nothing_is_agreed_on(lab: RaftLab) -> None:
    await lab.grow(A, B)
    await put(await lab.led(), 1100)
    copy = await copied(lab, B)
    await put(await lab.led(), 1200)
    await lab.level()
    await lab.kill(B)
    await put_back(lab, B, copy)
    await eventually(lab.grids[B].problems)
    await asyncio.sleep(6 * lab.timing.election_max_s)
    assert lab.leader() is None
    assert "run kmgr grid recover on the other one" in lab.grids[B].problems()[0]
    assert lab.value(A) == 1200


async def test_a_copy_from_the_time_when_it_was_alone_stops_instead_of_overwriting(lab: RaftLab) -> None:
    first = await lab.begin(A, founder=True)
    await eventually(lambda: first.status().is_leader)
    await lab.kill(A)
    lab.copy(A, lab.folder / "alone")
    first = await lab.begin(A)
    await eventually(lambda: first.status().is_leader)
    for server in (B, C):
        await lab.begin(server)
        await eventually(lambda: first.status().majority)
        await first.add_voter(server)
    await put(first, 1200)
    await lab.level()
    for server in (A, B, C):
        await lab.kill(server)
    # Nobody is there to tell it that it is not alone any more: what it agrees on with itself contradicts the grid.
    await put_back(lab, A, lab.folder / "alone")
    await eventually(lambda: lab.grids[A].status().is_leader)
    await put(lab.grids[A], 1300)
    await lab.begin(B)
    await lab.begin(C)
    await eventually(lambda: lab.fatal)
    assert "older than what it had promised" in lab.fatal[0]
    assert "kmgr reset" in lab.fatal[0]
    await eventually(lambda: lab.grids[B].status().leader in {B, C})
    assert [lab.value(server) for server in (B, C)] == [1200] * 2
    # Nor at the next start.
    await lab.kill(A)
    with pytest.raises(ConfigError, match="kmgr reset"):
        await lab.begin(A)
    lab.grids.pop(A)
    lab.stores.pop(A).close()
