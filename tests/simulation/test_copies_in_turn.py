"""More personal desktops than cycles at once: long first copies keep no other copy waiting, and who waits is told."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.ids import DesktopId
from kmgr.provision.model import CopyState, Desktop
from kmgr.provision.protection import AT_ONCE, FIRST_AT_ONCE
from kmgr.provision.queries import copies
from kmgr.users.broker import Ready
from tests.lab.whole_grid import IDS, Lab, Simulated

EARLY = tuple(f"early-{number}" for number in range(4))
LATE = tuple(f"late-{number}" for number in range(8))


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path, ids=IDS[:2])
    for server in lab.servers:
        server.room["cpus"] = 64
    await lab.create(kind="personal", standby=4, maximum=20)
    await lab.wait(10)
    for user in EARLY:
        await given(lab, user)
    await lab.clock.advance(40)
    yield lab
    await lab.close()


async def given(lab: Lab, user: str) -> Desktop:
    for _ in range(60):
        answer = await lab.open(user)
        if isinstance(answer, Ready):
            return answer.desktop
        await lab.wait(0.5)
    raise AssertionError("nobody was given a desktop")


def ready(lab: Lab) -> set[DesktopId]:
    with lab.servers[0].grid.view() as db:
        return {copy.desktop for copy in copies(db) if copy.state is CopyState.READY}


def told(server: Simulated) -> dict[DesktopId, tuple[int | None, str]]:
    return dict(server.protection.vitals()["extra"]["copies"])


async def test_long_first_copies_let_the_others_stay_young_and_who_waits_for_long_is_an_alarm(lab: Lab) -> None:
    early = {desktop.id for desktop in lab.desktops() if desktop.user in EARLY}
    assert ready(lab) == early
    for server in lab.servers:
        server.mirror.takes_s, server.mirror.first_s = 0.3, 260.0
    for user in LATE:
        await given(lab, user)
    for _ in range(40):
        await lab.clock.advance(5)
        for server in lab.servers:
            ages = [age for desktop, (age, _) in told(server).items() if desktop in early]
            assert all(age is not None and age <= 60 for age in ages), ages
    # Those whose turn has not come say so at once, and after three times the target it is an alarm.
    for server in lab.servers:
        waiting = [cause for desktop, (_, cause) in told(server).items() if desktop not in early and cause]
        mine = sum(desktop.server == server.id and desktop.user in LATE for desktop in lab.desktops())
        assert mine > FIRST_AT_ONCE + 1
        assert len(waiting) == mine - FIRST_AT_ONCE
        assert all("waits" in cause for cause in waiting)
        (problem,) = server.protection.problems()
        assert "180 s" in problem
        assert "waits" in problem
    assert any("waits" in text for text in lab.texts("alarm"))
    # Its turn alone is not what was waited for.
    for server in lab.servers:
        server.mirror.first_s = 60.0
    await lab.clock.advance(80)
    assert not any(cause for server in lab.servers for _, cause in told(server).values())
    assert all(server.protection.problems() for server in lab.servers)
    await lab.clock.advance(80)
    assert ready(lab) == {desktop.id for desktop in lab.desktops() if desktop.user}
    assert all(server.protection.problems() == () for server in lab.servers)
    assert any("up to date again" in text for text in lab.texts("alarm"))


async def test_a_server_does_a_few_cycles_at_once(lab: Lab) -> None:
    home = max(lab.servers, key=lambda server: len(told(server)))
    under_way = set[DesktopId]()
    most = 0
    cycle = home.mirror.cycle

    async def counted(desktop: DesktopId, *rest: object, **more: object) -> object:
        nonlocal most
        under_way.add(desktop)
        most = max(most, len(under_way))
        try:
            return await cycle(desktop, *rest, **more)  # type: ignore[arg-type]
        finally:
            under_way.discard(desktop)

    home.mirror.cycle = counted  # type: ignore[method-assign, assignment]
    home.mirror.takes_s, home.mirror.first_s = 5.0, 50.0
    for user in LATE:
        await given(lab, user)
    await lab.clock.advance(120)
    assert most <= AT_ONCE + FIRST_AT_ONCE
