"""A daemon killed at every single moment of every transition: the next one converges and leaves nothing over."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmgr.grid.queries import server
from kmgr.ids import DesktopId
from kmgr.provision import warm_files
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.warm import CALM_S
from kmgr.replica.mirror import CopyPoint
from tests.lab.cut_points import Table
from tests.lab.provision import A, B, done

D1, D2 = DesktopId("d-1"), DesktopId("d-2")
BOOT_S = 14

Step = Callable[[Table], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Transition:
    """`before` it, undisturbed; `begin` it, then the daemon lives `lasts_s`; `ends` are the states at last."""

    before: Step
    begin: Step
    ends: Mapping[str, str]
    lasts_s: float = 20
    personal: bool = False
    instant_clones: str = "never"


async def nothing(table: Table) -> None:
    """Nobody has a desktop yet."""


async def placed(table: Table) -> None:
    done(await table.place(D1))


async def standing_by(table: Table) -> None:
    await placed(table)
    await table.live(BOOT_S)
    assert table.states() == {D1: "ready"}


async def in_use(table: Table) -> None:
    await standing_by(table)
    await claim(table)


async def claim(table: Table) -> None:
    done(await table.do("desktop.claim", user="bea", template="tpl"))


async def claim_and_refill(table: Table) -> None:
    await claim(table)
    done(await table.place(D2))


async def give_back_and_refill(table: Table) -> None:
    done(await table.do("desktop.release", desktop=D1, user="bea"))
    done(await table.place(D2))


async def retire(table: Table) -> None:
    done(await table.do("desktop.retire", desktop=D1, why="test"))


async def power_cut(table: Table) -> None:
    table.hypervisor.power_cut()


async def broken(table: Table) -> None:
    table.hypervisor.fail["start"] = "something"
    await placed(table)
    await table.live(4)
    table.hypervisor.fail.clear()
    assert table.states() == {D1: "broken"}


async def standing_by_for_long(table: Table) -> None:
    await standing_by(table)
    await table.live(CALM_S + 2)


async def asleep(table: Table) -> None:
    await standing_by_for_long(table)
    await let_standbys_sleep(table)
    await table.live(4)
    (domain,) = await table.hypervisor.domains()
    assert domain.state is DomainState.PAUSED


async def let_standbys_sleep(table: Table) -> None:
    done(await table.do("template.update", template="tpl", policy={"suspend_standby": True}))


async def let_standbys_run(table: Table) -> None:
    done(await table.do("template.update", template="tpl", policy={"suspend_standby": False}))


async def memory_saved(table: Table) -> None:
    await placed(table)
    await table.live(2 * BOOT_S)
    assert len(warm_files.kept(table.folder)) == 1


async def place_another(table: Table) -> None:
    done(await table.place(D2))


async def retry(table: Table) -> None:
    done(await table.do("desktop.retry", desktop=D1))


async def stranger(table: Table) -> None:
    """What another server's loss or a restored backup leaves: a domain and a disk that no record explains."""
    await standing_by(table)
    done(await table.do("desktop.retire", desktop=D1, why="test"))
    done(await table.report("removed", D1))


async def domain_lost(table: Table) -> None:
    await table.hypervisor.remove(D1)


async def taken_over(table: Table) -> None:
    """Server b had it, with a safe copy here, and was lost."""
    done(await table.place(D1, server=B))
    for report in ("building", "ready"):
        done(await table.do(f"desktop.{report}", desktop=D1, generation=1, server=B))
    await claim(table)
    done(await table.do("copy.assign", desktop=D1, generation=1, server=A))
    point = {"desktop": D1, "generation": 1, "server": A, "as_of": table.clock.now_ms(), "bytes": 5}
    await _copy(table)
    done(await table.do("copy.points", server=B, points=[point]))
    done(await table.do("server.lost", server=B))


async def _copy(table: Table) -> None:
    point = CopyPoint(D1, 1, table.clock.now_ms(), 5, full=True, frozen=True)
    table.copies.copies[A, D1, 1] = (point, "all that bea saved")


async def take_over(table: Table) -> None:
    with table.grid.view() as db:
        lost = server(db, B)
    assert lost is not None
    body = {"desktop": D1, "generation": 1, "server": B, "lost_at": lost.changed_at, "target": A}
    done(await table.do("desktop.take_over", **body))


TRANSITIONS: Mapping[str, Transition] = {
    "build": Transition(nothing, placed, {D1: "ready"}),
    "claim": Transition(standing_by, claim_and_refill, {D1: "in_use", D2: "ready"}),
    "refresh": Transition(in_use, give_back_and_refill, {D2: "ready"}),
    "retire a standby": Transition(standing_by, retire, {}),
    "retire while it is built": Transition(placed, retire, {}),
    "boot standbys again": Transition(standing_by, power_cut, {D1: "ready"}),
    "power one in use on again": Transition(in_use, power_cut, {D1: "in_use"}),
    "retry": Transition(broken, retry, {D1: "ready"}),
    "remove a stranger": Transition(stranger, nothing, {}),
    "sleep": Transition(standing_by_for_long, let_standbys_sleep, {D1: "ready"}),
    "wake for whoever claims it": Transition(asleep, claim, {D1: "in_use"}),
    "wake because none is to sleep": Transition(asleep, let_standbys_run, {D1: "ready"}),
    "save a memory": Transition(nothing, placed, {D1: "ready"}, lasts_s=26, instant_clones="shared"),
    "instant clone": Transition(memory_saved, place_another, {D1: "ready", D2: "ready"}, instant_clones="shared"),
    "build a personal one": Transition(nothing, placed, {D1: "ready"}, personal=True),
    "revive a personal one": Transition(in_use, domain_lost, {D1: "in_use"}, personal=True),
    "power a personal one on again": Transition(in_use, power_cut, {D1: "in_use"}, personal=True),
    "start from a safe copy": Transition(taken_over, take_over, {D1: "in_use"}, personal=True),
}


async def table(folder: Path, transition: Transition) -> Table:
    folder.mkdir()  # noqa: ASYNC240 - there are no threads here
    made = Table(folder, instant_clones=transition.instant_clones)
    if transition.personal:
        made.member(B)
        await made.found(kind="personal")
    else:
        await made.found()
    await transition.before(made)
    await made.agent.stop()
    await transition.begin(made)
    return made


async def killed_at(folder: Path, transition: Transition, moment: int) -> None:
    """Kill a daemon at a moment of a transition and hold what its successor makes of it against the promise."""
    made = await table(folder, transition)
    try:
        await made.die_at(moment, transition.lasts_s)
        await made.live_on(2 * BOOT_S)
        left = await made.left_over()
        assert not left, f"killed at moment {moment}: {left}"
        assert made.states() == transition.ends, f"killed at moment {moment}"
        assert not made.copies.copies, f"killed at moment {moment}: a copy that nobody needs is still there"
    finally:
        await made.agent.stop()
        made.grid.close()


@pytest.mark.parametrize("name", TRANSITIONS)
async def test_a_daemon_killed_at_any_moment_is_made_good_by_the_next_one(name: str, tmp_path: Path) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)  # jobs that were killed
    transition = TRANSITIONS[name]
    probe = await table(tmp_path / "probe", transition)
    moments = await probe.moments(transition.lasts_s)
    assert probe.states() == transition.ends, "it does not even come about undisturbed"
    assert await probe.left_over() == []
    await probe.agent.stop()
    probe.grid.close()
    assert len(moments) > 8, "too little happened to prove anything"
    for moment in moments:
        await killed_at(tmp_path / str(moment), transition, moment)
