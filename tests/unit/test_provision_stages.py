"""A desktop's life so far: every change of state, server or user, with what failed, whoever wrote it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.ids import DesktopId
from kmgr.provision.model import Stage
from kmgr.provision.queries import life
from tests.lab.provision import Desk, done

D1 = DesktopId("d-1")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    await desk.found()
    yield desk
    await desk.agent.stop()
    desk.grid.close()


def told(desk: Desk) -> list[Stage]:
    with desk.grid.view() as db:
        return list(life(db, D1))


async def test_a_life_from_placed_to_removed(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.live(14)
    done(await desk.do("desktop.claim", user="bea", template="tpl"))
    found = told(desk)
    assert [(str(stage.state), stage.user) for stage in found] == [
        ("placed", None),
        ("building", None),
        ("ready", None),
        ("in_use", "bea"),
    ]
    assert found[2].at - found[1].at == pytest.approx(10_000, abs=1_000), "it booted for ten seconds"
    done(await desk.do("desktop.retire", desktop=D1, why="test"))
    assert str(told(desk)[-1].state) == "retired"
    await desk.live(4)
    assert told(desk) == [], "what is removed leaves nothing behind"


async def test_what_failed_stands_at_the_stage_that_it_began(desk: Desk) -> None:
    desk.hypervisor.fail["start"] = "no memory left"
    done(await desk.place(D1))
    await desk.live(4)
    broken = told(desk)[-1]
    assert (str(broken.state), broken.step, broken.cause) == ("broken", "start", "no memory left")
    desk.hypervisor.fail.clear()
    done(await desk.do("desktop.retry", desktop=D1))
    await desk.live(14)
    again = told(desk)
    assert again[2].cause == "no memory left", "it is remembered after the retry"
    assert [(str(stage.state), stage.generation) for stage in again[3:]] == [
        ("placed", 2),
        ("building", 2),
        ("ready", 2),
    ]


async def test_of_a_long_life_the_last_hundred_stages_are_kept(desk: Desk) -> None:
    done(await desk.place(D1))
    for _ in range(70):
        done(await desk.report("building", D1))
        done(await desk.report("ready", D1))
    found = told(desk)
    assert len(found) == 100
    assert str(found[-1].state) == "ready"
