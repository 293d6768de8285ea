"""Grids whose servers come and go while each decides for itself which versions it brings and gives up.

Every server decides on the real state by the real rules, in any order, with heartbeats that
differ; the log's applier has the last word. Whatever happens: what is given up is
never missed, every desktop's server gets its version, and in the end nobody moves anything.
"""

import random

import pytest

from kmgr.grid.envelope import Applied
from kmgr.grid.model import RUNNING, Vitals
from kmgr.grid.queries import servers
from kmgr.ids import ServerId, VersionId
from kmgr.provision.uses import uses
from kmgr.replica.queries import holdings, images
from kmgr.replica.seen import Seen, look
from tests.lab.state import State

SERVERS, VERSIONS = 12, 4
PLENTY = 1 << 40


class Walk:
    """One grid of it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a simulation
        self.state = State()
        self.servers = [self.state.server(f"{n:02}") for n in range(SERVERS)]
        self.state.do("image.create", image="img-1", name="Debian", notes="")
        for n in range(1, VERSIONS + 1):
            self.state.version(f"ver-{n}", [self.chance.choice(self.servers)])
        self.state.template("office", version="ver-1")
        self.full: set[ServerId] = set()

    def seen(self, server: ServerId) -> Seen:
        """Read the state as one server does; who heard of whose room is chance."""
        heard = {
            one: Vitals(one, 0.0, extra={"images_spare_bytes": 0 if one in self.full else PLENTY})
            for one in self.servers
            if self.chance.random() < 0.9
        }
        db = self.state.db
        lost = [one.id for one in servers(db) if one.state not in RUNNING]
        return look(db, server=server, applied=0, majority=True, uses=uses(db), away=lost, board=heard)

    def running(self) -> list[ServerId]:
        """Return the servers that are up or draining."""
        return [one.id for one in servers(self.state.db) if one.state in RUNNING]

    def held(self, version: VersionId) -> set[ServerId]:
        """Return the running servers that hold a version."""
        up = set(self.running())
        return {one.server for one in holdings(self.state.db) if one.version == version and one.server in up}

    def trouble(self) -> None:
        """Let something happen."""
        server, version = self.chance.choice(self.servers), f"ver-{self.chance.randrange(1, VERSIONS + 1)}"
        match self.chance.randrange(7):
            case 0 if len(self.running()) > 4:
                self.state.become(server, "lost")
            case 1 | 2:
                self.state.become(server, self.chance.choice(["up", "up", "draining"]))
            case 3:
                self.state.do("image.copies", image="img-1", copies=self.chance.choice([0, 2, 3, 5]))
            case 4:
                self.state.desktop("tpl-office", server, "in_use", version=version)
            case 5:
                self.state.db.execute("delete from desktops where server = ?", [server])
            case _:
                self.full ^= {server}

    def act(self, server: ServerId) -> int:
        """Let one server do what its agent would; return how much it did."""
        seen = self.seen(server)
        here = {one.version for one in holdings(self.state.db, server)}
        done = 0
        for version in seen.superfluous(here):
            before = self.held(version.id)
            if isinstance(self.state.do("version.drop", version=version.id, server=server), Applied):
                done += 1
                copies = images(self.state.db)[0].copies
                assert copies
                assert len(self.held(version.id)) >= copies, "too few are left"
                assert self.held(version.id) == before - {server}
                assert not uses(self.state.db).desktops.get(version.id, {}).get(server), "desktops there need it"
        for version in seen.lacking(here):
            if self.held(version.id) - {server} and (server not in self.full or seen.uses.desktops.get(version.id)):
                done += 1
                self.state.do("version.here", version=version.id, server=server)
        return done


@pytest.mark.parametrize("seed", range(40))
def test_copies_are_made_and_given_up_and_nobody_is_left_without(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(30):
        walk.trouble()
        for server in walk.chance.sample(walk.running(), k=min(4, len(walk.running()))):
            walk.act(server)
    for server in walk.servers:
        walk.state.become(server, "up")
    walk.full.clear()
    for _ in range(20):
        if not sum(walk.act(server) for server in walk.chance.sample(walk.servers, k=SERVERS)):
            break
    else:
        pytest.fail(f"seed {seed}: it never comes to rest")
    copies, needing = images(walk.state.db)[0].copies, uses(walk.state.db).desktops
    for n in range(1, VERSIONS + 1):
        version = VersionId(f"ver-{n}")
        held = walk.held(version)
        assert set(needing.get(version, {})) <= held
        assert len(held) == (max(copies, len(needing.get(version, {}))) if copies else SERVERS)
