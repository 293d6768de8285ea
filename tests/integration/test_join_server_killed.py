"""kill -9 of the server that takes a newcomer in, or of the leader, at every step: a full member, or no trace."""

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from appliance.demo.cluster import Cluster
from appliance.demo.server import Place, Server
from kmgr.errors import Refused
from tests.integration.conftest import MakeGrid
from tests.lab import grids
from tests.lab.api import Api, wait_for
from tests.lab.daemons import kmgr
from tests.lab.ports import port

PREFIX = (sys.executable, "-m", "tests.lab.dying_server")
PORT = 300
WITHIN_S = 40.0
TRY, REDEEM = "invitation.try", "invitation.redeem"


@dataclass(frozen=True)
class Case:
    """Who is killed, at which step of the join."""

    victim: str
    step: str
    when: str

    def __str__(self) -> str:
        return f"{self.victim} {self.when} {self.step}"


OF_THREE = [
    Case("desk", TRY, "after"),
    Case("desk", REDEEM, "during"),
    Case("desk", REDEEM, "after"),
    Case("leader", TRY, "during"),
    Case("leader", REDEEM, "during"),
    Case("leader", REDEEM, "after"),
]
OF_ONE = [Case("desk", REDEEM, "after")]
VOTES = [Case("leader", "voter", when) for when in ("before", "during", "after")]


def made(make_grid: MakeGrid, name: str, *names: str) -> Iterator[Cluster]:
    grid = make_grid(name, names=names, desktops=False)
    for server in grid.servers:
        server.prefix = PREFIX
    grid.start()
    yield grid
    grid.stop()


@pytest.fixture(scope="module")
def three(make_grid: MakeGrid) -> Iterator[Cluster]:
    yield from made(make_grid, "takers", "one", "two", "three")


@pytest.fixture(scope="module")
def alone(make_grid: MakeGrid) -> Iterator[Cluster]:
    yield from made(make_grid, "taker", "one")


class Coming:
    """A newcomer to a grid, which leaves it again at the end of a test."""

    def __init__(self, grid: Cluster, request: pytest.FixtureRequest) -> None:
        number = request.node.session.items.index(request.node)
        self.grid = grid
        self.server = Server(grid.folder / f"n{number}", f"n{number}", desktops=False)
        first = port(PORT)
        self._place = Place("127.0.0.1", first, port(PORT + 1, {first}))
        self._token = grids.admin(grid, grid.servers[0]).token

    @property
    def boss(self) -> Api:
        """The administrator's client at the first server that runs."""
        client = grids.api(next(server for server in self.grid.servers if server.daemon is not None))
        client.token = self._token
        return client

    def joins(self, *, to: str, phrase: str) -> str:
        """Type the command; return why it failed, nothing if it did not."""
        try:
            self.server.join(self._place, to=to, phrase=phrase)
        except Refused as error:
            return error.message
        return ""

    def rows(self) -> list[list[grids.Item]]:
        """Return what each server that runs has of it, once all have applied the same."""
        running = [server for server in self.grid.servers if server.daemon is not None]
        grids.caught_up(running, timeout_s=WITHIN_S)
        seen = []
        for server in running:
            client = grids.api(server)
            client.token = self._token
            seen.append(client.items("servers"))
        return [[row for row in rows if row["name"] == self.server.name] for rows in seen]

    def is_up(self) -> bool:
        """True when the grid sees it up and it sees a majority itself."""
        here = grids.api(self.server).ask("GET", "/status").ok()
        return grids.states(self.boss).get(self.server.name) == "up" and bool(here["majority"])

    def leave(self) -> None:
        """Take it out of the grid."""
        if any(row for rows in self.rows() for row in rows):
            done = kmgr("remove", self.server.name, "--force", "--data", str(self.grid.servers[0].data))
            assert done.returncode == 0, done.stderr
        self.server.stop()


@pytest.fixture
def coming(request: pytest.FixtureRequest) -> Iterator[Coming]:
    # Which of the two grids it is about, the test says by using it.
    grid: Cluster = request.getfixturevalue("three" if "three" in request.fixturenames else "alone")
    newcomer = Coming(grid, request)
    yield newcomer
    for server in grid.servers:
        (server.data / "strike").unlink(missing_ok=True)
        server.start()
    grids.caught_up(grid.servers, timeout_s=WITHIN_S)
    newcomer.leave()
    if len(grid.servers) == 1:
        wait_for("it is alone", lambda: len(newcomer.boss.items("servers")) == 1, timeout_s=WITHIN_S)


