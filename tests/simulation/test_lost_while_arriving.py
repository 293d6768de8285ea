"""A server is lost while one of its personal desktops moves away: a part of it is not taken for all of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.ids import ServerId
from kmgr.provision.model import CopyState, Desktop
from tests.lab.whole_grid import Lab
from tests.simulation.test_personal import copies_of, protected, running, theirs

WORK = "the work of a year"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await lab.create(kind="personal", standby=1)
    yield lab
    await lab.close()


async def lost_half_way(lab: Lab) -> tuple[Desktop, ServerId]:
    """Return Anna's desktop, whose server lost power when half of it was where its copy is, and that server."""
    desktop = await protected(lab)
    lab.disks.write(lab.at(desktop.server).disk(desktop.id), WORK)
    await lab.wait(70)
    (copy,) = copies_of(lab, desktop, CopyState.READY)
    lab.at(desktop.server).migrations.takes_s = 20.0
    key = {"desktop": desktop.id, "generation": 1, "server": desktop.server}
    await lab.do("desktop.move", **key, target=copy.server, why="balance")
    await lab.wait(3)
    assert desktop.id in lab.at(copy.server).domains(), "it is arriving"
    await lab.power_cut(desktop.server)
    return desktop, copy.server


async def goes_on_whole(lab: Lab, desktop: Desktop, refuge: ServerId) -> None:
    for _ in range(60):
        await lab.wait(1)
        if running(lab, desktop):
            break
    now = theirs(lab)
    assert (now.server, now.generation, running(lab, now)) == (refuge, 2, [refuge])
    assert lab.disks.content.get(lab.at(refuge).disk(desktop.id)) == WORK
    for _ in range(30):
        await lab.wait(2)
        if copies_of(lab, desktop, CopyState.READY):
            break
    assert not copies_of(lab, desktop, CopyState.STARTING)
    assert copies_of(lab, desktop, CopyState.READY), "it is protected again"


async def test_it_goes_on_from_its_safe_copy_where_half_of_it_had_arrived(lab: Lab) -> None:
    desktop, refuge = await lost_half_way(lab)
    await goes_on_whole(lab, desktop, refuge)


async def test_a_daemon_that_began_anew_does_not_take_what_arrived_for_all_of_it_either(lab: Lab) -> None:
    desktop, refuge = await lost_half_way(lab)
    there = lab.at(refuge)
    while theirs(lab).generation == 1:
        await lab.wait(0.1)
        if theirs(lab).moving_to is not None and refuge not in running(lab, desktop):
            there.arriving.run_once = _nothing  # type: ignore[method-assign]
    await there.stop()
    await there.start()
    await goes_on_whole(lab, desktop, refuge)


async def _nothing() -> None:
    """Its daemon dies before it looks."""
