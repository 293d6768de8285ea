"""Copies of personal disks and of images leave a server under one limit."""

import asyncio
from pathlib import Path

import pytest

from kmgr.grid.local import LocalNetwork
from kmgr.replica.agent import ReplicaAgent
from kmgr.replica.images import Images
from tests.lab.provision import A, Office


@pytest.mark.parametrize(("mbit_s", "least_s"), [(8, 2.0), (0, 0.0)])
async def test_what_is_sent_of_a_personal_disk_waits_for_the_limit_of_images(
    tmp_path: Path, mbit_s: int, least_s: float
) -> None:
    office = Office(tmp_path)
    await office.do("setting.set", name="image_mbit_s", value=mbit_s)
    agent = ReplicaAgent(office.grid, LocalNetwork().port(A), office.clock, Images(tmp_path))
    await agent.run_once()
    sending = asyncio.create_task(agent.slow(2_000_000))
    await asyncio.sleep(0)
    await office.clock.advance(max(0.0, least_s - 0.1))
    assert sending.done() == (not mbit_s)
    await office.clock.advance(0.2)
    await asyncio.wait_for(sending, 1)