def order(desk: Server, case: Case, victim: Server) -> None:
    """Have a server strike at a step of the next join."""
    assert victim.daemon is not None
    told = {"step": case.step, "when": case.when, "victim": 0 if victim is desk else victim.daemon.pid}
    (desk.data / "strike").write_text(json.dumps(told))


def gone(victim: Server, desk: Server) -> None:
    """Make sure that the strike has fallen."""
    daemon = victim.daemon
    assert daemon is None or daemon.gone_within(10), "nobody was killed"
    assert not (desk.data / "strike").exists(), "the step never came"


@pytest.mark.parametrize("case", OF_THREE, ids=str)
def test_one_of_three_is_killed_while_it_takes_a_newcomer_in(three: Cluster, coming: Coming, case: Case) -> None:
    leading = three.server(next(row["name"] for row in coming.boss.items("servers") if row["leader"]))
    desk = next(server for server in three.servers if server is not leading)
    victim = desk if case.victim == "desk" else leading
    phrase = desk.invite()
    order(desk, case, victim)

    why = coming.joins(to=desk.grid, phrase=phrase)
    gone(victim, desk)
    left = [[row["id"] for row in rows] for rows in coming.rows()]
    assert all(ids == left[0] for ids in left), "they differ about the newcomer"
    taken_in = bool(left[0])
    if case.step != REDEEM:
        assert taken_in == (not why), f"not a full member, and yet a trace: {why}"
    elif case.when == "after":
        assert taken_in, "what was made is gone"

    # The same command again. As long as the desk is dead only a member can go on, at any of the others.
    if not taken_in:
        desk.start()
    if why:
        assert coming.joins(to=desk.grid, phrase=phrase) == ""
    grown = coming.rows()
    assert [[row["id"] for row in rows] for rows in grown] == [[coming.server.id]] * len(grown)
    coming.server.start()
    wait_for("the newcomer is up", coming.is_up, timeout_s=WITHIN_S)


@pytest.mark.parametrize("case", OF_ONE, ids=str)
def test_the_only_server_is_killed_while_it_takes_the_second_one_in(
    alone: Cluster, coming: Coming, case: Case
) -> None:
    desk = alone.servers[0]
    phrase = desk.invite()
    order(desk, case, desk)
    assert "in the middle of the join" in coming.joins(to=desk.grid, phrase=phrase)
    gone(desk, desk)
    desk.start()
    assert coming.joins(to=desk.grid, phrase=phrase) == ""
    coming.server.start()
    wait_for("the newcomer is up", coming.is_up, timeout_s=WITHIN_S)


@pytest.mark.parametrize("case", VOTES, ids=str)
def test_the_leader_is_killed_while_the_newcomer_gets_its_vote(alone: Cluster, coming: Coming, case: Case) -> None:
    leader = alone.servers[0]
    order(leader, case, leader)
    assert coming.joins(to=leader.grid, phrase=leader.invite()) == ""
    coming.server.start()
    assert leader.daemon is None or leader.daemon.gone_within(WITHIN_S), "nobody was killed"
    leader.start()
    wait_for("the newcomer is up", coming.is_up, timeout_s=WITHIN_S)

    def both_vote() -> bool:
        return [row["voter"] for row in coming.boss.items("servers")] == [True, True]

    wait_for("both vote", both_vote, timeout_s=WITHIN_S)


def test_with_its_certificate_a_newcomer_needs_none_of_those_that_gave_it(three: Cluster, coming: Coming) -> None:
    one, two, three_ = three.servers
    assert coming.joins(to=two.grid, phrase=two.invite()) == ""
    for victim in (two, one):
        daemon = victim.daemon
        assert daemon is not None
        daemon.send(signal.SIGKILL)
        assert daemon.gone_within(10)
        if victim is two:
            coming.server.start()
    one.start()
    wait_for("the newcomer is up", coming.is_up, timeout_s=WITHIN_S)
    assert three_.answers()
