"""Random walks over a whole grid: users and troubles in any order, and what must hold after each step.

`KMGR_WALKS=500` walks longer than the short slice; `KMGR_WALK_SEED=7` walks one
seed again, the one that the failure message names.
"""

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kmgr.errors import KmgrError, Refused
from kmgr.grid.envelope import decode
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.model import DesktopState
from kmgr.users.broker import Ready
from tests.lab.whole_grid import IDS, Lab

STEPS = 25
MAXIMUM = 9
USERS = ("anna", "berta", "carl", "dora")
DEFAULT_WALKS = 8
REPORTS = ("desktop.building", "desktop.ready", "desktop.failed", "desktop.removed")
LIVING = (DesktopState.PLACED, DesktopState.BUILDING, DesktopState.READY, DesktopState.IN_USE)


def seeds() -> list[int]:
    """Return the seeds to walk: the asked one, or the first so many."""
    if seed := os.environ.get("KMGR_WALK_SEED"):
        return [int(seed)]
    return list(range(int(os.environ.get("KMGR_WALKS", DEFAULT_WALKS))))


class Walk:
    """One walk: its grid, its dice, and what was promised to whom."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.dice = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self.told: list[str] = []
        self.version = 1
        self.dark: set[ServerId] = set()
        self.promised: dict[str, DesktopId] = {}
        self.tokens: dict[str, str] = {}

    def check(self) -> None:
        """Hold the invariants."""
        lab = self.lab
        found = lab.desktops()
        for server in lab.alive():
            with server.grid.view() as db:
                assert [d["id"] for d in db.query("select id from desktops order by name, id")] == [
                    d.id for d in found
                ], f"{server.id} has another state"
        living = sum(d.state in LIVING for d in found)
        assert living <= MAXIMUM, f"{living} desktops live"
        states = lab.server_states()
        running = [d for d in found if d.state is DesktopState.IN_USE and states[d.server] in ("up", "draining")]
        twice = [user for user, count in Counter(d.user for d in running).items() if count > 1]
        assert not twice, f"{twice} have two desktops"
        by_id = {d.id: d for d in found}
        for user, desktop in list(self.promised.items()):
            kept = by_id.get(desktop)
            if kept is not None and states[kept.server] == "lost":
                del self.promised[user]
            else:
                assert kept is not None, f"{user}'s {desktop} is gone"
                assert (kept.state, kept.user) == (DesktopState.IN_USE, user), f"{user}'s {desktop} is {kept.state}"

    async def step(self) -> None:
        """Do one thing and let some time pass."""
        steps = self.steps()
        chosen = self.dice.choices([step for _, step in steps], [weight for weight, _ in steps])[0]
        try:
            said = await chosen()
        except KmgrError as error:
            said = f"{chosen.__name__}: {error.code}"
        pause = self.dice.choice([0.1, 0.3, 1, 3, 12])
        self.told.append(f"{said}, wait {pause}")
        for _ in range(round(pause * 10)):
            await self.lab.clock.advance(0.1)
            self.check()

    def steps(self) -> tuple[tuple[int, Callable[[], Awaitable[str]]], ...]:
        """Return what may happen, each with its weight."""
        return (
            (6, self.open),
            (4, self.log_out),
            (3, self.cut),
            (4, self.mend),
            (2, self.power_cut),
            (2, self.sicken),
            (2, self.spoil),
            (3, self.heal),
            (2, self.make_anew),
            (3, self.arrive_late),
            (2, self.publish),
            (2, self.resize),
            (1, self.drain),
            (1, self.undrain),
            (3, self.rest),
        )

    async def open(self) -> str:
        """Somebody wants their desktop, at a server that may not be the best one."""
        user, at = self.dice.choice(USERS), self.dice.choice(range(len(IDS)))
        if IDS[at] in self.dark:
            return "open at a dark server"
        self.tokens.setdefault(user, await self.lab.log_in(user, at))
        answer = await self.lab.open(user, at)
        if isinstance(answer, Ready):
            self.promised[user] = answer.desktop.id
        return f"{user} opens at {IDS[at]}: {type(answer).__name__}"

    async def log_out(self) -> str:
        """Somebody goes."""
        if not self.tokens:
            return "nobody to log out"
        user = self.dice.choice(sorted(self.tokens))
        token, desktop = self.tokens.pop(user), self.promised.pop(user, None)
        await self.lab.alive()[0].sessions.log_out(token)
        return f"{user} logs out of {desktop}"

    async def cut(self) -> str:
        """A cable is pulled, if a majority stays."""
        if self.lab.log.cut_off:
            return "cut nothing more"
        server = self.dice.choice(IDS)
        self.lab.cut(server)
        return f"cut {server}"

    async def power_cut(self) -> str:
        """A server loses power, if a majority stays."""
        if self.lab.log.cut_off:
            return "no power cut more"
        server = self.dice.choice(IDS)
        await self.lab.power_cut(server)
        self.dark.add(server)
        return f"power cut {server}"

    async def mend(self) -> str:
        """Whoever is away returns."""
        for server in sorted(self.lab.log.cut_off):
            if server in self.dark:
                await self.lab.power_on(server)
                self.dark.discard(server)
            else:
                self.lab.mend(server)
        return "mend"

    async def sicken(self) -> str:
        """A hypervisor stops answering."""
        server = self.dice.choice(IDS)
        self.lab.at(server).hypervisor.down = "libvirt does not answer"
        return f"hypervisor of {server} down"

    async def spoil(self) -> str:
        """Desktops do not start on a server."""
        server = self.dice.choice(IDS)
        self.lab.at(server).hypervisor.fail["start"] = "no room for its memory"
        return f"starts fail on {server}"

    async def heal(self) -> str:
        """All hypervisors answer, and what they start runs."""
        for server in self.lab.servers:
            server.hypervisor.down = ""
            server.hypervisor.fail.clear()
        return "hypervisors up"

    async def make_anew(self) -> str:
        """A broken desktop is tried again."""
        broken = self.lab.desktops(DesktopState.BROKEN)
        if not broken:
            return "nothing broken to try again"
        desktop = self.dice.choice(broken)
        await self.lab.propose("desktop.retry", desktop=desktop.id)
        return f"try {desktop.id} again"

    async def arrive_late(self) -> str:
        """A server's report, proposed once more because its outcome was unknown, gets into the log long after."""
        reports = [command for command in map(decode, self.lab.log.entries) if command.type in REPORTS]
        now = {d.id: d for d in self.lab.desktops()}
        stale = [r for r in reports if r.body["generation"] < getattr(now.get(r.body["desktop"]), "generation", 0)]
        if not reports:
            return "no report to come late"
        report = self.dice.choice(stale or reports[-12:])
        outcome = await self.lab.propose(report.type, **report.body)
        if stale:
            after = {d.id: d for d in self.lab.desktops()}
            assert after == now, f"{report.type} of an older generation changed {report.body['desktop']}"
        return f"{report.type} of {report.body['desktop']} comes late: {type(outcome).__name__}"

    async def publish(self) -> str:
        """A newer version, on one server first."""
        self.version += 1
        first = self.dice.choice(self.lab.alive()).id
        await self.lab.version(f"ver-{self.version}", (first,))
        await self.lab.do("template.publish", template="tpl-1", version=f"ver-{self.version}")
        for server in self.lab.alive():
            await self.lab.hand_out(f"ver-{self.version}", server.id)
        return f"publish ver-{self.version} from {first}"

    async def resize(self) -> str:
        """Another number stands by."""
        standby = self.dice.choice([0, 1, 2, 4, MAXIMUM])
        await self.lab.do("template.update", template="tpl-1", standby=standby)
        return f"standby {standby}"

    async def drain(self) -> str:
        """A server is to become empty."""
        server = self.dice.choice(IDS)
        await self.lab.do("server.drain", server=server)
        return f"drain {server}"

    async def undrain(self) -> str:
        """All servers take desktops again."""
        for server in IDS:
            await self.lab.do("server.undrain", server=server)
        return "undrain"

    async def rest(self) -> str:
        """Nothing happens."""
        return "rest"

    async def come_to_rest(self) -> None:
        """Mend everything; then pools are full, disks are clean and the log is quiet."""
        await self.mend()
        await self.heal()
        await self.undrain()
        for place in IDS:
            for number in range(1, self.version + 1):
                if not self.lab.at(place).image(f"ver-{number}").exists():
                    await self.lab.hand_out(f"ver-{number}", place)
        await self.lab.give_up_waiting()
        await self.lab.do("template.update", template="tpl-1", standby=3)
        await self.lab.do("template.mend", template="tpl-1")
        await self.lab.wait(90)
        self.check()
        found = self.lab.desktops()
        ready = [d.version for d in found if d.state is DesktopState.READY]
        assert ready == [f"ver-{self.version}"] * 3, f"standbys are {ready}"
        assert all(d.state in (DesktopState.READY, DesktopState.IN_USE, DesktopState.BROKEN) for d in found), (
            f"unfinished: {[(d.name, d.state.value) for d in found]}"
        )
        for server in self.lab.servers:
            wanted = sorted(d.id for d in found if d.server == server.id)
            assert server.domains() == wanted, f"{server.id} has {server.domains()}, wanted {wanted}"
            assert server.overlays() == wanted, f"{server.id} has disks {server.overlays()}, wanted {wanted}"
        before = len(self.lab.log.entries)
        await self.lab.wait(20)
        assert len(self.lab.log.entries) == before, "the log is not quiet"


async def walk(folder: Path, seed: int, kind: type[Walk] = Walk) -> None:
    """Walk one seed; `AssertionError` names it, what was found, and every step before."""
    lab = Lab(folder)
    await lab.create(maximum=MAXIMUM)
    await lab.wait(10)
    walking = kind(lab, seed)
    try:
        for _ in range(STEPS):
            await walking.step()
        await walking.come_to_rest()
    except (AssertionError, Refused) as error:
        steps = "\n  ".join(walking.told)
        raise AssertionError(f"KMGR_WALK_SEED={seed}: {error}\nafter\n  {steps}") from error
    finally:
        await lab.close()


@pytest.mark.parametrize("seed", seeds())
async def test_whatever_happens_users_keep_their_desktops_and_pools_fill_again(tmp_path: Path, seed: int) -> None:
    await walk(tmp_path, seed)
