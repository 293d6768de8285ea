"""One of three servers loses its power while thirty people work: when is everybody back, and what did each lose?"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.ids import ServerId
from kmgr.provision.model import DesktopState
from kmgr.users.broker import Ready
from tests.lab.whole_grid import IDS, Lab

PEOPLE = 30
STANDBY = 20
BACK_WITHIN_S = 15.0
FULL_AGAIN_WITHIN_S = 90.0


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    for server in lab.servers:
        server.room.update(cpus=16, memory_mib=131_072, memory_free_mib=120_000)
    await lab.create(standby=STANDBY, maximum=2 * PEOPLE + STANDBY, memory_mib=512)
    yield lab
    await lab.close()


async def given(lab: Lab, user: str, at: int) -> ServerId | None:
    """Let somebody look at the portal once; return where their desktop is, if they have one."""
    answer = await lab.open(user, at)
    return answer.desktop.server if isinstance(answer, Ready) else None


async def everybody(lab: Lab, users: list[str], ats: list[int], limit_s: float) -> dict[str, float]:
    """Let all of them look once a second, until each has a desktop on a server that lives; return after how long."""
    took: dict[str, float] = {}
    begun = lab.clock.monotonic()
    living = {server.id for server in lab.alive()}
    while len(took) < len(users) and lab.clock.monotonic() - begun <= limit_s:
        for number, user in enumerate(users):
            if user not in took and await given(lab, user, ats[number % len(ats)]) in living:
                took[user] = lab.clock.monotonic() - begun
        await lab.wait(1)
    return took


async def test_whoever_comes_back_has_a_desktop_and_the_pool_is_full_again(lab: Lab) -> None:
    users = [f"user{number}" for number in range(PEOPLE)]
    for user in users:
        await lab.log_in(user)
    assert len(await everybody(lab, users, [0, 1, 2], 120)) == PEOPLE
    # Whoever claims takes from the least used server: afterwards the pool evens out, one desktop after the other.
    for _ in range(120):
        await lab.wait(1)
        each = [lab.count(DesktopState.READY, server) for server in IDS]
        if sum(each) == STANDBY and max(each) - min(each) <= 1:
            break
    victim = IDS[2]
    thrown_out = sorted(str(d.user) for d in lab.desktops(DesktopState.IN_USE) if d.server == victim)
    untouched = {d.id for d in lab.desktops(DesktopState.IN_USE) if d.server != victim}
    lost_standbys = lab.count(DesktopState.READY, victim)
    assert len(thrown_out) >= PEOPLE // 4
    assert lost_standbys <= -(-STANDBY // 3)

    cut_at = lab.clock.monotonic()
    await lab.power_cut(victim)
    took = await everybody(lab, thrown_out, [0, 1], 60)
    assert sorted(took) == thrown_out
    assert max(took.values()) <= BACK_WITHIN_S
    for _ in range(round(FULL_AGAIN_WITHIN_S)):
        alive = [d for d in lab.desktops(DesktopState.READY) if d.server != victim]
        if len(alive) == STANDBY:
            break
        await lab.wait(1)
    full_s = lab.clock.monotonic() - cut_at
    assert full_s <= FULL_AGAIN_WITHIN_S
    assert untouched <= {d.id for d in lab.desktops(DesktopState.IN_USE)}
    held = [str(d.user) for d in lab.desktops(DesktopState.IN_USE) if d.server != victim]
    assert sorted(held) == sorted(users)
    ordered = sorted(took.values())
    print(
        f"{len(thrown_out)} of {PEOPLE} people were thrown out with {victim}; back after {ordered[0]:.0f} to "
        f"{ordered[-1]:.0f} s (virtual), the pool of {STANDBY} full after {full_s:.0f} s. Each of them lost what was "
        "open and not saved elsewhere: a pooled desktop is made anew."
    )
