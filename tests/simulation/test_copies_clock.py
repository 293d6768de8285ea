"""A wall clock that is set back or forward: the age of a safe copy, its alarm and the log go on as before."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.errors import Unavailable
from kmgr.provision.model import CopyState
from tests.lab.whole_grid import Lab
from tests.simulation.test_personal import copies_of, protected


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await lab.create(kind="personal", standby=1)
    yield lab
    await lab.close()


@pytest.mark.parametrize("seconds", [600, -600])
async def test_a_clock_that_jumps_hides_no_age_and_raises_no_alarm(lab: Lab, seconds: int) -> None:
    desktop = await protected(lab)
    home = lab.at(desktop.server)
    home.mirror.fail = Unavailable("its disk is full")
    await lab.wait(50)
    before, _ = home.protection.vitals()["extra"]["copies"][desktop.id]
    lab.clock.set_back(seconds)
    await lab.wait(2)
    after, _ = home.protection.vitals()["extra"]["copies"][desktop.id]
    assert before <= after <= before + 3
    assert home.protection.problems() == ()
    await lab.wait(180)
    assert home.protection.problems(), "it fails for more than three times its target"
    home.mirror.fail = None
    await lab.wait(65)
    assert home.protection.problems() == ()
    # The log says of the copy what the copy is, once half a minute has passed.
    await lab.wait(31)
    (known,) = copies_of(lab, desktop, CopyState.READY)
    [(point, _)] = lab.disks.copies.values()
    assert known.as_of is not None
    assert 0 <= point.as_of - known.as_of <= 31_000


async def test_a_daemon_that_starts_after_its_clock_was_set_back_takes_a_point_of_the_future_for_one_of_now(
    lab: Lab,
) -> None:
    desktop = await protected(lab)
    home = lab.at(desktop.server)
    home.mirror.fail = Unavailable("its disk is full")
    await home.stop()
    lab.clock.set_back(3600)
    await home.start()
    await lab.wait(175)
    assert home.protection.problems() == ()
    await lab.wait(10)
    assert home.protection.problems() != ()
