"""Random walks of a grid whose servers go on by themselves: any cables pulled, people at any server, then one truth.

`KMGR_ISLAND_WALKS=200` walks longer than the short slice; `KMGR_ISLAND_SEED=7` walks one seed again.
"""

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from kmgr.errors import KmgrError
from kmgr.ids import ServerId
from kmgr.provision.model import DesktopState
from tests.lab.whole_grid import IDS, Lab

STEPS = 20
USERS = ("anna", "berta", "carl", "dora")
READY, IN_USE, RETIRED = DesktopState.READY, DesktopState.IN_USE, DesktopState.RETIRED
COMING = (DesktopState.PLACED, DesktopState.BUILDING)


def seeds() -> list[int]:
    """Return the seeds to walk: the asked one, or the first so many."""
    if seed := os.environ.get("KMGR_ISLAND_SEED"):
        return [int(seed)]
    return list(range(int(os.environ.get("KMGR_ISLAND_WALKS", "3"))))


class Walk:
    """One walk: its grid and its dice."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.dice = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self.dark: set[ServerId] = set()
        self.tokens: dict[str, list[str]] = {}
        self.told: list[str] = []

    async def step(self) -> None:
        """Do one thing and let some time pass."""
        chosen = self.dice.choices(
            (self.open, self.log_out, self.cut, self.mend, self.power_cut, self.restart, self.resize),
            (8, 3, 4, 3, 1, 2, 1),
        )[0]
        try:
            # What an island cannot do waits for a majority that may soon be believed, in the lab's time.
            said = await self.lab.meanwhile(chosen())
        except KmgrError as error:
            said = f"{chosen.__name__}: {error.code}"
        pause = self.dice.choice([0.2, 0.5, 1, 3, 7, 12])
        self.told.append(f"{said}, wait {pause}")
        await self.lab.wait(pause)

    def lit(self) -> int:
        """Return the place of some server that runs."""
        return self.lab.ids.index(self.dice.choice([server for server in self.lab.ids if server not in self.dark]))

    async def open(self) -> str:
        """Somebody logs in at some server and wants a desktop."""
        user, at = self.dice.choice(USERS), self.lit()
        self.tokens.setdefault(user, []).append(await self.lab.log_in(user, at))
        await self.lab.open(user, at)
        return f"{user} opens at {self.lab.ids[at]}"

    async def log_out(self) -> str:
        """Somebody logs out at some server, of all that they remember."""
        user, at = self.dice.choice(USERS), self.lit()
        for token in self.tokens.pop(user, []):
            await self.lab.servers[at].sessions.log_out(token)
        return f"{user} logs out at {self.lab.ids[at]}"

    async def cut(self) -> str:
        """A cable is pulled, whoever is left."""
        server = self.dice.choice(self.lab.ids)
        self.lab.cut(server)
        return f"cut {server}"

    async def mend(self) -> str:
        """Some cables are plugged in again."""
        for server in sorted(self.lab.log.cut_off - self.dark):
            if self.dice.random() < 0.7:
                self.lab.mend(server)
        return "mend"

    async def power_cut(self) -> str:
        """A server loses power."""
        server = self.dice.choice(self.lab.ids)
        if self.dark:
            return "dark already"
        await self.lab.power_cut(server)
        self.dark.add(server)
        return f"power cut {server}"

    async def restart(self) -> str:
        """Dark servers start; a daemon is killed and started, whatever it was doing."""
        for server in sorted(self.dark):
            await self.lab.power_on(server)
        self.dark.clear()
        one = self.lab.servers[self.lit()]
        await one.stop()
        await one.start()
        return f"restart {one.id}"

    async def resize(self) -> str:
        """Another number stands by; only a majority can say so."""
        at = self.lab.servers[self.lit()]
        standby = self.dice.choice([0, 2, 4])
        await at.grid.propose("template.update", {"template": "tpl-1", "standby": standby}, by="root")
        return f"standby {standby}"

    async def come_to_rest(self) -> None:
        """Mend everything and hold what must be so in the end."""
        lab = self.lab
        for server in sorted(self.dark):
            await lab.power_on(server)
        for server in lab.ids:
            lab.mend(server)
        await lab.wait(15)
        await lab.meanwhile(lab.give_up_waiting())
        await lab.do("template.update", template="tpl-1", standby=3)
        await lab.do("template.mend", template="tpl-1")
        await lab.wait(90)
        assert not [server.id for server in lab.servers if server.grid.status().island]
        assert set(lab.server_states().values()) == {"up"}
        first, *others = [self.dump(at) for at in range(len(lab.ids))]
        assert all(other == first for other in others)
        found = lab.desktops()
        twice = Counter(d.user for d in found if d.state is IN_USE)
        assert all(count == 1 for count in twice.values()), twice
        assert not [d for d in found if d.state in (*COMING, RETIRED)]
        assert sum(d.state is READY for d in found) == min(3, 8 - len(twice))
        for one in lab.servers:
            assert set(one.domains()) == {d.id for d in found if d.server == one.id}, one.id

    def dump(self, at: int) -> dict[str, list[tuple[object, ...]]]:
        """Return all of a server's state."""
        with self.lab.servers[at].log.view() as db:
            return {t: sorted(db.execute(f"select * from {t}").fetchall()) for t in db.table_names()}  # noqa: S608


@pytest.mark.parametrize("servers", [2, 3])
@pytest.mark.parametrize("seed", seeds())
async def test_whatever_everybody_did_alone_in_the_end_there_is_one_truth(
    seed: int, servers: int, tmp_path: Path
) -> None:
    lab = Lab(tmp_path, ids=IDS[:servers], islands=True)
    await lab.create()
    await lab.wait(20)
    walk = Walk(lab, seed)
    try:
        for _ in range(STEPS):
            await walk.step()
        await walk.come_to_rest()
    except BaseException:
        print(f"KMGR_ISLAND_SEED={seed} with {servers} servers:", *walk.told, sep="\n  ")
        raise
    finally:
        await lab.close()
