"""A drain that is undone in the middle of a live move: the move goes on, no other begins, nothing is left over."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.ids import ServerId
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.model import Desktop, DesktopState
from kmgr.users.broker import Ready
from tests.lab.whole_grid import IDS, Lab

USERS = ("anna", "bea", "carl")
MOVE_S = 6.0


@pytest.fixture(params=["pooled", "personal"])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    """Three people work on the same server: one more than may leave it at once."""
    lab = Lab(tmp_path)
    await lab.create(kind=request.param, standby=3)
    for other in IDS[1:]:
        await lab.do("server.drain", server=other)
    for user in USERS:
        await given(lab, user)
    for other in IDS[1:]:
        await lab.do("server.undrain", server=other)
    for server in lab.servers:
        server.migrations.takes_s = MOVE_S
    await lab.wait(12)
    yield lab
    await lab.close()


async def given(lab: Lab, user: str) -> None:
    for _ in range(60):
        if isinstance(await lab.open(user), Ready):
            return
        await lab.wait(0.5)
    raise AssertionError("nobody was given a desktop")


def used(lab: Lab) -> list[Desktop]:
    return sorted(lab.desktops(DesktopState.IN_USE), key=lambda d: d.id)


def found(lab: Lab, desktop: Desktop) -> list[tuple[ServerId, DomainState, int]]:
    """Return where there is anything of a desktop, as no server but the lab can know."""
    return [
        (server.id, domain.state, domain.spec.generation)
        for server in lab.servers
        if (domain := server.hypervisor._domains.get(desktop.id)) is not None
    ]


@pytest.mark.parametrize("after_s", [0.0, 0.5, 2.0, 3.5, 5.0, 5.9])
async def test_what_was_on_its_way_arrives_and_all_else_stays(lab: Lab, after_s: float) -> None:
    home = IDS[0]
    assert {d.server for d in used(lab)} == {home}
    await lab.do("server.drain", server=home)
    for _ in range(50):
        if any(d.moving_to for d in used(lab)):
            break
        await lab.wait(0.1)
    await lab.wait(after_s)
    going = {d.id: d.moving_to for d in used(lab) if d.moving_to is not None}
    assert len(going) == 2
    await lab.do("server.undrain", server=home)
    await lab.wait(40)
    assert lab.server_states()[home] == "up"
    assert [d.user for d in sorted(used(lab), key=lambda d: str(d.user))] == list(USERS)
    for desktop in used(lab):
        where = going.get(desktop.id, home)
        generation = 2 if desktop.id in going else 1
        assert (desktop.server, desktop.generation, desktop.moving_to) == (where, generation, None)
        assert found(lab, desktop) == [(where, DomainState.RUNNING, generation)]
        assert [s.id for s in lab.servers if desktop.id in s.overlays()] == [where]


async def test_a_move_that_breaks_after_the_undo_is_not_tried_again(lab: Lab) -> None:
    home = IDS[0]
    await lab.do("server.drain", server=home)
    await lab.wait(2)
    assert any(d.moving_to for d in used(lab))
    await lab.do("server.undrain", server=home)
    lab.at(home).migrations.fail["finish"] = "the wire broke"
    await lab.wait(40)
    for desktop in used(lab):
        assert (desktop.server, desktop.generation, desktop.moving_to) == (home, 1, None)
        assert found(lab, desktop) == [(home, DomainState.RUNNING, 1)]
